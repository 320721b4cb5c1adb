"""Videos nobody can train on, and folders that hold something else: one sentence, exit code 2, nothing written."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from skipdit_cli import media

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def ffmpeg(*arguments) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=60)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """One file of each kind, under its name."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    media.save_video(frames, folder / "good.mp4", 8, {})
    media.save_video(frames[:3], folder / "short.mp4", 8, {})
    whole = (folder / "good.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    (folder / "noise.mp4").write_bytes(rng.bytes(4000))
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", folder / "audio.mp4")
    ffmpeg("-i", folder / "good.mp4", "-frames:v", 0, "-c", "copy", folder / "none.mp4")
    ffmpeg("-i", folder / "good.mp4", "-vf", "setpts=N*N/8/TB", "-fps_mode", "vfr", folder / "variable.mp4")
    ffmpeg("-i", folder / "good.mp4", "-vf", "scale=19:13", "-c:v", "libx264rgb", folder / "odd.mp4")
    ffmpeg("-i", folder / "good.mp4", "-c:v", "mpeg4", folder / "old.avi")
    media.save_video(frames, folder / "moving.gif", 8, {})
    (folder / "good.webm").write_bytes(whole)
    Image.fromarray(frames[0]).save(folder / "picture.png")
    (folder / "picture.mp4").write_bytes((folder / "picture.png").read_bytes())
    return folder


@dataclass(frozen=True)
class Case:
    """``files``: where in the data folder which of the clips, or which text, goes; ``said``: a part of the error."""

    name: str
    files: dict
    said: str
    flags: str = ""
    model: str = "classes"


def one(clip: str) -> dict:
    return {f"0/{clip}": clip}


def listed(text: str, name: str = "metadata.jsonl") -> dict:
    return {"a.mp4": "good.mp4", name: text.encode()}


def line(**keys) -> str:
    return json.dumps({"file_name": "a.mp4", **keys})


GOOD = one("good.mp4")
BAD = [
    Case("cut off", one("cut.mp4"), "1 of 1 videos"),
    Case("empty", one("empty.mp4"), "1 of 1 videos"),
    Case("text", one("text.mp4"), "1 of 1 videos"),
    Case("noise", one("noise.mp4"), "1 of 1 videos"),
    Case("audio alone", one("audio.mp4"), "1 of 1 videos"),
    Case("no frame", one("none.mp4"), "1 of 1 videos"),
    Case("a picture with a video's name", one("picture.mp4"), "1 of 1 videos"),
    Case("too short", one("short.mp4"), "1 of 1 videos"),
    Case("too short for the stride", GOOD, "1 of 1 videos", "--frame-stride 5"),
    Case("one of fifty", {f"0/{i}.mp4": "good.mp4" if i else "cut.mp4" for i in range(50)}, "1 of 50 videos"),
    Case("wrong extension", {"0/a.doc": "good.mp4"}, "in which there is no video"),
    Case("nothing", {}, "in which there is no video"),
    Case("pictures of a class", {"0/a.png": "picture.png"}, "with pictures in it, where videos were expected"),
    Case("pictures alone", {"a.png": "picture.png"}, "with pictures in it", model="nothing"),
    Case("frames of two sizes", {"0/v/1.png": "picture.png", "0/v/2.png": b"P6 1 1 255 abc"}, "1 of 1 videos"),
    Case("too few frames", {"0/v/1.png": "picture.png"}, "1 of 1 videos"),
    Case("listed file missing", {"metadata.jsonl": line(label=1).encode()}, "1 of 1 videos"),
    Case("label missing", listed(line()), "entry 1 is not of the kind"),
    Case("label of letters", listed(line(label="dog")), "entry 1 is not of the kind"),
    Case("label of a half", listed(line(label=1.5)), "entry 1 is not of the kind"),
    Case("label without a class", listed(line(label=99)), "label 99 but the model has classes 0..9"),
    Case("label in csv", listed("file_name,label\na.mp4,x\n", "metadata.csv"), "entry 1 is not of the kind"),
    Case("no file name", listed('{"label": 1}'), "entry 1 is not of the kind"),
    Case("no JSON", listed("label: 1"), "entry 1 is not of the kind"),
    Case("list of nothing", listed(""), "lists none"),
    Case("frames than the model has", GOOD, "positions for 1..4", "--num-frames 5"),
    Case("no frames", GOOD, "--num-frames 0", "--num-frames 0"),
    Case("no stride", GOOD, "--frame-stride 0", "--frame-stride 0"),
    Case("clip", GOOD, "--clip middle", "--clip middle"),
    Case("crop", GOOD, "--crop left", "--crop left"),
    Case("fewer images than none", GOOD, "--image-frames -1", "--image-frames -1"),
    Case("random clips kept", GOOD, "keeps one latent a sample", "--clip random --cache-latents {out}/kept"),
    Case("latents of pixels", GOOD, "works on pixels", "--cache-latents {out}/kept"),
    Case("still digits", GOOD, "which are images", "--data digits"),
    Case("videos for an image model", GOOD, "in which there is no image", model="images"),
    Case("clips of an image model", GOOD, "makes images", "--num-frames 2", model="images"),
]


@pytest.fixture
def models(latte_pipeline, tiny_pipeline):
    """The folder of a model of a kind."""
    make = {
        "classes": latte_pipeline,
        "nothing": lambda: latte_pipeline(num_embeds_ada_norm=None),
        "images": tiny_pipeline,
    }
    return lambda kind: make[kind]()


def lay_out(files: dict, clips: Path, folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else (clips / content).read_bytes())
    return folder


def finetune(skipdit, model: Path, data: Path, out: Path, flags: str = ""):
    arguments = f"--train all --train-batch-size 2 --max-train-steps 1 {flags.format(out=out.parent)}".split()
    return skipdit("finetune", "-m", model, "--data", data, "-o", out, *arguments)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_refused_in_one_sentence_and_nothing_written(skipdit, models, clips, tmp_path, case):
    model, data = models(case.model), lay_out(case.files, clips, tmp_path / "data")
    ran = finetune(skipdit, model, data, tmp_path / "out", case.flags)
    last = ran.stderr.strip().splitlines()[-1]
    assert ran.code == 2 and last.startswith("Error: ") and case.said in last, ran.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "kept").exists()


def test_a_model_of_texts_needs_captions(skipdit, golden_pipeline, clips, tmp_path):
    model = shutil.copytree(golden_pipeline("latte_t2v_skip"), tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    for part, kind in {"text_encoder": "T5EncoderModel", "tokenizer": "T5Tokenizer"}.items():
        index[part] = ["transformers", kind]  # which are read after the data
        (model / part).mkdir()
    (model / "model_index.json").write_text(json.dumps(index))
    for files, said in (
        (GOOD, "has no metadata.jsonl"),
        (listed(line(label=1)), "entry 1 is not of the kind"),
        (listed(line(text=" ")), "the caption is empty"),
    ):
        data = lay_out(files, clips, tmp_path / said.replace(" ", "-"))
        ran = finetune(skipdit, model, data, tmp_path / "out")
        assert ran.code == 2 and said in ran.stderr, ran.stderr
        assert not (tmp_path / "out").exists()
    ran = finetune(skipdit, model, clips, tmp_path / "out", "--num-frames 2")
    assert ran.code == 2 and "--num-frames 2 but the model makes" in ran.stderr


def test_one_bad_video_in_a_hundred_is_named_and_left_out(skipdit, models, clips, tmp_path):
    files = {f"0/{i:03}.mp4": "good.mp4" if i else "audio.mp4" for i in range(100)}
    data = lay_out(files, clips, tmp_path / "data")
    ran = finetune(skipdit, models("classes"), data, tmp_path / "out")
    assert ran.code == 0 and "99 videos, 1 class, 1 skipped" in ran.stdout
    assert "unreadable video" in ran.stderr and "000.mp4" in ran.stderr


@pytest.mark.parametrize("clip", ["variable.mp4", "odd.mp4", "old.avi", "moving.gif", "good.webm"])
def test_unusual_but_sound(skipdit, models, clips, tmp_path, clip):
    """A variable rate, odd sizes, another container, a gif, and a container with another's name are all read."""
    ran = finetune(skipdit, models("classes"), lay_out(one(clip), clips, tmp_path / "data"), tmp_path / "out")
    assert ran.code == 0 and "1 video, 1 class, 0 skipped" in ran.stdout, ran.stderr


def test_frames_in_folders_are_videos(skipdit, models, clips, tmp_path):
    files = {f"{label}/v{i}/{frame}.png": "picture.png" for label in "01" for i in "ab" for frame in range(5)}
    ran = finetune(skipdit, models("classes"), lay_out(files, clips, tmp_path / "data"), tmp_path / "out")
    assert ran.code == 0 and "4 videos, 2 classes, 0 skipped" in ran.stdout, ran.stderr


def test_pictures_beside_videos_are_no_frames(skipdit, models, clips, tmp_path):
    files = {"0/good.mp4": "good.mp4", "0/good.png": "picture.png"}
    ran = finetune(skipdit, models("classes"), lay_out(files, clips, tmp_path / "data"), tmp_path / "out")
    assert ran.code == 0 and "1 video, 1 class, 0 skipped" in ran.stdout, ran.stderr
