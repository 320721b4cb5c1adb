"""Training in 1, 2 and 4 processes over gloo: the losses do not tell how many, and runs go on with other numbers."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from skipdit_cli.training.distributed.parallelism import computing_in
from skipdit_cli.training.distributed.sharded_checkpoint import INDEX
from skipdit_cli.training.distributed.sharding import shards_on_cpu
from skipdit_cli.training.distributed.zero import ZeroPartitioned
from skipdit_cli.training.run import state
from tests.support.processes import Ended, free_port, printed, run_together, start_together
from tests.support.tiny_pipelines import write_pipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": 2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
"""What ``accelerate launch --use_fsdp --fsdp_version 2`` sets."""
SHARED = ("--data", "digits", "--learning-rate", 1e-3, "--random-flip")
"""Flags of all runs, whose optimizer steps have 8 samples."""
DATA = {1: ("--train-batch-size", 8), 4: ("--train-batch-size", 2)}
ACCUMULATED = ("--train-batch-size", 2, "--gradient-accumulation-steps", 2)
TWO = ("--train", "all", "--gradient-checkpointing", "--max-train-steps", 4, "--checkpointing-steps", 3)
TWO += ("--validation-steps", 3, *ACCUMULATED)


@dataclass(frozen=True)
class Runs:
    """Starts runs of one model below one folder."""

    folder: Path
    model: Path

    def run(self, name: str, processes: int, *flags, env: dict | None = None) -> list[Ended]:
        """Run ``finetune`` into the folder of that name."""
        if env is FSDP and not shards_on_cpu():
            pytest.skip("FSDP on a CPU is refused before torch 2.13, whose gradients are wrong there")
        command = ("finetune", "-m", self.model, *SHARED, "-o", self.folder / name, *flags)
        return run_together(processes, *command, folder=self.folder / "logs", env=env)

    def trained(self, name: str, processes: int, *flags, env: dict | None = None) -> Path:
        """Run ``finetune`` and return its folder."""
        for ended in self.run(name, processes, *flags, env=env):
            assert ended.code == 0, ended.stderr
        return self.folder / name

    def resumed(self, name: str, former: Path, step: int, processes: int, *flags, env: dict | None = None) -> Path:
        """Take the next step after a checkpoint of a run of stage 2, in a copy of its folder."""
        shutil.copytree(former, self.folder / name)
        more = ("--max-train-steps", step + 1, "--resume-from-checkpoint", self.folder / name / f"checkpoint-{step}")
        return self.trained(name, processes, "--train", "all", *flags, *more, env=env)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_dit) -> Runs:
    from skipdit_cli.models import load_pipeline, save_branches
    from skipdit_cli.skip import add_skip_branches

    folder = tmp_path_factory.mktemp("distributed")
    model = write_pipeline(folder / "model", tiny_dit(num_layers=4))
    save_branches(add_skip_branches(load_pipeline(model).transformer), model)
    return Runs(folder, model)


@pytest.fixture(scope="module")
def alone(runs) -> dict[str, Path]:
    """Five steps of each stage in one process."""
    length = (*DATA[1], "--max-train-steps", 5, "--checkpointing-steps", 3)
    return {stage: runs.trained(f"alone-{stage}", 1, "--train", stage, *length) for stage in ("skip", "all")}


@pytest.fixture(scope="module")
def replicated(runs) -> Path:
    """Four steps of stage 2 in two processes (DDP), with two micro-batches to a step."""
    return runs.trained("replicated", 2, *TWO)


@pytest.fixture(scope="module")
def sharded(runs) -> Path:
    """Four steps of stage 2 in two processes (FSDP2), with two micro-batches to a step."""
    return runs.trained("sharded", 2, *TWO, env=FSDP)


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row[name] for row in rows for name in ("loss", "grad_norm")]


def assert_equal(run: Path, other: Path, steps: int) -> None:
    """The loss and the gradient norm of each step are those of another run."""
    assert losses(run) == pytest.approx(losses(other)[: 2 * steps], rel=1e-5, abs=1e-5)


def test_the_loss_of_two_replicas_that_accumulate_is_that_of_one_process(alone, replicated):
    assert_equal(replicated, alone["all"], 4)


def test_the_loss_of_shards_is_that_of_one_process(alone, sharded):
    assert_equal(sharded, alone["all"], 4)


def test_stage_one_in_four_processes_is_that_of_one_process(runs, alone):
    stage = ("--train", "skip", *DATA[4], "--max-train-steps", 4)
    replicas = runs.trained("replicated-skip", 4, *stage)
    assert_equal(replicas, alone["skip"], 4)
    shards = runs.trained("sharded-skip", 4, *stage, "--gradient-checkpointing", env=FSDP)
    assert_equal(shards, alone["skip"], 4)
    one, other = (load_file(run / "skip" / "diffusion_pytorch_model.safetensors") for run in (replicas, shards))
    assert one.keys() == other.keys()
    assert all(other[name].sub(tensor).abs().max() < 1e-4 for name, tensor in one.items())
    config = json.loads((replicas / "skip" / "config.json").read_text())
    assert json.loads((shards / "skip" / "config.json").read_text()) == config  # what it records of the trunk, too


def test_a_run_of_two_replicas_goes_on_in_four_processes_and_then_in_one(runs, alone, replicated):
    four = runs.resumed("two-to-four", replicated, 3, 4, *DATA[4])
    assert_equal(four, alone["all"], 4)
    assert_equal(runs.resumed("four-to-one", four, 4, 1, *DATA[1]), alone["all"], 5)


def test_a_run_of_shards_goes_on_in_more_of_them_and_then_in_one_process(runs, alone, sharded):
    four = runs.resumed("two-shards-to-four", sharded, 3, 4, *DATA[4], env=FSDP)
    assert_equal(four, alone["all"], 4)
    assert len(list((four / "checkpoint-4").glob("*.distcp"))) == 4
    one = runs.resumed("four-shards-to-one", four, 4, 1, *DATA[1])
    assert_equal(one, alone["all"], 5)
    assert (one / "checkpoint-5" / state.WEIGHTS).is_file()


def test_a_run_of_one_process_goes_on_in_shards(runs, alone):
    assert_equal(runs.resumed("one-to-shards", alone["all"], 3, 2, *ACCUMULATED, env=FSDP), alone["all"], 4)


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_a_run_in_as_many_processes_goes_on_bit_for_bit(kind, runs, request):
    whole, env = request.getfixturevalue(kind), FSDP if kind == "sharded" else None
    parts = runs.resumed(f"{kind}-parts", whole, 3, 2, *ACCUMULATED, env=env)
    assert losses(whole) == losses(parts)
    files = [path.name for path in (whole / "checkpoint-4").iterdir() if path.suffix in (".safetensors", ".distcp")]
    assert files and all(same_file(whole / "checkpoint-4" / name, parts / "checkpoint-4" / name) for name in files)


def same_file(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def test_sample_grids_of_shards_are_those_of_replicas(replicated, sharded):
    grids = [run / "samples" / "step-000003.png" for run in (replicated, sharded)]
    one, other = (np.asarray(Image.open(grid)).astype(int) for grid in grids)
    assert one.std() > 1 and abs(one - other).max() <= 1


def test_another_number_of_samples_to_a_step_is_refused(runs, sharded, skipdit):
    run = ("finetune", "-m", runs.model, *SHARED, "-o", sharded, "--train", "all", "--train-batch-size", 4)
    outcome = skipdit(*run, "--max-train-steps", 5, "--resume-from-checkpoint", "latest")
    assert outcome.code == 2 and "2 x 2 x 2 then, 4 x 1 x 1 now" in outcome.stderr.replace("\n", " ")
    assert "has to stay 8" in outcome.stderr.replace("\n", " ")


class Stranger:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_damaged_shards_are_passed_over_and_an_index_runs_no_code(runs, sharded, skipdit, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(sharded, run)
    command = ("finetune", "-m", runs.model, *SHARED, "-o", run, "--train", "all", *DATA[1], "--max-train-steps", 5)
    shutil.rmtree(run / "checkpoint-4")
    shard = run / "checkpoint-3" / "__1_0.distcp"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    outcome = skipdit(*command, "--resume-from-checkpoint", "latest")
    assert outcome.code == 2 and "Every checkpoint" in outcome.stderr
    shard.write_bytes(content)
    (run / "checkpoint-3" / INDEX).write_bytes(pickle.dumps(Stranger(tmp_path / "written")))
    record = json.loads((run / "checkpoint-3" / state.RECORD).read_text())
    del record["files"], record["sha256"]  # as a stranger's may say nothing
    (run / "checkpoint-3" / state.RECORD).write_text(json.dumps(record))
    outcome = skipdit(*command, "--resume-from-checkpoint", "latest")
    assert outcome.code == 2 and "mkdir" in outcome.stderr and not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "version 1 of FSDP"),
        (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params"),
        (FSDP | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--gradient-checkpointing"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "a.json"},
            "--deepspeed_config_file",
        ),
    ],
)
def test_a_launch_that_is_not_supported(env, says, runs, skipdit, tmp_path):
    run = ("finetune", "-m", runs.model, *SHARED, "-o", tmp_path / "run", "--max-train-steps", 1)
    outcome = skipdit(*run, env={name: str(value) for name, value in env.items()})
    assert outcome.code == 2 and says in outcome.stderr


def test_what_all_processes_would_say_is_said_once(runs):
    """A loss that diverges, a run that is resumed with other settings, and a disk without a folder of data."""
    for name, flags, sentence in (
        ("diverged", ("--learning-rate", 1e30, "--max-train-steps", 4), "The loss became"),
        ("away", ("--data", runs.folder / "away", "--max-train-steps", 4), "away"),
    ):
        main, other = runs.run(name, 2, "--train", "all", "--train-batch-size", 4, *flags)
        assert main.code == other.code != 0, main
        assert sentence in main.stderr and main.stderr.count("Error: ") == 1, main.stderr
        assert other.stderr == "", other.stderr


def test_what_one_process_alone_meets_ends_the_others_with_its_sentence(runs, tmp_path):
    """In each step, one of the processes reads the file that goes."""
    data = tmp_path / "data" / "0"
    data.mkdir(parents=True)
    for number in range(8):
        Image.effect_noise((16, 16), 50).save(data / f"{number}.png")
    flags = ("--train", "all", "--train-batch-size", 4, "--max-train-steps", 4000, "--data", data.parent)
    command = ("finetune", "-m", runs.model, *flags, "-o", tmp_path / "out")
    started = start_together(2, *command, folder=tmp_path / "logs")
    while not (tmp_path / "out" / "metrics.jsonl").exists() and started[0].is_alive():
        time.sleep(0.01)
    (data / "5.png").unlink()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [1, 1]
    main, other = (printed(tmp_path / "logs" / f"{rank}.err") for rank in (0, 1))
    assert main.count("Error: ") == 1 and "5.png" in main, main
    assert other == "" or f"Error: Process 1 of 2 failed: {other.removeprefix('Error: ')}" in main, (main, other)


def test_a_killed_process_ends_the_others(runs, tmp_path):
    flags = ("--train", "all", "--train-batch-size", 4, "--max-train-steps", 4000, "--data", "digits")
    command = ("finetune", "-m", runs.model, *flags, "-o", tmp_path / "out")
    started = start_together(2, *command, folder=tmp_path / "logs")
    while not (tmp_path / "out" / "metrics.jsonl").exists() and started[0].is_alive():
        time.sleep(0.01)
    os.kill(started[1].pid, signal.SIGKILL)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [1, -signal.SIGKILL]
    assert "Another process of this run has ended" in (tmp_path / "logs" / "0.err").read_text()


def test_zero_leaves_the_transformer_as_it_is_under_autocast():
    accelerator, model = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    ZeroPartitioned(accelerator, None).finish(computing_in("bf16", torch.device("cpu"), model), model)
    assert model(torch.ones(1, 2)).dtype == torch.float32


def test_torchrun(runs, alone):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port()]
    command = [*launcher, "-m", "skipdit_cli", "finetune", "-m", runs.model, *SHARED, "-o", runs.folder / "launched"]
    command += ["--train", "skip", "--train-batch-size", 4, "--max-train-steps", 1]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert_equal(runs.folder / "launched", alone["skip"], 1)
    assert (ended.stdout + ended.stderr).count("The pipeline is in") == 1  # rank 0 prints
