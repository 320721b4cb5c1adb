"""``pipeline.py`` in a model folder: plain diffusers samples models that its own ``DiTPipeline`` cannot."""

import importlib.util

import diffusers
import torch

from skipdit_cli import load_pipeline
from tests.support.tiny_dit_runs import train_a_little


def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe([1, 2], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images


def test_plain_diffusers_samples_a_pixel_model_of_ten_classes(skipdit, tiny_pipeline, tmp_path, monkeypatch, caplog):
    from skipdit_cli.models import save_branches

    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    assert skipdit("convert", "-m", tiny_pipeline(), "-o", folder).code == 0
    vanilla = sample(load_pipeline(folder))
    save_branches(train_a_little(load_pipeline(folder).transformer.skip_branches), folder)
    custom = {"custom_pipeline": str(folder), "trust_remote_code": True}
    with_branches = diffusers.DiffusionPipeline.from_pretrained(folder, **custom)
    assert torch.equal(sample(with_branches), sample(load_pipeline(folder)))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "skipdit_cli" else find(name))
    plain = diffusers.DiffusionPipeline.from_pretrained(folder, **custom)
    assert "this is the vanilla model" in caplog.text
    assert torch.equal(sample(plain), vanilla)
    source = (folder / "pipeline.py").read_text()
    assert "import skipdit_cli" not in source and "from skipdit_cli" not in source
