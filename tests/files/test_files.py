"""What is written, replaced and refused: one rule for every command; files of others, links, kills and failures."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import filter_repo_objects
from PIL import Image

from skipdit_cli import files
from skipdit_cli.cards.publish import push
from skipdit_cli.errors import UsageError
from skipdit_cli.files import CONVERT, MARKER, replace_folder
from skipdit_cli.training.run import state
from tests.support.folders import SHORT, TRAIN, tree
from tests.support.tiny_transformers import tiny

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def dead_pid() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


@pytest.fixture
def converted(tiny_pipeline, skipdit, tmp_path):
    """The folder of a converted model."""
    assert skipdit("convert", tiny_pipeline(), "-o", tmp_path / "converted", "--no-verify").code == 0
    return tmp_path / "converted"


@pytest.fixture
def commands(converted, tiny_pipeline):
    """Every command that writes a folder, as ``(command, flags)`` by the kind of its folder."""
    return {
        "convert": ("convert", converted.parent / "tiny", "--no-verify"),
        "train": ("finetune", "-m", converted, *TRAIN),
        "bench": ("bench", "-m", converted, *SHORT, "--rounds", 1, "--warmup", 0, "--cache-interval", 2, "--no-exact"),
        "sample": ("sample", "-m", converted, "--class-labels", "0,1", *SHORT),
    }


KINDS = ("convert", "train", "bench", "sample")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_replaced_but_for_what_somebody_else_put_into_it(kind, commands, skipdit, tmp_path):
    run, output = (*commands[kind], "-o", tmp_path / "out"), tmp_path / "out"
    output.mkdir()  # an empty folder is as good as none
    assert skipdit(*run).code == 0
    marker = files.read_marker(output)
    assert marker["kind"] == kind and marker["state"] == "finished" and "writer" not in marker
    assert not list(files.unlisted_files(output)) and skipdit(*run).code == 2

    deep = next(path for path in sorted(output.rglob("*")) if path.is_file() and path.name != MARKER).parent
    nested = next((path for path in sorted(output.iterdir()) if path.is_dir()), deep)
    for put in ("notice.txt", "license-of-mine", "checkpoint-best.pt", ".hidden"):
        (output / put).write_text("mine")
        before = tree(tmp_path)
        refused = skipdit(*run, "--overwrite")
        assert refused.code == 2 and f"holds {put}, which skipdit did not write" in refused.stderr, refused.stderr
        assert tree(tmp_path) == before
        (output / put).unlink()
    mine = nested / "mine"
    for make, unmake in ((mine.mkdir, mine.rmdir), (partial(mine.symlink_to, tmp_path), mine.unlink)):
        make()
        before = tree(tmp_path)
        refused = skipdit(*run, "--overwrite")
        assert refused.code == 2 and str(mine.relative_to(output)) in refused.stderr, refused.stderr
        assert tree(tmp_path) == before
        unmake()
    replaced = skipdit(*run, "--overwrite")
    assert replaced.code == 0, replaced.stderr
    assert not [path.name for path in tmp_path.iterdir() if "skipdit-old" in path.name or ".tmp-" in path.name]


def test_what_another_command_or_nobody_marked_is_not_replaced(commands, converted, skipdit, tmp_path):
    strange = tmp_path / "strange"
    (strange / "videos").mkdir(parents=True)
    for name in ("config.json", "bench.json", "report.html", "model_index.json", "metrics.jsonl", "0000.png"):
        (strange / name).write_text("{}")
    (tmp_path / "link").symlink_to(strange)
    before = tree(tmp_path)
    for run in (*commands.values(), ("demo",)):
        for output in (strange, tmp_path / "link", tmp_path / "converted" / ".." / "strange"):
            refused = skipdit(*run, "-o", output, "--overwrite")
            assert refused.code == 2 and f"and no {MARKER}" in refused.stderr, refused.stderr
    assert tree(tmp_path) == before
    assert skipdit(*commands["train"], "-o", tmp_path / "run").code == 0
    (tmp_path / "to-run").symlink_to(tmp_path / "run")
    before = tree(tmp_path)
    for output in ("run", "to-run"):
        refused = skipdit(*commands["convert"], "-o", tmp_path / output, "--overwrite")
        assert refused.code == 2 and "written by 'skipdit train'" in refused.stderr
    assert tree(tmp_path) == before


def test_a_strangers_marker_reaches_nothing_outside(commands, skipdit, tmp_path):
    output, keep = tmp_path / "out", tmp_path / "keep.txt"
    keep.write_text("mine")
    assert skipdit(*commands["sample"], "-o", output).code == 0
    marker = json.loads((output / MARKER).read_text())
    marker["files"] += ["../keep.txt", str(keep), "link/", "link/keep.txt"]
    (output / MARKER).write_text(json.dumps(marker))
    (output / "link").symlink_to(tmp_path)
    assert skipdit(*commands["sample"], "-o", output, "--overwrite").code == 2
    (output / "link").unlink()
    assert skipdit(*commands["sample"], "-o", output, "--overwrite").code == 0 and keep.read_text() == "mine"
    (output / MARKER).write_text("[" * 100_000)
    assert "holds" in skipdit(*commands["sample"], "-o", output, "--overwrite").stderr


def test_old_pictures_do_not_stay_among_the_new(commands, skipdit, tmp_path):
    output = tmp_path / "out"
    many = ("sample", *commands["sample"][1:], "--num-images", 4, "-o", output, "--npz", output / "all.npz")
    assert skipdit(*many).code == 0 and (output / "0003.png").is_file() and (output / "all.npz").is_file()
    assert skipdit(*commands["sample"], "-o", output, "--overwrite").code == 0
    assert sorted(path.name for path in output.iterdir()) == [MARKER, "0000.png", "0001.png", "grid.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_not_replaced(kind, commands, skipdit, tmp_path):
    """Data, model, image, prompts, preset: in the output, the output itself, through a link or ``..``."""
    output = tmp_path / "out"
    assert skipdit(*commands[kind], "-o", output).code == 0
    inside = next(path for path in sorted(output.rglob("*")) if path.is_file() and path.name != MARKER)
    (tmp_path / "link").symlink_to(inside)
    (tmp_path / "to-out").symlink_to(output)
    (output / "p.yaml").write_text("about: mine")
    run = (*commands[kind], "-o", output, "--overwrite")
    reads = [("--preset", output / "p.yaml")]
    if kind == "train":
        reads += [("--data", output), ("--data", tmp_path / "to-out"), ("--cache-latents", output)]
        reads += [("--data", tmp_path / "tiny" / ".." / "out")]
    if kind in ("sample", "bench"):
        reads += [("--image", inside), ("--image", tmp_path / "link"), ("--lora", output), ("--lora", inside)]
    if kind == "convert":
        reads += [("--vae", output), ("--text-from", output / "skip")]
    before = tree(tmp_path)
    for flags in reads:
        refused = skipdit(*run, *flags)
        assert refused.code == 2 and refused.stderr.count("\n") == 1, (flags, refused.stderr)
        assert "itself" in refused.stderr or "lies in" in refused.stderr or "preset" in refused.stderr.lower()
    assert tree(tmp_path) == before


def test_data_in_the_output_and_the_output_in_data(converted, skipdit, tmp_path):
    data = tmp_path / "data"
    for label in "01":
        (data / label).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / label / "a.png")
    run = ("finetune", "-m", converted, *TRAIN)
    ran = skipdit(*run, "-o", tmp_path / "run", "--validation-steps", 1)
    assert ran.code == 0, ran.stderr
    before = tree(tmp_path)
    for given, output in ((tmp_path / "run" / "samples", tmp_path / "run"), (data, data / "run"), (data, tmp_path)):
        refused = skipdit(*run, "--data", given, "-o", output, "--overwrite")
        said = "lies in" if output == tmp_path else "--data"  # the model lies there, too
        assert refused.code == 2 and said in refused.stderr, refused.stderr
    assert tree(tmp_path) == before


def test_nan_and_early_failures_do_not_cost_the_old_run(converted, skipdit, tmp_path, monkeypatch):
    output = tmp_path / "run"
    run = ("finetune", "-m", converted, *TRAIN, "-o", output)
    assert skipdit(*run, "--validation-steps", 1).code == 0
    before = tree(output)
    nan = (*run, "--overwrite", "--train", "all", "--learning-rate", 1e30, "--max-train-steps", 20)
    ended = skipdit(*nan)
    assert ended.code == 1 and "again as it was before" in ended.stderr, ended.stderr
    assert tree(output) == before and [path.name for path in tmp_path.glob("run*")] == ["run"]
    ended = skipdit(*nan, "--checkpointing-steps", 1)
    kept = [path for path in tmp_path.glob("run.failed-*")]
    assert ended.code == 1 and tree(output) == before and len(kept) == 1 and str(kept[0]) in ended.stderr
    assert state.Checkpoints(kept[0]).steps() and not list(files.unlisted_files(kept[0]))

    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("skipdit_cli.training.run.loop.Trainer.optimize", stop)
    assert skipdit(*run, "--overwrite").code == 130 and tree(output) == before


def test_a_demo_that_fails_gives_the_former_back(skipdit, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    with files.work_in(output, files.DEMO), files.install(output) as part:
        (part / "report.html").write_text("former")
    before = tree(output)

    def fail(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skipdit_cli.commands.demo._bench", fail)
    monkeypatch.setattr("skipdit_cli.commands.demo._train", lambda *given: [])
    ended = skipdit("demo", "-o", output, "--overwrite")
    assert ended.code == 1 and "disk is full" in ended.stderr and tree(output) == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("stage", ["between", "begun", "stands"])
def test_after_a_kill_the_former_folder_is_put_back_or_swept(stage, skipdit, commands, tmp_path):
    """A kill is laid out as it leaves the disk: before the new folder took the place, while it grew there, after."""
    run, output, pid = (*commands["sample"], "-o", tmp_path / "out"), tmp_path / "out", dead_pid()
    assert skipdit(*run).code == 0
    before, former = tree(output), tmp_path / f"out.skipdit-old-{pid}"
    if stage == "stands":
        shutil.copytree(output, former)
    else:
        output.rename(former)
    temporary = tmp_path / f"out.tmp-{pid}"
    for folder in [temporary, *([output] if stage == "begun" else [])]:
        folder.mkdir()
        files.marker.write_marker(folder, "sample", ["0000.png"], files.marker.BEGUN, written=True)
        marker = json.loads((folder / MARKER).read_text())
        marker["writer"] |= {"pid": pid, "started": 1.0}
        (folder / MARKER).write_text(json.dumps(marker))
        (folder / "0000.png").write_bytes(b"half")
    ended = skipdit(*run)
    assert ended.code == 2 and "exists and is not empty" in ended.stderr
    assert tree(output) == before and [path.name for path in tmp_path.glob("out*")] == ["out"]
    assert ("as it was before a run that was killed" in ended.stdout) == (stage != "stands")


def test_a_folder_that_a_living_process_writes_is_left_alone(skipdit, commands, tmp_path):
    output = tmp_path / "out"
    with files.work_in(output, files.SAMPLE):
        before = tree(tmp_path)
        ended = skipdit(*commands["sample"], "-o", output, "--overwrite")
        assert ended.code == 2 and "being written by another process" in ended.stderr and tree(tmp_path) == before


def test_the_manifest_of_a_run_is_right_at_each_moment(converted, skipdit, tmp_path, monkeypatch):
    """At every step, in the midst of saving, and after going on from an earlier checkpoint."""
    output, seen = tmp_path / "run", []
    save = state.save_file

    def looked_at(tensors, path):
        save(tensors, path)
        seen.append(list(files.unlisted_files(output)))

    monkeypatch.setattr(state, "save_file", looked_at)
    run = ("finetune", "-m", converted, *TRAIN, "-o", output, "--checkpointing-steps", 1, "--validation-steps", 1)
    assert skipdit(*run, "--max-train-steps", 3, "--checkpoints-total-limit", 2).code == 0
    again = skipdit(*run, "--max-train-steps", 4, "--resume-from-checkpoint", output / "checkpoint-2")
    assert again.code == 0, again.stderr
    assert len(seen) == 2 * (3 + 2) and not any(seen) and not list(files.unlisted_files(output))
    assert (output / "set-aside-1" / "checkpoint-3").is_dir()
    (output / "checkpoint-2" / "mine.txt").write_text("mine")
    assert "holds checkpoint-2/mine.txt" in skipdit(*run, "--overwrite").stderr
    more = (*run, "--max-train-steps", 5, "--checkpoints-total-limit", 1)
    pruned = skipdit(*more, "--resume-from-checkpoint", "latest")
    assert pruned.code == 0 and [path.name for path in (output / "checkpoint-2").iterdir()] == ["mine.txt"]


def test_going_on_takes_the_place_of_nobody(converted, skipdit, tmp_path):
    output = tmp_path / "run"
    run = ("finetune", "-m", converted, *TRAIN, "-o", output)
    assert skipdit(*run).code == 0
    going_on = (*run, "--resume-from-checkpoint", output / "checkpoint-1", "--max-train-steps", 2)
    (output / "transformer" / "mine.txt").write_text("mine")
    before = tree(tmp_path)
    refused = skipdit(*going_on)
    assert refused.code == 2 and "transformer/mine.txt" in refused.stderr and tree(tmp_path) == before
    (output / "transformer" / "mine.txt").unlink()
    strange = tmp_path / "strange"
    (strange / "transformer").mkdir(parents=True)
    refused = skipdit(*going_on[:-4], "-o", strange, *going_on[-4:])
    assert refused.code == 2 and "no run is in it" in refused.stderr
    (output / MARKER).unlink()  # as 0.1.0 left it
    shutil.rmtree(output / "checkpoint-1" / MARKER, ignore_errors=True)
    assert skipdit(*going_on).code == 0 and (output / "model_index.json").is_file()


def test_a_video_replaces_only_its_own_companions(latte_pipeline, skipdit, tmp_path):
    run = ("sample", "-m", latte_pipeline(), "--class-labels", 0, *SHORT, "--overwrite", "-o", tmp_path / "a.gif")
    for name in ("a.json", "a.png"):
        (tmp_path / name).write_bytes(b"mine")
        refused = skipdit(*run)
        assert refused.code == 2 and f"{name}, which is not from skipdit" in refused.stderr
        (tmp_path / name).unlink()
    assert skipdit(*run).code == 0 and skipdit(*run).code == 0
    (tmp_path / "a.mp4").write_bytes(b"another video of that name")
    assert "which is of" in skipdit(*run).stderr
    assert (tmp_path / "a.mp4").read_bytes() == b"another video of that name"


def test_a_picture_that_is_read_is_not_written(commands, skipdit, tmp_path):
    picture = tmp_path / "a.png"
    assert skipdit(*commands["sample"], "-o", picture).code == 0
    held = picture.read_bytes()
    refused = skipdit(*commands["sample"], "--image", picture, "-o", picture, "--overwrite")
    assert refused.code == 2 and "--image" in refused.stderr and picture.read_bytes() == held
    assert skipdit("sample", "--from", picture, "-o", picture, "--overwrite").code == 0
    assert picture.read_bytes() == held
    (tmp_path / "b.png").mkdir()
    assert "is a folder" in skipdit(*commands["sample"], "-o", tmp_path / "b.png", "--overwrite").stderr


def test_the_marker_disturbs_nobody_who_reads_the_folder(converted):
    from diffusers import DiTPipeline

    assert (converted / MARKER).is_file()
    DiTPipeline.from_pretrained(converted, vae=None)


@pytest.fixture
def hub(monkeypatch):
    """Stands in for the hub: a list of the repositories that were made, and of the files that one holds."""
    asked = {"made": [], "held": []}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **named: asked["made"].append(repo_id) or repo_id)

    def upload_folder(api, folder_path, allow_patterns, **named):
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        asked["held"] = sorted(filter_repo_objects(names, allow_patterns=allow_patterns))

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return asked


def test_a_transformer_alone_is_pushed_whole_and_without_the_marker(hub, skipdit, tmp_path):
    tiny("FluxTransformer2DModel").save_pretrained(tmp_path / "alone")
    ran = skipdit("convert", tmp_path / "alone", "-o", tmp_path / "out", "--push-to-hub", "alice/flux")
    assert ran.code == 0 and hub["made"] == ["alice/flux"], ran.stderr
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != MARKER]
    assert hub["held"] == sorted(path.relative_to(tmp_path / "out").as_posix() for path in written)
    assert "config.json" in hub["held"] and "skip/config.json" in hub["held"]


def test_what_cannot_be_pushed_makes_no_repository(hub, converted):
    (converted / "model_index.json").write_text("{")
    with pytest.raises(UsageError):
        push(converted, "alice/dit")
    assert not hub["made"]


def test_replace_folder_replaces_only_when_all_went_well(tmp_path):
    target = tmp_path / "out"
    with replace_folder(target, CONVERT) as folder:
        assert folder.name == f"out.tmp-{os.getpid()}"
        (folder / "file").write_text("one")
    with pytest.raises(UsageError, match="--overwrite"), replace_folder(target, CONVERT):
        pass
    with pytest.raises(KeyboardInterrupt), replace_folder(target, CONVERT, overwrite=True) as folder:
        (folder / "file").write_text("two")
        raise KeyboardInterrupt
    assert (target / "file").read_text() == "one"
    with replace_folder(target, CONVERT, overwrite=True) as folder:
        (folder / "file").write_text("two")
    assert (target / "file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replace_folder_asks_for_room_first(tmp_path):
    with pytest.raises(UsageError, match="GB free"), replace_folder(tmp_path / "out", CONVERT, needed_bytes=10**18):
        pass
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_no_folders_above_it(tmp_path):
    with pytest.raises(RuntimeError), replace_folder(tmp_path / "new" / "deep" / "out", CONVERT):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
