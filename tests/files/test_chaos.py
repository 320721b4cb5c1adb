"""Runs that are killed (SIGKILL) at random moments, saving included, lose nothing: what they leave in the end equals
that of an undisturbed run, bit for bit.

``pytest tests/files/test_chaos.py --chaos 50`` kills each kind of run 50 times; without the flag, twice.
"""

import json

import numpy as np
import yaml
from diffusers import DDIMScheduler, DiTPipeline
from PIL import Image

from skipdit_cli.files import MARKER
from skipdit_cli.models import save_pipeline
from skipdit_cli.training.encoded.tensor_shard import open_shard
from skipdit_cli.training.run.state import METRICS, RECORD, Checkpoints, check_whole
from tests.support.folders import CALIBRATE, tree
from tests.support.kills import survive
from tests.support.pipeline_parts import tiny_vae

TRAIN = ("--train", "all", "--train-batch-size", 2, "--max-train-steps", 6, "--checkpointing-steps", 2)
TRAIN += ("--checkpoints-total-limit", 2, "--resume-from-checkpoint", "auto")
SAMPLE = ("--class-labels", "0,1,2", "--num-images", 12, "--batch-size", 2, "--steps", 4)


def of_training(output) -> dict:
    """What a training leaves, but for the manifest, and for durations."""
    held = {
        name: content for name, content in tree(output).items() if not name.endswith((MARKER, RECORD, "README.md"))
    }
    rows = [json.loads(line) for line in held.pop(METRICS).splitlines()]
    return held | {METRICS: [(row["step"], row["loss"], row["grad_norm"]) for row in rows]}


def of_calibration(plan) -> dict:
    """The plan without its date."""
    held = yaml.safe_load(plan.read_text())
    held["made_for"].pop("date")
    return held


def of_preparation(folder) -> dict:
    """The tensors of all entries, whichever shards hold them; temporary files stay until they are old."""
    entries = {}
    for path in sorted(path for path in folder.glob("*.safetensors") if ".tmp-" not in path.name):
        shard = open_shard(path)
        for position, name in enumerate(shard.names):
            entries[name] = {key: tensor.tolist() for key, tensor in shard.read(position).items()}
    return entries


def checkpoints_are_whole(output) -> None:
    for step in Checkpoints(output).steps():
        check_whole(Checkpoints(output).folder(step))


def test_a_killed_training_loses_nothing(converted, tmp_path, chaos):
    output = tmp_path / "place" / "out"
    for number in range(6):
        picture = Image.new("L", (8, 8), 40 * number)
        (tmp_path / "data" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "data" / str(number % 3) / f"{number}.png")
    words = ("finetune", "-m", converted(), "--data", tmp_path / "data", *TRAIN, "-o", output)
    print(survive(words, output, chaos or 2, 0, of_training, checkpoints_are_whole))


def test_a_killed_calibration_finds_the_same_plan(converted, tmp_path, chaos):
    output = tmp_path / "place" / "plan.yaml"
    words = ("calibrate", "-m", converted(), *CALIBRATE, "--cost", 2, "-o", output)
    print(survive(words, output, chaos or 1, 0, of_calibration, saves=2))


def test_killed_samples_are_neither_lost_nor_made_twice(converted, tmp_path, chaos):
    output = tmp_path / "place" / "out"
    words = ("sample", "-m", converted(), *SAMPLE, "--npz", output / "all.npz", "-o", output)
    print(survive(words, output, chaos or 2, 1, tree))


def test_a_killed_preparation_encodes_the_same_shards(tiny_dit, tmp_path, chaos):
    output, rng = tmp_path / "place" / "kept", np.random.default_rng(0)
    model = DiTPipeline(tiny_dit(num_layers=2, in_channels=4, out_channels=8), tiny_vae(), DDIMScheduler())
    save_pipeline(model, tmp_path / "model")
    for number in range(24):
        (tmp_path / "data" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        picture.save(tmp_path / "data" / str(number % 3) / f"{number}.png")
    words = ("prepare", tmp_path / "model", "--data", tmp_path / "data", "--cache-latents", output)
    print(survive(words, output, chaos or 2, 3, of_preparation))
