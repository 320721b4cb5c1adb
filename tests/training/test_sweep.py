"""``train --sweep``: the points of a grid, what they cost, and that each is the training that its preset says."""

import os
import signal
from pathlib import Path

import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.training.run.loop import Trainer
from skipdit_cli.training.sweep import points_of

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
GRID = """
about: A grid.
model:
  class: DiTTransformer2DModel
  config: {num_layers: 2, num_attention_heads: 2, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10, norm_eps: 1.0e-6}
train: {data: digits, skip-branches: false, train-batch-size: 4, max-train-steps: 3, checkpointing-steps: 1}
sweep:
  size:
    S: {num_layers: 2}
    B: {num_layers: 3, learning-rate: 1e-3}
"""


@pytest.fixture
def grid(tmp_path):
    def write(text: str = GRID) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return path

    return write


def weights(folder: Path) -> bytes:
    return (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_a_grid_is_counted_trained_resumed_and_repeated(skipdit, grid, tmp_path, monkeypatch):
    output, run = tmp_path / "grid", ("train", "--sweep", grid(), "-o", tmp_path / "grid", "--seed", 5)
    planned = skipdit(*run, "--dry-run", "--json")
    assert planned.code == 0, planned.stderr
    assert [point["name"] for point in planned.json["points"]] == ["S", "B"] and not output.exists()
    for point in planned.json["points"]:
        assert point["training_macs"] == 3 * point["macs"] * 4 * 3  # three forwards a step, batch 4, 3 steps

    optimize = Trainer.optimize

    def interrupted(trainer, batches):
        if trainer.settings.output.name == "B" and trainer.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return optimize(trainer, batches)

    monkeypatch.setattr(Trainer, "optimize", interrupted)
    assert skipdit(*run).code == 130
    assert (output / "S" / "model_index.json").is_file() and (output / "B" / "checkpoint-2").is_dir()
    monkeypatch.setattr(Trainer, "optimize", optimize)
    before = weights(output / "S")
    done = skipdit(*run, "--json")
    assert done.code == 0, done.stderr
    assert "resumed from" in done.stderr and "1 point of 2 finished before" in done.stderr
    assert [point["state"] for point in done.json["points"]] == ["finished"] * 2 and weights(output / "S") == before
    assert all(point["loss"] > 0 for point in done.json["points"])

    assert load_preset(str(output / "B.yaml")).flags["train"]["seed"] == "5"
    assert skipdit("train", "--preset", output / "B.yaml", "-o", tmp_path / "alone").code == 0
    assert weights(tmp_path / "alone") == weights(output / "B")
    info = skipdit("info", "--preset", output / "B.yaml", "--json").json
    assert (info["macs"], info["parameters"]) == tuple(done.json["points"][1][key] for key in ("macs", "parameters"))
    changed = skipdit(*run[:-1], 6)
    assert changed.code == 2 and "Got other settings of the point S" in changed.stderr


def test_a_conditioning_is_an_axis_with_costs_of_its_own(skipdit, grid, tmp_path):
    text = GRID.partition("sweep:")[0] + "sweep: {conditioning: [adaln, adaln-zero, in-context]}"
    planned = skipdit("train", "--sweep", grid(text), "--dry-run", "--json")
    assert planned.code == 0, planned.stderr
    for point in planned.json["points"]:
        name = point["name"].removeprefix("conditioning-")
        info = skipdit("info", "--preset", tmp_path / "grid.yaml", "--conditioning", name, "--json").json
        assert (point["macs"], point["parameters"]) == (info["macs"], info["parameters"])
    assert len({point["macs"] for point in planned.json["points"]}) == 3


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("sweep: {patch_size: [4, 3]}", "patch_size 3 but expected a divisor of its sample_size 8"),
        ("sweep: {num_attention_heads: [2, 0]}", "num_attention_heads 0 but expected at least 1"),
        ("sweep: {dry-run: [true, false]}", "'dry-run', but it is of the whole sweep"),
        ("sweep: {resume-from-checkpoint: [auto, latest]}", "it is of the whole sweep"),
    ],
)
def test_a_point_that_cannot_be_trained_is_refused_before_the_first(skipdit, grid, tmp_path, sweep, says):
    ended = skipdit("train", "--sweep", grid(GRID.partition("sweep:")[0] + sweep), "-o", tmp_path / "out")
    assert ended.code == 2 and says in ended.stderr and not (tmp_path / "out").exists()


def test_a_failed_point_does_not_stop_the_others(skipdit, grid, tmp_path):
    text = GRID.replace("S: {num_layers: 2}", "S: {num_layers: 2, learning-rate: 1e30, max-grad-norm: 0}")
    ended = skipdit("train", "--sweep", grid(text), "-o", tmp_path / "grid", "--json")
    assert ended.code == 1 and "1 point of 2 failed (S)" in ended.stderr
    assert [point["state"] for point in ended.json["points"]] == ["begun", "finished"]


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("sweep: 3", "but expected a mapping"),
        ("sweep: {patch_size: []}", "expected a list of values, or variants by name"),
        ("sweep: {patch_size: [1, 1]}", "holds a value twice"),
        ("sweep: {output: [a, b]}", "says where to write"),
        ("sweep: {learning-rat: [1, 2]}", "Did you mean 'learning-rate'"),
        ("sweep: {a: {x: {patch_size: 2}}, patch_size: [1, 2]}", "sets 'patch_size' twice"),
        ("sweep: {a: {x/1: {patch_size: 2}, 'x:1': {patch_size: 4}}}", "two points of the name 'x_1'"),
        ("sweep: {num_layerz: [2, 3]}", "sweeps 'num_layerz', which is neither .* Did you mean 'num_layers'"),
        ("sweep: {json: [true, false]}", "sweeps 'json', which is neither a flag"),
        ("sweep: {conditioning: [adaln, adaln-zer]}", "Did you mean 'adaln-zero'"),
        (f"sweep: {{a: {{{'x' * 300}: {{patch_size: 2}}}}}}", "of 300 characters but expected at most 100"),
    ],
)
def test_a_wrong_sweep_is_refused(grid, sweep, says):
    path = grid(GRID.partition("sweep:")[0] + sweep)
    flags = {"train": {"seed", "learning-rate", "data", "skip-branches", "train-batch-size", "max-train-steps"}}
    flags["train"] |= {"checkpointing-steps"}
    with pytest.raises(UsageError, match=says):
        points_of(load_preset(str(path), flags))
