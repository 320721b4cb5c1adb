"""Study ``scaling`` at toy size: its compute is counted exactly, and its comparisons are what its numbers say."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from skipdit_cli.errors import SkipditError
from skipdit_cli.studies import training_curves
from skipdit_cli.studies.compute.model_grid import (
    Model,
    at_budget,
    best_at_budgets,
    correlations,
    sampling_pairs,
    training_pairs,
)
from skipdit_cli.studies.compute.scaling_findings import find
from skipdit_cli.training.run.state import RECORD

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
GRID = """
model:
  class: DiTTransformer2DModel
  config: {num_layers: 2, num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10, norm_eps: 1.0e-6}
train: {data: "digits:train", skip-branches: false, train-batch-size: 4, learning-rate: 1e-3, ema-decay: 0.9}
sweep:
  size: {S: {num_layers: 1}, B: {num_layers: 2}}
"""
EXPERIMENT = """about: toy
source: tests
experiment: {{study: scaling, grid: {grid}, train_steps: 4, checkpoints: 2, samples: 20, num_inference_steps: 2,
  sampling_steps: [1, 2], held_out: "digits:test", held_out_samples: 20, reference: "digits:train",
  reference_samples: 40, draws: 1}}
"""


def test_the_study_counts_its_compute_and_measures_the_averaged_weights(skipdit, tmp_path):
    grid, preset, output = tmp_path / "grid.yaml", tmp_path / "toy.yaml", tmp_path / "run"
    grid.write_text(GRID)
    preset.write_text(EXPERIMENT.format(grid=grid))
    ended = skipdit("study", "scaling", "--preset", preset, "--seeds", 1, "-o", output, "--json")
    assert ended.code == 0, ended.stderr
    models = ended.json["numbers"]["models"]
    assert list(models) == ["S", "B"]
    for name, model in models.items():
        info = skipdit("info", "--preset", output / f"{name}-seed-0" / f"{name}.yaml", "--json").json
        assert (model["macs"], model["parameters"], model["batch"]) == (info["macs"], info["parameters"], 4)
        assert [row["step"] for row in model["curves"][0]] == [2, 4]
        assert model["sampling"][0]["2"] == model["curves"][0][-1]["fid"]  # the same steps, the same samples
    run = output / "B-seed-0" / "B"
    settings = training_curves.Measurement(held_out_samples=20, draws=1)
    loss = training_curves.held_out_loss(training_curves.load_pipeline(run), settings)
    assert loss == models["B"]["curves"][0][-1]["loss"]  # the finished pipeline holds the averaged weights
    pipe = training_curves.averaged_pipeline(run, 4)
    scored = training_curves.Measurement(
        samples=20, num_inference_steps=2, reference="digits:train", reference_samples=40, batch_size=7
    )
    scores = training_curves.sample_scores(pipe, scored)
    assert scores["fid"] == pytest.approx(models["B"]["curves"][0][-1]["fid"])  # in batches, which memory holds singly
    page = (output / "report.html").read_text()
    assert "As figure 8 of the paper" in page and "As figure 10 of the paper" in page


def test_checkpoints_that_interruptions_left_are_passed_over_and_a_lost_one_is_named(tmp_path):
    def train(name: str, *steps: int) -> Path:
        for step in steps:
            (tmp_path / name / f"checkpoint-{step}").mkdir(parents=True)
            (tmp_path / name / f"checkpoint-{step}" / RECORD).write_text("{}")
        return tmp_path / name

    folders = {"a": train("a", 15, 16, 30, 45, 57, 60), "b": train("b", 15, 30, 45, 60)}
    run = SimpleNamespace(
        device="cpu", measured_all=lambda function, calls: {name: calls[name]["step"] for name in calls}
    )
    curves = training_curves.curves_of(run, folders, {}, 15)
    assert curves == {"a": [15, 30, 45, 60], "b": [15, 30, 45, 60]}
    with pytest.raises(SkipditError, match="c has no checkpoint of step 30"):
        training_curves.curves_of(run, {**folders, "c": train("c", 15, 16, 45, 60)}, {}, 15)


def model(name: str, macs: int, fids: list[float], sampling: dict[int, float]) -> Model:
    curve = [{"step": 10.0 * (at + 1), "fid": fid, "loss": fid} for at, fid in enumerate(fids)]
    return Model(name, macs, 1, 2, [curve], [sampling])


def test_comparisons_on_curves_that_are_known():
    small, large = model("S", 10, [8, 4], {1: 9, 100: 4}), model("L", 100, [6, 2], {1: 8, 5: 3})
    assert correlations([small, large], "fid") == []  # two points always lie on a line
    assert correlations([small, model("M", 1000, [6, 0], {1: 8}), large], "fid") == [pytest.approx(-1)]
    assert small.training_macs(10) == 3 * 10 * 2 * 10
    assert at_budget(small, "fid", small.training_macs(15)) == [pytest.approx(8 - 4 * math.log(1.5, 2))]
    assert at_budget(small, "fid", small.training_macs(21)) is None and at_budget(large, "fid", 100) is None
    assert best_at_budgets([small, large], "fid") == []  # they share no training compute
    (*_, last) = best_at_budgets([small, model("M", 10, [8, 3], {1: 9})], "fid")
    assert last == {"training_macs": pytest.approx(1200), "best": "M", "values": {"S": [4], "M": [3]}}
    assert sampling_pairs([small, large]) == [{"small": "S", "large": "L", "stays_behind": 1.0}]


def test_the_answer_says_no_more_than_the_numbers():
    small, large = model("S", 10, [8, 4], {1: 9, 100: 4}), model("L", 15, [5, 2], {1: 8, 5: 3})
    assert training_pairs([small, large], "fid") == [{"small": "S", "large": "L", "larger_is_better": 1.0}]
    found = find([small, large], {"fid": 0.1}, 2)
    assert "too few to say" in found.lead
    assert (
        "of 1 pair of models" in found.details[0]
        and "in every seed in 1, and the smaller one in 0." in found.details[0]
    )
    assert "More sampling steps do not make up" in found.details[1]
    mixed = Model("L", 15, 1, 2, large.curves * 2, [{1: 3}, {1: 5}])
    twice = Model("S", 10, 1, 2, small.curves * 2, [{2: 4}, {2: 4}])
    found = find([twice, mixed], {"fid": 0.1}, 2)
    assert "More sampling steps sometimes make up" in found.details[1] and "in 0 it is ahead" in found.details[1]
    assert "No two models" in find([small], {"fid": 0.1}, 2).details[0]
