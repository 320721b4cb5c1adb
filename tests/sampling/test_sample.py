"""``skipdit sample`` through the command: pictures, their history, replay, the evaluator's file."""

import json

import numpy as np
import pytest
from PIL import Image

from skipdit_cli.media import read_metadata


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def model(tiny_pipeline):
    return tiny_pipeline()


QUICK = ("--steps", 4, "--guidance-scale", 1.5)


def test_one_picture_and_its_history(skipdit, model, tmp_path):
    out = tmp_path / "a.png"
    ran = skipdit("sample", "-m", model, "--class-labels", "3,4", *QUICK, "--cache-layers", 1, "--seed", 5, "-o", out)
    assert ran.code == 0, ran.stderr
    assert "2 of 4 steps reused, 16 of 24 blocks run" in ran.stdout
    settings = read_metadata(out)["settings"]
    assert settings["class_labels"] == "3,4" and settings["seed"] == 5 and settings["cache_layers"] == "1"
    assert settings["dtype"] == "float32" and settings["batch_size"] == 8  # settled, for whoever replays it elsewhere
    assert list(tmp_path.glob("*.tmp*")) == []


def test_replay_makes_the_same_file(skipdit, model, tmp_path):
    first, second, changed = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    skipdit(
        "sample", "-m", model, "--class-labels", "1,2", "--num-images", 3, *QUICK, "--cache-layers", 2, "-o", first
    )
    assert skipdit("sample", "--from", first, "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()
    assert skipdit("sample", "--from", first, "--seed", 1, "-o", changed).code == 0
    assert read_metadata(changed)["settings"]["cache_layers"] == "2"
    assert (pixels(first) != pixels(changed)).any()


def test_a_folder_holds_each_picture_and_the_grid(skipdit, model, tmp_path):
    out, npz = tmp_path / "out", tmp_path / "samples.npz"
    ran = skipdit("sample", "-m", model, "--class-labels", "1,2", "--num-images", 3, *QUICK, "-o", out, "--npz", npz)
    assert ran.code == 0, ran.stderr
    assert sorted(path.name for path in out.glob("[!.]*")) == ["0000.png", "0001.png", "0002.png", "grid.png"]
    array = np.load(npz)["arr_0"]
    assert array.dtype == np.uint8 and array.shape == (3, 8, 8, 3)
    assert (pixels(out / "0001.png") == array[1]).all()
    own = read_metadata(out / "0002.png")["settings"]
    assert own["class_labels"] == "1" and own["seed"] == 2
    assert skipdit("sample", "--from", out / "0002.png", "-o", tmp_path / "again").code == 0
    assert abs(pixels(tmp_path / "again" / "0000.png").astype(int) - array[2]).max() <= 1


def test_json_is_one_object(skipdit, model, tmp_path):
    ran = skipdit(
        "sample", "-m", model, *QUICK, "--cache-layers", 1, "--full-steps", "0,2", "-o", tmp_path / "a", "--json"
    )
    assert ran.code == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["schema"] == 1 and result["cache"]["reused_steps"] == 2
    assert [path for path in result["files"]] and not result["skip_branches"]


def test_names_of_classes(skipdit, tiny_pipeline, tmp_path):
    folder = tiny_pipeline()
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): f"thing {i}, object {i}" for i in range(10)}
    (folder / "model_index.json").write_text(json.dumps(index))
    out = tmp_path / "a.png"
    assert skipdit("sample", "-m", folder, "--class-labels", "thing 3,object 5,7", *QUICK, "-o", out).code == 0
    assert read_metadata(out)["settings"]["class_labels"] == "3,5,7"


def test_latents_without_a_vae_are_shown_and_said(skipdit, tiny_pipeline, tmp_path):
    folder = tiny_pipeline(in_channels=4, out_channels=8)
    ran = skipdit("sample", "-m", folder, *QUICK, "-o", tmp_path / "a.png")
    assert ran.code == 0 and "no VAE" in ran.stderr


def test_a_cache_that_never_reuses_is_said(skipdit, model, tmp_path):
    ran = skipdit("sample", "-m", model, *QUICK, "--cache-layers", 1, "--cache-interval", 9, "-o", tmp_path / "a.png")
    assert "3 of 4 steps reused" in ran.stdout and "Warning" not in ran.stderr
    ran = skipdit("sample", "-m", model, *QUICK, "--cache-layers", 1, "--cache-interval", 1, "-o", tmp_path / "b.png")
    assert "no step was reused" in ran.stderr


def test_a_level_is_recorded_and_replaced_by_other_cache_flags(skipdit, model, tmp_path):
    first, second, other = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    ran = skipdit("sample", "-m", model, "--class-labels", 1, "--steps", 10, "--cache", "fast", "-o", first)
    assert ran.code == 0 and "2 of 10 steps reused, 48 of 60 blocks run" in ran.stdout, ran.stderr
    assert read_metadata(first)["settings"]["cache"] == "fast"
    assert skipdit("sample", "--from", first, "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()
    assert skipdit("sample", "--from", first, "--cache-layers", 1, "-o", other).code == 0
    settings = read_metadata(other)["settings"]
    assert settings["cache_layers"] == "1" and "cache" not in settings


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--cache", "best"), "expected one of fast, balanced, quality"),
        (("--cache", "fast", "--forecast", "reuse"), "--cache together with --forecast"),
        (("--cache", "fast", "--cache-layers", "1:0"), "--cache together with --cache-layers"),
    ],
)
def test_a_level_is_refused_in_one_sentence(skipdit, model, tmp_path, flags, words):
    ran = skipdit("sample", "-m", model, "--class-labels", 1, *QUICK, *flags, "-o", tmp_path / "a.png")
    assert ran.code == 2 and words in ran.stderr and not list(tmp_path.glob("a*")), ran.stderr


def test_the_embedded_digits_can_be_read(skipdit, tmp_path):
    from skipdit_cli.bench.digit_accuracy import recognition_rate

    out, npz = tmp_path / "a.png", tmp_path / "a.npz"
    cache = ("--cache-layers", 1, "--full-steps", 13, "--forecast", "taylor2", "--cache-target", "residual")
    ran = skipdit("sample", "--preset", "digits", "--num-images", 100, *cache, "-o", out, "--npz", npz)
    assert ran.code == 0, ran.stderr
    assert "37 of 50 steps reused" in ran.stdout
    assert recognition_rate(np.load(npz)["arr_0"], [i % 10 for i in range(100)]) > 0.97
