"""Pipelines that start from a picture, on the transformer of a text pipeline: trained as that, and kept as is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.skip import add_skip_branches
from tests.support.caption_training import changed, command, losses, prepare, rename
from tests.support.tiny_training_pipelines import text_pipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SIBLINGS = {
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline", "StableDiffusion3PAGPipeline"),
    "flux": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    "hunyuan": ("HunyuanDiTPAGPipeline",),
    "pixart": ("PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"),
    "wan": ("WanVideoToVideoPipeline",),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_is_trained_as_its_text_pipeline_and_stays_what_it_is(skipdit, tmp_path, name):
    model, data = prepare(tmp_path, name)
    run = (*command(name, model, data, tmp_path / "kept"), "--max-train-steps", 2)
    assert skipdit(*run, "-o", tmp_path / "plain").code == 0
    own = json.loads((model / "model_index.json").read_text())
    for kind in SIBLINGS[name]:
        extra = {"image_encoder": [None, None], "feature_extractor": [None, None]} if "Flux" in kind else {}
        rename(model, **{**own, **extra, "_class_name": kind})
        ran = skipdit(*run, "-o", tmp_path / kind)
        assert ran.code == 0, ran.stderr
        assert type(load_pipeline(tmp_path / kind)).__name__ == kind
        if "PixArt" not in kind:  # whose other kind reads longer texts
            assert losses(tmp_path / kind) == losses(tmp_path / "plain")
        assert changed(model, tmp_path / kind)


@contextmanager
def first_arguments(kind: type) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of what modules of a class are given first."""
    seen = []
    note = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append(tuple(given[0].shape)) if type(module) is kind else None
    )
    try:
        yield seen
    finally:
        note.remove()


def test_the_grids_of_a_sibling_are_of_its_texts_at_the_size_trained(skipdit, tmp_path):
    model, data = prepare(tmp_path, "pixart")
    rename(model, _class_name="PixArtSigmaPAGPipeline")
    run = (*command("pixart", model, data, tmp_path / "kept"), "--max-train-steps", 1, "--validation-steps", 1)
    with first_arguments(PixArtTransformer2DModel) as shapes:
        ran = skipdit(*run, "-o", tmp_path / "out")
    assert ran.code == 0 and "grid" not in ran.stderr, ran.stderr
    assert (tmp_path / "out" / "samples" / "step-000001.png").is_file()
    assert len(shapes) > 100 and {shape[-2:] for shape in shapes} == {(8, 8)}


@pytest.mark.parametrize(
    "name, kind, channels, makes",
    [
        ("flux", "FluxFillPipeline", 24, 8),
        ("flux", "FluxControlPipeline", 16, 8),
        ("wan", "WanImageToVideoPipeline", 5, 2),
        ("sd3", "StableDiffusion3InpaintPipeline", 5, 2),
    ],
)
def test_a_transformer_that_is_told_more_is_refused_before_weights_are_loaded(
    skipdit, tmp_path, name, kind, channels, makes
):
    model, data = prepare(tmp_path, name)
    rename(model, _class_name=kind)
    config = model / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": channels}))
    for path in model.rglob("*.safetensors"):
        path.unlink()
    ran = skipdit("finetune", "-m", model, "--data", data, "-o", tmp_path / "out")
    said = (
        f"Got a {kind} whose transformer takes {channels} channels where its VAE makes {makes}: it has inputs besides"
    )
    assert ran.code == 2 and said in ran.stderr and not (tmp_path / "out").exists(), ran.stderr


def test_a_first_picture_among_as_many_channels_is_refused(skipdit, tmp_path):
    """Wan 2.2's 5B from a picture: told as a timestep of 0, which no text pipeline tells."""
    _, data = prepare(tmp_path, "wan")
    pipe = text_pipeline("wan-5b")
    add_skip_branches(pipe.transformer)
    save_pipeline(pipe, tmp_path / "five")
    rename(tmp_path / "five", _class_name="WanImageToVideoPipeline")
    ran = skipdit("finetune", "-m", tmp_path / "five", "--data", data, "-o", tmp_path / "out")
    said = "Got a WanImageToVideoPipeline, but of a WanTransformer3DModel WanPipeline or WanVideoToVideoPipeline can"
    assert ran.code == 2 and said in ran.stderr


def test_one_transformer_told_a_time_for_every_token_is_trained(skipdit, tmp_path):
    _, data = prepare(tmp_path, "wan")
    pipe = text_pipeline("wan-5b")
    add_skip_branches(pipe.transformer)
    save_pipeline(pipe, tmp_path / "five")
    run = command("wan", tmp_path / "five", data, tmp_path / "kept")
    with first_arguments(type(pipe.transformer.condition_embedder)) as shapes:
        ran = skipdit(*run, "-o", tmp_path / "out", "--max-train-steps", 1)
    assert ran.code == 0, ran.stderr
    assert shapes == [(2 * 2 * 2 * 2,)]  # 2 samples, 2 latent frames of 2x2 tokens
