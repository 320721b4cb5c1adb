"""``skipdit sample`` of a video model: mp4, gif, sheet, history, replay, the cache."""

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from PIL import Image

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.media import read_metadata
from skipdit_cli.models import save_pipeline
from skipdit_cli.models.build import pipeline_around
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.pixels import pixel_size, to_pixels
from skipdit_cli.sampling.schedulers import SCHEDULERS
from tests.support.measurements import relative_l2

QUICK = ("--steps", 4)
GUIDED = ("--class-labels", "3,4", "--guidance-scale", 1.5, *QUICK)


@pytest.fixture
def model(latte_pipeline):
    return latte_pipeline()


@pytest.fixture
def unconditional(latte_pipeline):
    return latte_pipeline("unconditional", num_embeds_ada_norm=None)


def files(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_an_mp4_its_frames_and_its_history(skipdit, model, tmp_path):
    out, npz = tmp_path / "out" / "a.mp4", tmp_path / "a.npz"
    ran = skipdit("sample", "-m", model, *GUIDED, "--cache-layers", 1, "--fps", 5, "-o", out, "--npz", npz)
    assert ran.code == 0, ran.stderr
    assert "2 videos of 4 frames" in ran.stdout and "2 of 4 steps reused" in ran.stdout
    assert files(out.parent) == ["a.json", "a.mp4", "a.png"]
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(out)
    assert frames == 4 and seconds == pytest.approx(4 / 5)
    array, decoded = np.load(npz)["arr_0"], imageio.imread(out, plugin="FFMPEG")
    assert array.dtype == np.uint8 and array.shape == (2, 4, 8, 8, 3)
    assert decoded.shape == (4, 256, 2 * 256 + 2, 3)
    larger = array[1].repeat(32, 1).repeat(32, 2).astype(int)
    assert abs(decoded[:, :, 258:] - larger).mean() < 3
    assert (
        np.asarray(Image.open(out.with_suffix(".png")))[:256, :256] == array[0, 0].repeat(32, 0).repeat(32, 1)
    ).all()
    settings = read_metadata(out)["settings"]
    assert settings["class_labels"] == "3,4" and settings["fps"] == 5 and settings["cache_layers"] == "1"
    assert read_metadata(out.with_suffix(".json")) == read_metadata(out.with_suffix(".png")) == read_metadata(out)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_replay_makes_the_same_file(suffix, skipdit, model, tmp_path):
    kind = suffix.replace(".png", ".gif")
    first, second, changed = (tmp_path / f"{name}{kind}" for name in "abc")
    made = skipdit("sample", "-m", model, *GUIDED, "--num-frames", 3, "--cache-layers", 1, "-o", first)
    assert made.code == 0, made.stderr
    again = skipdit("sample", "--from", first.with_suffix(suffix), "-o", second)
    assert again.code == 0, again.stderr
    assert first.read_bytes() == second.read_bytes() and "3 frames" in again.stdout
    assert skipdit("sample", "--from", first.with_suffix(suffix), "--seed", 1, "-o", changed).code == 0
    assert first.read_bytes() != changed.read_bytes()


def test_a_gif_holds_the_pixels_and_takes_odd_sizes(skipdit, latte_pipeline, tmp_path):
    model = latte_pipeline(sample_size=9, patch_size=3)
    out, npz = tmp_path / "a.gif", tmp_path / "a.npz"
    ran = skipdit("sample", "-m", model, "--class-labels", 1, *QUICK, "--fps", 10, "-o", out, "--npz", npz)
    assert ran.code == 0, ran.stderr
    with Image.open(out) as gif:
        assert gif.n_frames == 4 and gif.info["duration"] == 100 and gif.info["loop"] == 0
        assert gif.size == (252, 252)
    frames = imageio.imread(out, plugin="pillow", mode="RGB")[:, ::28, ::28]
    assert abs(frames.astype(int) - np.load(npz)["arr_0"][0]).max() <= 1


def test_a_folder_holds_each_video_and_all_of_them(skipdit, unconditional, tmp_path):
    out, npz = tmp_path / "out", tmp_path / "a.npz"
    ran = skipdit("sample", "-m", unconditional, "--num-images", 2, "--seed", 4, *QUICK, "-o", out, "--npz", npz)
    assert ran.code == 0, ran.stderr
    names = [f"{stem}.{kind}" for stem in ("0000", "0001") for kind in ("json", "mp4", "png")]
    assert files(out) == [*names, "grid.gif", "grid.json", "grid.png"]
    own = read_metadata(out / "0001.mp4")["settings"]
    assert own["num_images"] == 1 and own["seed"] == 5 and own["fps"] == 8 and "class_labels" not in own
    alone = tmp_path / "alone.npz"
    again = skipdit("sample", "--from", out / "0001.mp4", "-o", tmp_path / "b.mp4", "--npz", alone)
    assert again.code == 0, again.stderr
    assert abs(np.load(alone)["arr_0"][0].astype(int) - np.load(npz)["arr_0"][1]).max() <= 1


def test_branches_and_cache_of_a_converted_model(skipdit, model, tmp_path):
    assert skipdit("convert", model, "-o", tmp_path / "skip").code == 0
    ran = skipdit("sample", "-m", tmp_path / "skip", *GUIDED, "--cache-layers", 1, "-o", tmp_path / "a.gif", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["skip_branches"] and ran.json["cache"] == {
        "steps": 4,
        "reused_steps": 2,
        "blocks_run": 10,
        "blocks_total": 12,
    }
    assert [path.rsplit("/", 1)[1] for path in ran.json["files"]] == ["a.gif", "a.json", "a.png"]
    assert ran.json["settings"]["guidance_scale"] == 1.5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_runs_with_the_cache(name, latte_pipeline):
    pipe = load_pipeline(latte_pipeline(num_embeds_ada_norm=None))
    policy = CachePolicy(1)
    if name == "heun":
        policy = None  # two evaluations a step: its own tests say what the cache does
    made = generate(pipe, [None], num_inference_steps=4, scheduler=name, policy=policy)
    assert made.images.shape == (1, 4, 8, 8, 3) and torch.isfinite(made.latents).all()


def test_noise_belongs_to_the_seed_of_a_sample(model):
    pipe = load_pipeline(model)
    settings = {"num_inference_steps": 3, "guidance_scale": 2.0, "scheduler": "ddpm", "decode": False}
    together = generate(pipe, [1, 2, 3], seed=7, **settings).latents
    apart = generate(pipe, [1, 2, 3], seed=7, batch_size=2, **settings).latents
    assert together.shape == (3, 1, 4, 8, 8)
    assert relative_l2(together, apart) < 1e-5
    assert relative_l2(generate(pipe, [3], seed=9, **settings).latents[0], together[2]) < 1e-5


def test_frames_are_decoded_one_by_one(tiny_latte, tmp_path):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    transformer = tiny_latte(in_channels=4, out_channels=8)
    save_pipeline(pipeline_around(transformer, DDIMScheduler(clip_sample=False), vae), tmp_path / "latent")
    pipe = load_pipeline(tmp_path / "latent")
    latents = torch.randn(5, 4, 4, 8, 8)
    pixels = to_pixels(pipe, latents, batch_size=5)
    assert pixels.shape == (5, 4, 16, 16, 3) and pixel_size(pipe) == (16, 16)
    alone = to_pixels(pipe, latents[:, :, 2], batch_size=1)
    assert abs(pixels[:, 2].astype(int) - alone).max() <= 1


def test_labels_and_frames_fit_the_model(model, unconditional):
    conditional, without = load_pipeline(model), load_pipeline(unconditional)
    for pipe, labels, settings, says in [
        (without, [3], {}, "no classes"),
        (conditional, [10], {}, "0..9"),
        (conditional, [], {}, "0..9"),
        (conditional, [1], {"num_frames": 5}, "1..4"),
        (conditional, [1], {"num_frames": 0}, "1..4"),
    ]:
        with pytest.raises(UsageError, match=says):
            generate(pipe, labels, num_inference_steps=2, **settings)
    fewer = generate(conditional, [1], num_inference_steps=2, num_frames=2).images
    assert fewer.shape == (1, 2, 8, 8, 3)


def test_an_official_file_becomes_a_video_by_the_official_schedule(skipdit, golden, golden_pipeline, tmp_path):
    model, facts = golden_pipeline("latte_skip_uncond"), golden("latte_skip_uncond").facts
    cache = ("--cache-layers", 1, "--cache-interval", 3, "--cache-window", "900:49")
    ran = skipdit("sample", "-m", model, "--steps", 20, *cache, "-o", tmp_path / "a.mp4", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["cache"]["reused_steps"] == len(facts["ddim20_cache3"]["cached_step_indices"])
    assert "no VAE" in ran.stderr
