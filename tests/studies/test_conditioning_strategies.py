"""Study ``conditioning`` at toy size: the four strategies are trained alike, and its lead is what its numbers say."""

import pytest

from skipdit_cli.families.conditioned_dit import CONDITIONINGS
from skipdit_cli.studies.conditioning_strategies import Strategy, find, leads

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
MODEL = """about: toy
source: tests
model:
  class: DiTTransformer2DModel
  config: {num_layers: 2, num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10, norm_eps: 1.0e-6}
train: {learning-rate: 1e-3}
"""
EXPERIMENT = """about: toy
source: tests
experiment: {{study: conditioning, preset: {preset}, train_steps: 2, checkpoints: 1, train_batch_size: 4, samples: 10,
  num_inference_steps: 1, data: "digits:train", held_out: "digits:test", held_out_samples: 10,
  reference: "digits:train", reference_samples: 20, draws: 1}}
"""


def test_the_study_trains_all_strategies_alike_and_counts_them(skipdit, tmp_path):
    model, preset, output = tmp_path / "toy-model.yaml", tmp_path / "toy.yaml", tmp_path / "run"
    model.write_text(MODEL)
    preset.write_text(EXPERIMENT.format(preset=model))
    ended = skipdit("study", "conditioning", "--preset", preset, "--seeds", 1, "-o", output, "--json")
    assert ended.code == 0, ended.stderr
    strategies = ended.json["numbers"]["strategies"]
    assert list(strategies) == list(CONDITIONINGS)
    for name, strategy in strategies.items():
        info = skipdit("info", "--preset", model, "--conditioning", name, "--json").json
        assert (strategy["macs"], strategy["parameters"]) == (info["macs"], info["parameters"])
        (row,) = strategy["curves"][0]
        assert row["step"] == 2 and set(row) == {"step", "loss", "fid", "kid", "agreement"}
    assert "Strategies at equal steps" in (output / "report.html").read_text()


def test_a_lead_is_told_apart_from_the_spread():
    def strategy(name: str, fids: list[float]) -> Strategy:
        return Strategy(name, 1, 1, [[{"step": 1, "fid": fid, "agreement": 1 - fid / 10}] for fid in fids])

    every = [strategy("in-context", [5, 6]), strategy("adaln", [1, 4]), strategy("adaln-zero", [2, 3])]
    assert leads(every, "fid") == {"in-context": [3, 3], "adaln": [-1, 1]}
    assert leads(every, "agreement")["in-context"] == pytest.approx([0.3, 0.3])
    found = find(every)
    assert found.lead.startswith("After 1 step of training, FID: adaln-zero is")
    assert not found.warnings
    assert "at most 45%" in find([strategy(each.name, [5.5, 5.5]) for each in every]).warnings[0]
    assert "ahead of in-context by 3.00 ±0.00, in every seed" in found.lead
    assert "level with adaln by 0.00 ±1.41, within the spread" in found.lead
