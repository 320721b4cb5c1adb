"""``skipdit sample`` into a folder: each picture is there when it is made, and an interrupted run is resumed."""

import signal
import time

import numpy as np
import pytest

from skipdit_cli import media
from skipdit_cli.media import read_metadata
from tests.support.folders import tree
from tests.support.processes import start_together

QUICK = ("--steps", 2, "--guidance-scale", 1.5, "--batch-size", 2)


@pytest.fixture
def interrupted_at(monkeypatch):
    """``interrupted_at(n)`` raises KeyboardInterrupt, or another error, in place of the n-th picture; and counts."""
    original, made = media.save_picture, []

    def at(number: int | None, error: BaseException | None = None):
        made.clear()

        def save(image, path, metadata):
            if number is not None and len(made) + 1 == number:
                raise error or KeyboardInterrupt
            made.append(path.name)
            original(image, path, metadata)

        monkeypatch.setattr(media, "save_picture", save)
        return made

    return at


def test_an_interrupted_run_is_resumed_byte_for_byte(skipdit, tiny_pipeline, tmp_path, monkeypatch, interrupted_at):
    model, whole, out = tiny_pipeline(), tmp_path / "a" / "out", tmp_path / "b" / "out"
    command = ("sample", "-m", model, "--class-labels", "1,2", "--num-images", 7, *QUICK)
    assert skipdit(*command, "-o", whole, "--npz", whole / "all.npz").code == 0
    assert len(tree(whole)) == 10 and np.load(whole / "all.npz")["arr_0"].shape == (7, 8, 8, 3)

    command = (*command, "-o", out, "--npz", out / "all.npz")
    interrupted_at(4)
    ran = skipdit(*command)
    assert ran.code == 130 and "keeps what was made; the same command goes on from there" in ran.stdout
    assert {"0000.png", "0001.png", "0002.png"} == {path.name for path in out.glob("*.png")}

    ran = skipdit(*command, "--seed", 3)
    assert ran.code == 2 and "of an interrupted run with other settings (--seed)" in ran.stderr
    with monkeypatch.context() as other_release:
        other_release.setattr("skipdit_cli.version.__version__", "0.1.0")
        assert "of an interrupted run with other settings (versions)" in skipdit(*command).stderr
    assert "--num-images" in skipdit(*command, "--num-images", 5).stderr
    assert not (out / "0003.png").exists()

    made = interrupted_at(None)
    ran = skipdit(*command, "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["kept"] == 3 and len(ran.json["files"]) == 9
    assert made == ["0003.png", "0004.png", "0005.png", "0006.png", "grid.png"], "a picture was made twice"
    assert tree(out) == tree(whole)
    assert skipdit(*command).code == 2, "a finished folder is not resumed"


def test_overwrite_starts_anew_where_the_settings_differ(skipdit, tiny_pipeline, tmp_path, interrupted_at):
    out = tmp_path / "out"
    command = ("sample", "-m", tiny_pipeline(), "--num-images", 4, *QUICK, "-o", out)
    interrupted_at(2)
    assert skipdit(*command).code == 130
    made = interrupted_at(None)
    assert skipdit(*command, "--seed", 3, "--overwrite").code == 0
    assert len(made) == 5 and read_metadata(out / "0000.png")["settings"]["seed"] == 3
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


def test_a_full_disk_keeps_what_was_made_and_a_run_without_a_picture_leaves_nothing(
    skipdit, tiny_pipeline, tmp_path, interrupted_at
):
    out = tmp_path / "out"
    command = ("sample", "-m", tiny_pipeline(), "--num-images", 4, *QUICK, "-o", out)
    interrupted_at(1, OSError(28, "No space left on device"))
    ran = skipdit(*command)
    assert ran.code == 1 and "No space left on device; nothing was kept" in ran.stderr and not out.exists()
    interrupted_at(3, OSError(28, "No space left on device"))
    ran = skipdit(*command)
    assert ran.code == 1 and "what was made is kept, and the same command goes on" in ran.stderr
    made = interrupted_at(None)
    assert skipdit(*command).code == 0 and len(made) == 3


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "fewer", "float", "link", "huge"])
def test_a_run_whose_array_is_lost_or_damaged_makes_its_samples_anew(
    skipdit, tiny_pipeline, tmp_path, interrupted_at, damage
):
    model, whole, out = tiny_pipeline(), tmp_path / "a" / "out", tmp_path / "b" / "out"
    command = ("sample", "-m", model, "--class-labels", "1,2", "--num-images", 3, *QUICK)
    assert skipdit(*command, "-o", whole, "--npz", whole / "all.npz").code == 0
    command = (*command, "-o", out, "--npz", out / "all.npz")
    interrupted_at(3)
    assert skipdit(*command).code == 130
    array, others = out / "partial.npy", tmp_path / "others.npy"
    samples = array.read_bytes()
    array.unlink()
    if damage == "link":
        others.write_bytes(samples)
        array.symlink_to(others)
    elif damage == "huge":
        with array.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (3, 1 << 40, 1 << 30, 3)}
            np.lib.format.write_array_header_1_0(file, header)
    elif damage in ("empty", "cut"):
        array.write_bytes(samples[: {"empty": 0, "cut": -9}[damage]])
    elif damage != "missing":
        np.save(array, np.zeros((2 if damage == "fewer" else 3, 8, 8, 3), float if damage == "float" else np.uint8))
    interrupted_at(None)
    ran = skipdit(*command, "--json")
    assert ran.code == 0 and ran.json["kept"] == 0, ran.stderr
    assert tree(out) == tree(whole)
    assert damage != "link" or others.read_bytes() == samples, "a file outside of the folder was written"


def test_a_link_or_a_folder_in_place_of_a_picture_is_not_one(skipdit, tiny_pipeline, tmp_path, interrupted_at):
    out, other = tmp_path / "out", tmp_path / "other.png"
    command = ("sample", "-m", tiny_pipeline(), "--num-images", 4, *QUICK, "-o", out)
    interrupted_at(3)
    assert skipdit(*command).code == 130
    (out / "0001.png").rename(other)
    (out / "0001.png").symlink_to(other)
    other.write_bytes(b"of others")
    made = interrupted_at(None)
    assert skipdit(*command).code == 0 and made == ["0001.png", "0002.png", "0003.png", "grid.png"]
    assert other.read_bytes() == b"of others" and not (out / "0001.png").is_symlink()


def test_a_killed_run_is_resumed(skipdit, tiny_pipeline, tmp_path):
    model, out, whole = tiny_pipeline(), tmp_path / "out", tmp_path / "whole" / "out"
    command = ("sample", "-m", model, "--num-images", 40, "--steps", 4, "--batch-size", 1)
    process = start_together(1, *command, "-o", out, folder=tmp_path / "logs")[0]
    while not (out / "0001.png").exists() and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run ended before it was killed"
    ran = skipdit(*command, "-o", out, "--json")
    assert ran.code == 0 and ran.json["kept"] >= 1, ran.stderr
    assert skipdit(*command, "-o", whole).code == 0
    assert tree(out) == tree(whole)


def test_an_interrupted_run_of_videos_is_resumed(skipdit, latte_pipeline, tmp_path, interrupted_at):
    model, whole, out = latte_pipeline(), tmp_path / "a", tmp_path / "b"
    command = ("sample", "-m", model, "--num-images", 2, "--steps", 2, "--batch-size", 1)
    assert skipdit(*command, "-o", whole).code == 0
    interrupted_at(2)
    assert skipdit(*command, "-o", out).code == 130
    made = interrupted_at(None)
    assert skipdit(*command, "-o", out).code == 0 and made == ["0001.png", "grid.png"]
    assert tree(out) == tree(whole)


def test_the_array_of_a_folder_is_the_file_that_numpy_writes(tmp_path):
    samples = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    array = media.ArrayFile(tmp_path / "a.npy", 5)
    for start in (2, 0, 4):
        array.write(start, samples[start : start + 2])
    array.copy_to_npz(tmp_path / "a.npz")
    media.save_npz(samples, tmp_path / "b.npz")
    assert (array.read() == samples).all() and (array.read(2) == samples[:2]).all()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_formats_keep_the_record(skipdit, tiny_pipeline, tmp_path, suffix):
    model, one, out = tiny_pipeline(), tmp_path / f"a.{suffix}", tmp_path / "out"
    assert skipdit("sample", "-m", model, "--class-labels", 3, *QUICK, "--seed", 5, "-o", one).code == 0
    settings = read_metadata(one)["settings"]
    assert settings["class_labels"] == "3" and settings["seed"] == 5
    assert skipdit("sample", "--from", one, "-o", tmp_path / f"b.{suffix}").code == 0
    assert one.read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert skipdit("sample", "-m", model, *QUICK, "--format", suffix, "-o", out).code == 0
    assert sorted(path.name for path in out.glob("[!.]*")) == [f"0000.{suffix}", f"grid.{suffix}"]


def test_a_format_is_for_a_folder(skipdit, tiny_pipeline, tmp_path):
    ran = skipdit("sample", "-m", tiny_pipeline(), "--format", "jpg", "-o", tmp_path / "a.png")
    assert ran.code == 2 and "whose suffix says it" in ran.stderr
    ran = skipdit("sample", "-m", tiny_pipeline("other"), "--format", "bmp")
    assert ran.code == 2 and "expected png, jpg, jpeg or webp" in ran.stderr
