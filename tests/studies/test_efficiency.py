"""Study ``efficiency`` at toy size, and the ratio of trainings on curves whose ratio is known."""

import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.studies.compute.efficiency_findings import find
from skipdit_cli.studies.compute.training_pair import Pair, training_ratio
from skipdit_cli.studies.efficiency import EfficiencySettings, commands

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
MODEL = """
model:
  class: DiTTransformer2DModel
  config: {num_layers: 2, num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10, norm_eps: 1.0e-6}
train: {learning-rate: 1e-3, gradient-accumulation-steps: 8}
"""
EXPERIMENT = """about: toy
source: tests
experiment: {{study: efficiency, presets: [{model}], train_steps: [4], batch_sizes: [4], data: ["digits:train"],
  held_out: ["digits:test"], references: ["digits:train"], samples: [20], checkpoints: 2, num_inference_steps: 2,
  held_out_samples: 20, reference_samples: 40, draws: 1, timing_rounds: 1, lr_warmup_steps: 0, ema_decay: 0.9}}
"""


def test_the_study_trains_both_models_alike_and_counts_their_compute(skipdit, tmp_path):
    model, preset, output = tmp_path / "model.yaml", tmp_path / "toy.yaml", tmp_path / "run"
    model.write_text(MODEL)
    preset.write_text(EXPERIMENT.format(model=model))
    ended = skipdit("study", "efficiency", "--preset", preset, "--seeds", 1, "-o", output, "--json")
    assert ended.code == 0, ended.stderr
    assert all("--gradient-accumulation-steps 1 " in line for line in ended.json["commands"])  # not the preset's 8
    (pair,) = ended.json["numbers"]["pairs"]
    info = skipdit("info", "--preset", model, "--json").json
    assert pair["step_cost"]["macs"]["vanilla"] == 3 * 4 * info["macs"]
    assert pair["step_cost"]["macs"]["skip"] == 3 * 4 * (info["macs"] + info["skip_macs"])
    assert [row["step"] for row in pair["curves"]["skip"][0]] == [2, 4] and len(pair["curves"]["vanilla"]) == 1
    (ratios,) = ended.json["numbers"]["ratios"].values()
    cost = pair["step_cost"]
    for metric in ("loss", "fid"):
        ratio, clock, macs = (ratios[metric][name][0] for name in ("steps", "seconds", "macs"))
        assert clock == pytest.approx(ratio * cost["seconds"]["vanilla"] / cost["seconds"]["skip"])
        assert macs == pytest.approx(ratio * cost["macs"]["vanilla"] / cost["macs"]["skip"])


def test_a_ratio_is_that_of_the_trainings():
    def falling(start: float) -> tuple[list[float], list[float]]:
        return [100, 200, 400, 800], [8.0, 7.0, 6.0, start]

    vanilla = falling(5.0)
    assert training_ratio(vanilla, vanilla) == 1
    assert training_ratio(vanilla, ([50, 100, 200, 400], vanilla[1])) == pytest.approx(2)  # twice as fast
    assert training_ratio(vanilla, ([100, 200, 400, 800], [7.0, 6.0, 5.0, 4.0])) == pytest.approx(2)
    assert training_ratio(([100, 200, 400, 800], [7.0, 6.0, 5.0, 4.0]), vanilla) == pytest.approx(0.5)
    assert training_ratio(([100, 400], [6.0, 5.0]), ([100, 400], [6.0, 4.0])) == pytest.approx(2)  # by interpolation


def test_equal_clock_and_flops_take_the_cost_of_a_step_into_account():
    rows = [{"step": step, "loss": 10.0 - at} for at, step in enumerate((100, 200, 400))]
    cost = {"steps": {"vanilla": 1, "skip": 1}, "seconds": {"vanilla": 1, "skip": 2}}
    pair = Pair("toy", cost, {"vanilla": [rows], "skip": [rows]})
    assert pair.at_equal("loss", "steps") == {"vanilla": [8], "skip": [8]}
    assert pair.at_equal("loss", "seconds") == {"vanilla": [8], "skip": [pytest.approx(9)]}
    assert pair.ratios("loss", "seconds") == [0.5] and pair.is_told("loss")


def test_a_quality_that_no_training_improves_says_nothing():
    cost = {name: {"vanilla": 1.0, "skip": 1.0} for name in ("steps", "seconds", "macs")}
    falling = [{"step": step, "loss": 10.0 - at, "fid": 9.0} for at, step in enumerate((100, 200, 400))]
    rising = [{"step": step, "loss": 9.0 - at, "fid": 8.0 + at} for at, step in enumerate((100, 200, 400))]
    pair = Pair("toy", cost, {"vanilla": [falling], "skip": [rising]})
    findings = find([pair])
    assert "the vanilla model needs" in findings.lead and "the FID says nothing" in findings.details[0]
    assert findings.tables[0].rows[1][1:4] == ["-", "-", "-"]


def test_lists_of_other_lengths_are_refused():
    both = ("digits", "digits-video")
    settings = EfficiencySettings(both, (4,), (4, 4), both, both, both, (4, 4), 2, 2)
    with pytest.raises(UsageError, match="1 value.* of 'experiment: train_steps' but expected 2"):
        commands(settings, (0,))
