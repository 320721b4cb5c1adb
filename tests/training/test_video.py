"""Training on videos: clips, images beside them, latents that are kept, and the way through the commands."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from skipdit_cli import media
from skipdit_cli.errors import SkipditError
from skipdit_cli.models import load_pipeline
from skipdit_cli.training.data import moving_digits as digits
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.latent_dataset import Latents, moments
from skipdit_cli.training.data.order import Choice, draw
from skipdit_cli.training.data.pixel_dataset import Batch, Pixels, collate
from skipdit_cli.training.data.samples import SampleSet, read_samples
from skipdit_cli.training.encoded.tensor_store import Store
from skipdit_cli.training.objective.objective import Objective
from tests.support.pipeline_parts import tiny_vae

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
CLASSES = Demand(num_classes=10, video_length=4)


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in lines(output)]


def test_moving_digits_are_scans_that_bounce():
    for index in (0, 1797, 5000):
        video, scan = digits.moving_digit(index), digits.scans()[0][index % 1797]
        assert video.shape == (32, 12, 12) and (video.sum(axis=(1, 2)) == scan.sum()).all()
        places = [np.argwhere(frame).min(axis=0) for frame in video]
        assert (np.abs(np.diff(places, axis=0)) == 1).all()
        assert {tuple(place) for place in places} != {tuple(places[0])}
    assert digits.label(1797) == digits.label(0) == 0 and digits.count() == 8 * 1797


def test_clips_start_where_they_are_told_and_keep_their_stride():
    videos = read_samples("moving-digits", CLASSES, span=7)
    assert str(videos) == "14,376 videos, 10 classes, 0 skipped"
    whole = torch.from_numpy(digits.moving_digit(3)).float() / 127.5 - 1
    clips = Pixels(videos, 12, 1, num_frames=4, frame_stride=2)
    first, label, images, others = clips[Choice(3, start=0.0)]
    assert label == 3 and images is None and others == [] and torch.equal(first[0], whole[0:7:2])
    assert torch.equal(clips[Choice(3, start=0.99999)][0][0], whole[25:32:2])
    middle, mirrored = clips[Choice(3)][0], clips[Choice(3, mirrored=True)][0]
    assert torch.equal(middle[0], whole[13:20:2]) and torch.equal(mirrored, middle.flip(-1))
    beside = clips[Choice(3, images=(Choice(5, start=0.0), Choice(6)))]
    assert beside[2].shape == (2, 1, 1, 12, 12) and beside[3] == [5, 6]
    assert torch.equal(beside[2][0, 0, 0], torch.from_numpy(digits.moving_digit(5)[0]).float() / 127.5 - 1)


def test_images_beside_a_video_count_a_frame_each_and_share_its_timestep(tiny_latte):
    from skipdit_cli.models import default_scheduler, pipeline_around

    model = tiny_latte()
    objective = Objective(pipeline_around(model, default_scheduler()), CPU, seed=3, label_dropout=0.5)
    torch.manual_seed(0)
    videos, images = torch.rand(2, 1, 4, 8, 8) * 2 - 1, torch.rand(6, 1, 1, 8, 8) * 2 - 1
    batch = Batch(videos, [1, 2], images, [3, 4, 5, 6, 7, 8])
    both, alone = objective(model, batch, 9, 0), objective(model, batch._replace(images=None), 9, 0)

    drawn = draw((3, 2, 9, 0, 1), images.shape, 1000, 0.5)
    t = draw((3, 2, 9, 0), videos.shape, 1000, 0.5).t.repeat_interleave(3)
    xt = objective.loss.add_noise(images, drawn.noise, t)
    labels = torch.where(drawn.dropped, 10, torch.tensor(batch.image_conditions))
    output = model(xt, timestep=t, class_labels=labels, enable_temporal_attentions=False).sample
    still = objective.loss(output, images, drawn.noise, t)
    for ours, video, image in zip(both, alone, still):
        assert ours.item() == pytest.approx((4 * video.item() + 3 * image.item()) / 7, rel=1e-6)
    both.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.fixture
def tiny_preset(tmp_path):
    """``tiny_preset(num_embeds_ada_norm=10)``: the path of a preset of a tiny Latte on moving digits."""

    def write(**config) -> Path:
        own = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 2}
        own |= {"sample_size": 12, "patch_size": 3, "video_length": 4, "num_embeds_ada_norm": 10, **config}
        path = tmp_path / "tiny-latte.yaml"
        rows = "\n".join(f"    {key}: {'null' if value is None else value}" for key, value in own.items())
        path.write_text(f"about: tiny\nmodel:\n  class: LatteClassTransformer3DModel\n  config:\n{rows}\n")
        return path

    return write


@pytest.mark.parametrize("classes", [10, None])
def test_train_and_finetune_and_resume_a_latte(skipdit, tiny_preset, tmp_path, classes):
    run = ("--data", "moving-digits", "--train-batch-size", 2, "--learning-rate", 1e-3, "--image-frames", 2)
    run += ("--frame-stride", 2, "--random-flip")
    train = ("train", "--preset", tiny_preset(num_embeds_ada_norm=classes), *run)
    assert skipdit(*train, "-o", tmp_path / "whole", "--max-train-steps", 4, "--validation-steps", 4).code == 0
    assert skipdit(*train, "-o", tmp_path / "parts", "--max-train-steps", 2).code == 0
    resumed = skipdit(
        *train, "-o", tmp_path / "parts", "--max-train-steps", 4, "--resume-from-checkpoint", "latest", "--json"
    )
    assert resumed.code == 0 and resumed.json["samples"] == 14376
    assert "waiting for data" in resumed.stderr and resumed.json["data_seconds"] < resumed.json["seconds"]
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and len(losses(tmp_path / "whole")) == 4
    weights = [load_pipeline(tmp_path / run).transformer.state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert media.read_metadata(tmp_path / "whole" / "samples" / "step-000004.png")["columns"] == ["full", "cached"]

    stage1 = tmp_path / "stage1"
    assert skipdit("finetune", "-m", tmp_path / "whole", *run, "-o", stage1, "--max-train-steps", 2).code == 0
    before, after = (load_pipeline(folder).transformer for folder in (tmp_path / "whole", stage1))
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))}
    assert changed and all(name.startswith("skip_branches.") for name in changed)
    label = () if classes is None else ("--class-labels", 3)
    sampled = skipdit("sample", "-m", stage1, *label, "--steps", 4, "--cache-layers", 1, "-o", tmp_path / "clip.gif")
    assert sampled.code == 0 and media.read_metadata(tmp_path / "clip.gif")["settings"]["cache_layers"] == "1"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_during_the_run_is_named(skipdit, tiny_preset, tmp_path, monkeypatch, workers):
    def broken(*_):
        raise SkipditError("/data/a.mp4 was readable and now is not: gone.")

    monkeypatch.setattr("skipdit_cli.training.data.samples._read_embedded", broken)
    ran = skipdit(
        *("train", "--preset", tiny_preset(), "--data", "moving-digits", "-o", tmp_path / "run"),
        *("--max-train-steps", 2, "--dataloader-num-workers", workers),
    )
    assert ran.code == 1 and ran.stderr.splitlines()[-1] == "Error: /data/a.mp4 was readable and now is not: gone."
    assert not multiprocessing.active_children(), "Python waits for them at its end, and they ignore SIGTERM"


def test_a_reading_process_that_dies_ends_the_run(skipdit, tiny_preset, tmp_path, monkeypatch):
    def killed(*_):
        assert torch.utils.data.get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("skipdit_cli.training.data.samples._read_embedded", killed)
    ran = skipdit(
        *("train", "--preset", tiny_preset(), "--data", "moving-digits", "-o", tmp_path / "run"),
        *("--max-train-steps", 2, "--dataloader-num-workers", 2),
    )
    assert ran.code == 1 and "A process that reads the data died" in ran.stderr


def test_a_death_that_torch_tells_of_outside_of_the_loader_is_said_as_well(
    skipdit, tiny_preset, tmp_path, monkeypatch
):
    """A signal handler raises it, wherever the main process is when the reading process ends."""

    def interrupted(*_):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    monkeypatch.setattr("skipdit_cli.training.run.loop.Trainer.validate", interrupted)
    ran = skipdit("train", "--preset", tiny_preset(), "--data", "moving-digits", "-o", tmp_path / "run")
    assert ran.code == 1 and "A process that reads the data died" in ran.stderr


def frames_of(folder: Path, count: int = 3, length: int = 6) -> SampleSet:
    """Videos of noise in memory; their digests are what ``folder`` says."""
    from PIL import Image

    rng = np.random.default_rng(0)
    held = rng.integers(0, 255, (count, length, 16, 16, 3), dtype=np.uint8)
    read = lambda index, frames: [Image.fromarray(frame) for frame in held[index][list(frames)]]  # noqa: E731
    return SampleSet("videos", [0, 1, 2][:count], [length] * count, read, lambda index: f"{folder}-{index}")


def test_latents_are_made_once_and_again_where_anything_that_shapes_them_differs(tmp_path):
    videos, vae, made = frames_of(tmp_path), tiny_vae(), []

    class Counted(Latents):
        def make(self, choice, pixels):
            made.append((choice.index, choice.mirrored))
            return super().make(choice, pixels)

    def encode(vae=vae, videos=videos, mirrored=False, **clip) -> Latents:
        made.clear()
        clip = {"num_frames": 4, "frame_stride": 1, **clip}
        latents = Counted(Pixels(videos, 16, 3, **clip), vae, Store(tmp_path / "kept"), CPU, mirrored)
        latents.encode()
        return latents

    first = encode()
    assert made == [(0, False), (1, False), (2, False)]
    encode()
    assert made == []
    encode(mirrored=True)
    assert made == [(0, True), (1, True), (2, True)]
    for changed in ({"num_frames": 3}, {"frame_stride": 2, "num_frames": 3}, {"vae": tiny_vae(seed=1)}):
        encode(**changed)
        assert len(made) == 3, changed
    encode(videos=frames_of(tmp_path / "other"))
    assert len(made) == 3
    encode(videos=replace(videos, fps_target=8.0))
    assert len(made) == 3
    damaged = first.section.path(first.name(Choice(1)))
    damaged.write_bytes(damaged.read_bytes()[:100])
    encode()
    assert made == [(0, False), (1, False), (2, False)]  # all that the shard holds, and no more

    pixels, label, *_ = first.pixels[Choice(2)]
    held, held_label, images, others = first[Choice(2, images=(Choice(0, start=0.5),))]
    assert held.shape == (8, 4, 8, 8) and torch.equal(held, moments(vae, pixels[None])[0]) and held_label == label == 2
    assert torch.equal(images[0], first[Choice(0)][0][:, 2:3]) and others == [0]
    damaged.unlink()
    again = Latents(first.pixels, vae, Store(tmp_path / "kept"), CPU, False)
    with pytest.raises(SkipditError, match="is gone; run again"):
        again[Choice(1)]


@pytest.mark.parametrize("temporal", [False, True])
def test_latents_that_are_kept_train_as_those_encoded_at_each_step(tiny_latte, tmp_path, temporal):
    from skipdit_cli.models import default_scheduler, pipeline_around

    model, vae = tiny_latte(in_channels=4, out_channels=8), tiny_vae(temporal)
    pipe = pipeline_around(model, default_scheduler(), vae)
    pixels = Pixels(frames_of(tmp_path), 16, 3, 4)
    latents = Latents(pixels, vae, Store(tmp_path / "kept"), CPU, False)
    latents.encode()
    choices = [Choice(0), Choice(2)]
    at_once = Objective(pipe, CPU, 0, 0.1)(model, collate([pixels[choice] for choice in choices]), 5, 0)
    kept = Objective(pipe, CPU, 0, 0.1, Store(tmp_path))(model, collate([latents[choice] for choice in choices]), 5, 0)
    assert kept.total.item() == pytest.approx(at_once.total.item(), rel=1e-5)
    clip = pixels[Choice(0)][0]
    by_hand = torch.stack([vae.encode(frame[None]).latent_dist.parameters[0] for frame in clip.transpose(0, 1)], 1)
    assert torch.allclose(moments(vae, clip[None])[0], by_hand, atol=1e-5)
    assert DiagonalGaussianDistribution(moments(vae, clip[None])).mean.shape == (1, 4, 4, 8, 8)


def test_a_model_of_texts_learns_from_captions(skipdit, text_pipeline, tmp_path):
    data, kept = tmp_path / "data", tmp_path / "kept"
    data.mkdir()
    texts = ["a red cat", "a dog", "a dog"]
    for at in range(3):
        frames = np.random.default_rng(at).integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
        media.save_video(frames, data / f"{at}.mp4", 8, {})
    rows = [json.dumps({"file_name": f"{at}.mp4", "text": text}) for at, text in enumerate(texts)]
    (data / "metadata.jsonl").write_text("\n".join(rows))
    assert skipdit("convert", text_pipeline, "-o", tmp_path / "skip").code == 0
    run = ("finetune", "-m", tmp_path / "skip", "--data", data, "--train-batch-size", 2, "--max-train-steps", 3)
    run += ("--image-frames", 1, "--label-dropout", 0.5, "--learning-rate", 1e-3)
    first = skipdit(*run, "-o", tmp_path / "one", "--cache-latents", kept, "--validation-steps", 3)
    assert first.code == 0 and "3 videos, 2 captions, 0 skipped" in first.stdout, first.stderr
    assert "0 of 3 latents are kept" in first.stdout and "failed" not in first.stderr
    again = skipdit(*run, "-o", tmp_path / "two", "--cache-latents", kept)
    assert "3 of 3 latents are kept" in again.stdout and losses(tmp_path / "one") == losses(tmp_path / "two")
    unkept = skipdit(*run, "-o", tmp_path / "three", "--clip", "center", "--image-frames", 0)
    assert unkept.code == 0, unkept.stderr
    before, after = (load_pipeline(tmp_path / name).transformer for name in ("skip", "one"))
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))}
    assert changed and all(name.startswith("skip_branches.") for name in changed)


def test_frames_that_change_places_are_another_video(tmp_path):
    """Numbers count by value: ``2.png`` is read before ``10.png``."""
    from PIL import Image

    folder = tmp_path / "data" / "clip"
    folder.mkdir(parents=True)
    for number in (2, 10):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    digest = lambda: read_samples(str(folder.parent), Demand(video_length=2), 2).digest(0)  # noqa: E731
    before = digest()
    assert digest() == before
    (folder / "2.png").rename(folder / "11.png")  # by plain name they lie as before
    assert digest() != before
