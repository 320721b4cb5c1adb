"""Training on captions: what each family's transformer is told and what its loss is, and the way through the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from text_pipelines import MADE, text_pipeline

from skipdit_cli import media
from skipdit_cli.checkpoints import load_pipeline, save_branches, save_pipeline
from skipdit_cli.skip import add_skip_branches
from skipdit_cli.training.conditioning import conditioning_of
from skipdit_cli.training.demand import TRAINED
from skipdit_cli.training.families import FAMILIES, family_of
from skipdit_cli.training.flow import loss_of
from skipdit_cli.training.objective import Objective
from skipdit_cli.training.order import draw
from skipdit_cli.training.pixels import Batch
from skipdit_cli.training.settings import Weighting

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
TEXTS = ["a red cat runs", "dog"]
KEPT = torch.tensor([False, False])
SIDE = {"wan": 32, "hunyuan": 64}


def latent_shape(name: str) -> tuple[int, ...]:
    return {"latte": (4, 4, 8, 8), "wan": (16, 2, 4, 4)}.get(name, (4, 8, 8))


def sampled(pipe, name: str, text: str, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the transformer answered in the first step of the pipeline's own call, and at which time."""
    seen, side = [], SIDE.get(name, 16)
    settings = {"height": side, "width": side, "num_inference_steps": 2, "output_type": "latent", "latents": noise}
    settings |= {} if name == "flux" else {"guidance_scale": 1.0}
    settings |= {"latte": {"video_length": 4}, "wan": {"num_frames": 5}}.get(name, {})
    settings |= {"use_resolution_binning": False} if name in ("pixart", "hunyuan") else {}
    if name == "flux":
        settings["latents"] = pipe._pack_latents(noise, *noise.shape)
    hook = pipe.transformer.register_forward_hook(
        lambda module, given, told, output: seen.append((given, told, output)), with_kwargs=True
    )
    with torch.no_grad():
        pipe(text, **settings)
    hook.remove()
    given, told, output = seen[0]
    time = told.get("timestep", given[1] if len(given) > 1 else None)
    if name == "flux":
        return pipe._unpack_latents(output[0], side, side, pipe.vae_scale_factor), time * 1000
    return output[0], time


@pytest.mark.parametrize("name", MADE)
def test_a_caption_in_a_batch_is_told_as_the_pipeline_tells_it_alone(name, tmp_path):
    pipe, generator = text_pipeline(name, tmp_path), torch.Generator().manual_seed(0)
    noises = [torch.randn(1, *latent_shape(name), generator=generator) for _ in TEXTS]
    alone = [sampled(pipe, name, text, noise) for text, noise in zip(TEXTS, noises)]
    times = torch.cat([time.flatten()[:1] for _, time in alone])
    started = torch.cat(noises)
    condition = conditioning_of(pipe, CPU)
    with torch.no_grad():
        both = condition.predict(pipe.transformer, started, times, TEXTS, KEPT)
        swapped = condition.predict(pipe.transformer, started, times, TEXTS[::-1], KEPT)
        dropped = condition.predict(pipe.transformer, started, times, TEXTS, torch.tensor([True, False]))
        empty = condition.predict(pipe.transformer, started, times, ["", "dog"], KEPT)
    for at, (answer, _) in enumerate(alone):
        assert torch.allclose(both[at], answer[0], atol=1e-4), (both[at] - answer[0]).abs().max()
    assert (both - swapped).abs().max() > 1e-3 and torch.equal(dropped, empty) and not torch.equal(dropped, both)
