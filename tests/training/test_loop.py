"""The training loop through its commands: both stages, exact resuming, and what happens when a run breaks off."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from PIL import Image
from safetensors.torch import load_file

from skipdit_cli import CachePolicy, generate
from skipdit_cli.models import load_pipeline
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler
from skipdit_cli.training import TrainingSettings
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.run import session, state
from skipdit_cli.training.run.logs import Metrics
from skipdit_cli.training.run.loop import Trainer

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
RUN = ("--data", "digits", "--train-batch-size", 4, "--learning-rate", 1e-3)


def metrics(output: Path) -> list[dict]:
    """The lines of a run without the one number that may differ."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.pop("samples_per_second") > 0 and 0 <= row.pop("data_seconds") < row.pop("seconds")
    return rows


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one, other) -> bool:
    """Bitwise equality of what a checkpoint's optimizer.pt holds."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_run(one: Path, other: Path, step: int) -> None:
    assert metrics(one) == metrics(other) and len(metrics(one)) == step
    for part in ("transformer", "skip"):
        assert files(one / part) == files(other / part)
    for name in (state.WEIGHTS, state.AVERAGE):
        assert same(load_file(one / f"checkpoint-{step}" / name), load_file(other / f"checkpoint-{step}" / name))
    first, second = (torch.load(run / f"checkpoint-{step}" / state.REST, weights_only=True) for run in (one, other))
    assert same(first, second)


@pytest.mark.parametrize("stage", ["skip", "all"])
def test_ten_steps_equal_five_resumed_for_five_more(skipdit, converted, tmp_path, stage):
    model = converted(dropout=0.1)  # dropout draws from torch's global generator, which must be restored, too
    run = ("finetune", "-m", model, "--train", stage, *RUN, "--gradient-accumulation-steps", 2, "--random-flip")
    run += ("--lr-warmup-steps", 3, "--dataloader-num-workers", 2 if stage == "skip" else 0)
    assert skipdit(*run, "-o", tmp_path / "whole", "--max-train-steps", 10).code == 0
    assert skipdit(*run, "-o", tmp_path / "parts", "--max-train-steps", 5).code == 0
    torch.manual_seed(1234)
    resumed = skipdit(
        *run, "-o", tmp_path / "parts", "--max-train-steps", 10, "--resume-from-checkpoint", "latest", "--json"
    )
    assert resumed.code == 0 and resumed.json["steps"] == 10
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 10)


def test_a_run_cut_off_after_its_checkpoint_resumes_on_the_same_schedule(skipdit, converted, tmp_path):
    run = ("finetune", "-m", converted(), *RUN, "--lr-scheduler", "cosine", "--max-train-steps", 6)
    assert skipdit(*run, "-o", tmp_path / "whole", "--checkpointing-steps", 3).code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # a killed run's half line
    (tmp_path / "cut" / "model_index.json").unlink()
    outcome = skipdit(*run, "-o", tmp_path / "cut", "--checkpointing-steps", 3, "--resume-from-checkpoint", "auto")
    assert outcome.code == 0 and "checkpoint-3 at step 3" in outcome.stdout
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 6)
    assert (tmp_path / "cut" / "model_index.json").is_file()


def test_stage_one_changes_the_branches_alone(skipdit, converted, tmp_path):
    model, output = converted(), tmp_path / "stage1"
    outcome = skipdit("finetune", "-m", model, *RUN, "-o", output, "--max-train-steps", 3, "--json")
    assert outcome.code == 0 and outcome.json["steps"] == 3 and "1,797 images, 10 classes" in outcome.stderr
    for part in ("transformer", "scheduler", "model_index.json"):
        path = model / part
        assert (
            (files(path) == files(output / part))
            if path.is_dir()
            else path.read_bytes() == (output / part).read_bytes()
        )
    before, after = (load_pipeline(folder).transformer.skip_branches.state_dict() for folder in (model, output))
    assert all(not torch.equal(before[name], after[name]) for name in before if "linears" in name)
    held = load_file(output / "checkpoint-3" / state.WEIGHTS)
    assert held and all(name.startswith("skip_branches.") for name in held)
    assert outcome.json["trained_parameters"] == sum(tensor.numel() for tensor in held.values())

    stage2 = tmp_path / "stage2"
    assert skipdit("finetune", "-m", output, *RUN, "-o", stage2, "--train", "all", "--max-train-steps", 2).code == 0
    trunks = [load_pipeline(folder, branches=False).transformer.state_dict() for folder in (model, stage2)]
    changed = [name for name in trunks[0] if not torch.equal(trunks[0][name], trunks[1][name])]
    assert len(changed) > 0.9 * len(trunks[0])


def trainer_of(model: Path, output: Path, only_branches: bool, **settings) -> Trainer:
    chosen = TrainingSettings(data="digits", output=output, train_batch_size=4, **settings)
    begun = session.begin(chosen, Demand(num_classes=10))
    return Trainer(begun, load_pipeline(model), only_branches)


def test_gradients_reach_the_branches_alone_and_from_the_first_step(converted, tmp_path):
    trainer = trainer_of(converted(), tmp_path / "run", True)
    batch = next(iter(trainer.loader()))
    trainer.accelerator.backward(trainer.forward(batch, 0).total)
    for name, parameter in trainer.transformer.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == name.startswith("skip_branches."), name
    for linear in trainer.transformer.skip_branches.linears:
        assert linear.weight.grad.abs().max() > 0 and linear.bias.grad.abs().max() > 0


def test_every_block_sees_the_same_labels(converted, tmp_path):
    trainer = trainer_of(converted(), tmp_path / "run", False, label_dropout=0.5)
    seen = []
    for block in trainer.transformer.transformer_blocks:
        table = block.norm1.emb.class_embedder.embedding_table
        table.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    batch = next(iter(trainer.loader()))
    for micro in range(3):
        trainer.forward(batch, micro)
        assert len(seen) == 7 and all(torch.equal(seen[0], other) for other in seen)  # 6 blocks, and the output
        assert bool(((seen[0] == 10) | (seen[0] == torch.tensor(batch.conditions))).all())
        seen.clear()


def test_gradient_checkpointing_changes_no_bit(skipdit, converted, tmp_path):
    run = ("finetune", "-m", converted(), *RUN, "--train", "all", "--max-train-steps", 3)
    assert skipdit(*run, "-o", tmp_path / "plain").code == 0
    assert skipdit(*run, "-o", tmp_path / "saving", "--gradient-checkpointing").code == 0
    assert_same_run(tmp_path / "plain", tmp_path / "saving", 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(skipdit, converted, tmp_path, monkeypatch, number):
    written = Metrics.write

    def write(self, row):
        written(self, row)
        if row["step"] == 3:
            for child in multiprocessing.active_children():  # as Ctrl-C does: the readers are in our process group
                os.kill(child.pid, number)
            signal.raise_signal(number)

    model, output = converted(), tmp_path / "run"
    run = ("finetune", "-m", model, *RUN, "--dataloader-num-workers", 2, "-o", output, "--max-train-steps", 5)
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "write", write)
        before = signal.getsignal(number)
        outcome = skipdit(*run)
    assert outcome.code == 130 and outcome.exception is None
    assert "stopped at step 3 of 5" in outcome.stderr and "--resume-from-checkpoint latest" in outcome.stderr
    assert signal.getsignal(number) is before
    assert (output / "checkpoint-3").is_dir() and not (output / "model_index.json").exists()
    assert skipdit(*run, "--resume-from-checkpoint", "latest").code == 0
    assert skipdit(*run[:-4], "-o", tmp_path / "whole", "--max-train-steps", 5).code == 0
    assert_same_run(output, tmp_path / "whole", 5)


def test_a_loss_that_is_no_number_stops_the_run(skipdit, converted, tmp_path):
    output = tmp_path / "run"
    run = ("finetune", "-m", converted(), "--data", "digits", "--train-batch-size", 4, "-o", output)
    outcome = skipdit(*run, "--learning-rate", 1e30, "--checkpointing-steps", 1, "--max-train-steps", 20)
    assert outcome.code == 1 and "last good checkpoint" in outcome.stderr and "Traceback" not in outcome.stderr
    last = state.Checkpoints(output).latest()
    assert last is not None and last.name in outcome.stderr
    assert all(tensor.isfinite().all() for tensor in load_file(last / state.WEIGHTS).values())
    assert not (output / "model_index.json").exists()


def test_a_full_disk_leaves_the_checkpoint_before_whole(skipdit, converted, tmp_path, monkeypatch):
    save, output = state.save_file, tmp_path / "run"

    def full(tensors, path):
        if "checkpoint-4" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(state, "save_file", full)
    run = ("finetune", "-m", converted(), *RUN, "-o", output, "--checkpointing-steps", 2, "--max-train-steps", 6)
    outcome = skipdit(*run)
    assert outcome.code == 1 and "checkpoint-2 is whole" in outcome.stderr and "No space left" in outcome.stderr
    assert sorted(path.name for path in output.glob("[!.]*")) == ["checkpoint-2", "metrics.jsonl"]
    monkeypatch.setattr(state, "save_file", save)
    assert skipdit(*run, "--resume-from-checkpoint", "latest").code == 0


def test_old_checkpoints_are_pruned(skipdit, converted, tmp_path):
    run = ("finetune", "-m", converted(), *RUN, "-o", tmp_path / "run", "--max-train-steps", 5)
    assert skipdit(*run, "--checkpointing-steps", 1, "--checkpoints-total-limit", 2).code == 0
    assert state.Checkpoints(tmp_path / "run").steps() == [4, 5]


def test_checkpoints_that_an_interruption_left_are_pruned_before_planned_ones(tmp_path):
    checkpoints = state.Checkpoints(tmp_path, keep=5, every=15)
    for step in (15, 16, 30, 45, 57, 60):
        checkpoints.save(state.TrainingState(step, {"w": torch.zeros(1)}, {}, {}, {}))
    assert checkpoints.steps() == [15, 30, 45, 57, 60]


def test_sample_grids_and_tensorboard(skipdit, converted, tmp_path):
    output = tmp_path / "run"
    run = ("finetune", "-m", converted(), *RUN, "-o", output, "--max-train-steps", 2)
    assert skipdit(*run, "--validation-steps", 2, "--report-to", "tensorboard").code == 0
    assert [path.name for path in sorted((output / "samples").iterdir())] == ["step-000000.png", "step-000002.png"]
    assert list(output.glob("logs/**/events*"))
    assert skipdit(*run[:-4], "-o", tmp_path / "without", "--max-train-steps", 2).code == 0
    assert_same_run(output, tmp_path / "without", 2)  # looking on changes nothing


def test_trackers_get_the_sample_grids_as_images(skipdit, converted, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Stub(accelerate.tracking.GeneralTracker):
        """A tracker in the place of wandb's, which would start a process."""

        name, requires_logging_directory, tracker, main_process_only = "wandb", False, None, True

        def __init__(self, run_name, **options):
            options["dir"] and calls.append(options)

        def store_init_configuration(self, values):
            calls.append(values)

        def log(self, values, step=None, **more):
            calls.append((step, values))

    calls, model = [], converted()
    run = ("finetune", "-m", model, *RUN, "--max-train-steps", 2, "--validation-steps", 2)
    assert skipdit(*run, "--report-to", "tensorboard", "-o", tmp_path / "one").code == 0
    events = EventAccumulator(str(next((tmp_path / "one" / "logs").rglob("events*")).parent)).Reload()
    assert [image.step for image in events.Images("samples")] == [0, 2]
    with Image.open(tmp_path / "one" / "samples" / "step-000002.png") as grid:
        assert Image.open(io.BytesIO(events.Images("samples")[1].encoded_image_string)).tobytes() == grid.tobytes()

    image = SimpleNamespace(Image=lambda image, caption: (image.size, caption))
    monkeypatch.setitem(sys.modules, "wandb", image)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: image)
    monkeypatch.setattr(accelerate.tracking, "is_wandb_available", lambda: True)
    monkeypatch.setitem(accelerate.accelerator.LOGGER_TYPE_TO_CLASS, "wandb", Stub)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    AcceleratorState._reset_state(True)
    assert skipdit(*run, "--report-to", "wandb", "-o", tmp_path / "two").code == 0
    assert calls[0]["dir"] == str(tmp_path / "two" / "logs") and calls[1]["train_batch_size"] == 4
    steps = [(step, *values) for step, values in calls[2:]]
    assert [step[0] for step in steps] == [0, 1, 2, 2] and steps[0][1] == steps[-1][1] == "samples"
    assert calls[-1][1]["samples"] == [(grid.size, ", ".join(f"class {label}" for label in range(8)))]


def test_a_failing_sample_grid_is_a_warning(skipdit, tiny_pipeline, tmp_path):
    model = tiny_pipeline(num_layers=2)  # too few blocks for any cache
    run = ("finetune", "-m", model, "--train", "all", *RUN, "-o", tmp_path / "run", "--max-train-steps", 1)
    outcome = skipdit(*run, "--validation-steps", 1)
    assert outcome.code == 0 and "training goes on" in outcome.stderr


def test_the_grids_of_a_run_with_a_plan_show_its_samples(skipdit, converted, tmp_path):
    model, plan, output = converted(), tmp_path / "fast.yaml", tmp_path / "run"
    pipe = load_pipeline(model)
    candidate = Candidate(Sampler("dpm++", "lu"), 6, CachePolicy((1, 0), full_steps=(0, 2, 3)))
    save_plan(Plan(candidate, make_made_for(pipe, candidate, 2.0, 3.5, {})), plan)
    run = ("finetune", "-m", model, *RUN, "--max-train-steps", 1, "--plan", plan)
    assert skipdit(*run, "--validation-steps", 1, "-o", output).code == 0
    image = Image.open(output / "samples" / "step-000000.png")
    record = json.loads(image.text["skipdit"])
    assert record["columns"] == ["full", "plan fast"] and record["plan"]["full-steps"] == "0,2,3"
    settings = {"guidance_scale": 2.0, "seed": 0, "scheduler": candidate.sampler, "num_inference_steps": 6}
    first = generate(pipe, list(range(8)), policy=candidate.policy, **settings).images[0]
    left, top = record["offset"]  # behind the titles
    assert (
        np.asarray(image)[top : top + 64, left + 65 : left + 129] == first.repeat(8, 0).repeat(8, 1)
    ).all()  # enlarged, after a gap of 1

    refused = skipdit(*run, "-o", tmp_path / "second")
    assert refused.code == 2 and "without --validation-steps" in refused.stderr and not (tmp_path / "second").exists()
    deeper = converted("deeper", num_layers=8)
    foreign = skipdit(*run[:2], deeper, *run[3:], "--validation-steps", 1, "-o", tmp_path / "third")
    assert foreign.code == 2 and "made for 6 blocks, but the model has 8" in foreign.stderr


@pytest.mark.parametrize("skips", ["--skip-branches", "--no-skip-branches"])
def test_train_from_scratch(skipdit, tmp_path, skips):
    preset, output = tmp_path / "tiny.yaml", tmp_path / "run"
    preset.write_text(
        "model: {class: DiTTransformer2DModel, config: {num_layers: 4, num_attention_heads: 2, attention_head_dim: 8,"
        " in_channels: 1, out_channels: 1, sample_size: 8, patch_size: 2, num_embeds_ada_norm: 10}}\n"
        "train: {data: digits, train-batch-size: 4, learning-rate: 1.0e-3}\n"
    )
    outcome = skipdit(
        "train", "--preset", preset, "-o", output, skips, "--max-train-steps", 4, "--json", "--no-use-ema"
    )
    assert outcome.code == 0 and outcome.json["vb"] == 0 and outcome.json["lr"] == 1e-3
    first = metrics(output)[0]
    assert 0.7 < first["mse"] < 1.3  # adaLN-zero begins by predicting 0
    assert hasattr(load_pipeline(output).transformer, "skip_branches") == (skips == "--skip-branches")
    again = tmp_path / "again"
    assert skipdit("train", "--preset", preset, "-o", again, skips, "--max-train-steps", 4, "--no-use-ema").code == 0
    assert_same_weights(output, again)


def assert_same_weights(one: Path, other: Path) -> None:
    assert files(one / "transformer") == files(other / "transformer") and metrics(one) == metrics(other)


def test_latents_through_a_vae_in_bfloat16(skipdit, tiny_pipeline, tmp_path):
    from diffusers import AutoencoderKL

    model = tiny_pipeline(in_channels=4, out_channels=8, sample_size=4)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}))
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **blocks).save_pretrained(model / "vae")
    run = ("finetune", "-m", model, "--train", "all", *RUN, "-o", tmp_path / "run", "--max-train-steps", 2)
    assert skipdit(*run, "--mixed-precision", "bf16").code == 0
    assert len(metrics(tmp_path / "run")) == 2
    assert files(tmp_path / "run" / "vae").keys() == files(model / "vae").keys()
    assert load_pipeline(tmp_path / "run").transformer.dtype == torch.float32


def test_metrics_stay_json_where_a_gradient_overflows_and_lose_no_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "grad_norm": float("inf")})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    resumed = Metrics(path, 2)
    resumed.write({"step": 3, "grad_norm": 0.5})
    resumed.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [(row["step"], row["grad_norm"]) for row in rows] == [(1, None), (2, None), (3, 0.5)]
