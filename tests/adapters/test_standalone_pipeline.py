"""``pipeline.py`` in a model folder: plain diffusers samples models that its own ``DiTPipeline`` cannot."""

import os
import subprocess
import sys

import diffusers
import torch

from skipdit_cli import load_pipeline
from skipdit_cli.models import save_branches, save_pipeline
from skipdit_cli.models.build import default_scheduler, pipeline_around
from skipdit_cli.skip.time_embedding import record_time_embedding
from tests.support.pipeline_parts import tiny_vae
from tests.support.tiny_dit_runs import train_a_little

WITHOUT_PACKAGE = """
import sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "skipdit_cli":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch
from diffusers import DiffusionPipeline

for folder in map(Path, sys.argv[1:]):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    noise = torch.Generator().manual_seed(0)
    torch.save(pipe([1, 2], num_inference_steps=3, generator=noise, output_type="pt").images, folder / "images.pt")
"""


def sample(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe([1, 2], num_inference_steps=3, generator=noise, output_type="pt").images)


def save_flow_model(transformer, folder) -> None:
    """Write a SiT with a VAE."""
    transformer.register_to_config(_time_embedding="sit")
    record_time_embedding(transformer, "sit")
    save_pipeline(
        pipeline_around(transformer, default_scheduler("DiTTransformer2DModel", flow=True), tiny_vae()), folder
    )


def test_plain_diffusers_samples_what_its_own_pipeline_cannot(skipdit, tiny_pipeline, tiny_dit, tmp_path, monkeypatch):
    """A pixel model of ten classes, with branches and without them, and a SiT with a VAE."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pixels, flow = tmp_path / "pixels", tmp_path / "flow"
    assert skipdit("convert", "-m", tiny_pipeline(), "-o", pixels).code == 0
    save_flow_model(tiny_dit(in_channels=4, out_channels=4), flow)
    vanilla = [sample(load_pipeline(folder)) for folder in (pixels, flow)]
    save_branches(train_a_little(load_pipeline(pixels).transformer.skip_branches), pixels)
    custom = {"custom_pipeline": str(pixels), "trust_remote_code": True}
    with_branches = diffusers.DiffusionPipeline.from_pretrained(pixels, **custom)
    assert torch.equal(sample(with_branches), sample(load_pipeline(pixels)))

    child = [sys.executable, "-c", WITHOUT_PACKAGE, pixels, flow]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "of_child")}
    run = subprocess.run(child, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "this is the vanilla model" in run.stderr
    for folder, expected in zip((pixels, flow), vanilla):
        torch.testing.assert_close(torch.load(folder / "images.pt"), expected, rtol=0, atol=1e-5)
