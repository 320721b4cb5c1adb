"""Reading and writing models."""

import json
import logging
import warnings

import pytest
import torch
from safetensors.torch import load_file

from skipdit_cli import add_skip_branches, load_pipeline
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.files import CONVERT, replace_folder
from skipdit_cli.models import random_pipeline, save_pipeline
from skipdit_cli.presets import Preset, load_preset


@torch.no_grad()
def output(pipe):
    size = pipe.transformer.config.sample_size
    x = torch.randn(2, pipe.transformer.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    return pipe.transformer(x, timestep=torch.tensor([10, 900]), class_labels=torch.tensor([1, 2])).sample


@pytest.fixture
def trained(tiny_pipeline):
    """A loaded pipeline whose branches do something."""
    pipe = load_pipeline(tiny_pipeline())
    for linear in add_skip_branches(pipe.transformer).linears:
        torch.nn.init.normal_(linear.weight, std=0.1)
    return pipe


def test_a_saved_pipeline_loads_as_it_was(trained, tmp_path):
    save_pipeline(trained, tmp_path / "out")
    again = load_pipeline(tmp_path / "out")
    assert torch.equal(output(trained), output(again))
    assert again.vae is None and not again.transformer.training
    vanilla = load_pipeline(tmp_path / "out", branches=False)
    assert not hasattr(vanilla.transformer, "skip_branches")
    assert not torch.equal(output(vanilla), output(again))


def test_transformer_weights_on_disk_hold_no_branches(trained, tmp_path):
    save_pipeline(trained, tmp_path / "out")
    names = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not [name for name in names if "skip" in name]
    assert trained.transformer.skip_branches is not None
    assert "skip" not in json.loads((tmp_path / "out" / "model_index.json").read_text())


def test_branches_are_back_after_a_failed_save(trained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained.transformer, "save_pretrained", fail)
    before = output(trained)
    with pytest.raises(SkipditError, match="No space left"):
        with replace_folder(tmp_path / "out", CONVERT) as folder:
            save_pipeline(trained, folder)
    assert torch.equal(before, output(trained))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_plain_diffusers_loads_the_vanilla_pipeline_silently(tiny_dit, tmp_path, caplog, recwarn):
    from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, DiTPipeline
    from diffusers.utils import logging as diffusers_logging

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    transformer = tiny_dit(in_channels=4, out_channels=8)
    pipe = DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler())
    add_skip_branches(transformer)
    save_pipeline(pipe, tmp_path / "latent")
    diffusers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = DiffusionPipeline.from_pretrained(tmp_path / "latent")
    diffusers_logging.disable_propagation()
    assert not caplog.records
    assert torch.equal(output(plain), output(load_pipeline(tmp_path / "latent")))
    assert load_pipeline(tmp_path / "latent").vae.config.latent_channels == 4


def test_labels_survive_loading_and_saving(trained, tmp_path):
    trained.register_to_config(id2label={"0": "zero, null", "1": "one"})
    save_pipeline(trained, tmp_path / "one")
    save_pipeline(load_pipeline(tmp_path / "one"), tmp_path / "two")
    assert load_pipeline(tmp_path / "two").labels == {"null": 0, "one": 1, "zero": 0}


def test_the_recorded_time_embedding_is_applied_with_and_without_branches(trained, tmp_path):
    trained.transformer.skip_branches.register_to_config(time_embedding="official")
    save_pipeline(trained, tmp_path / "out")
    for branches in (True, False):
        transformer = load_pipeline(tmp_path / "out", branches=branches).transformer
        shifts = {block.norm1.emb.time_proj.downscale_freq_shift for block in transformer.transformer_blocks}
        assert shifts == {0}


def test_dtype_reaches_transformer_and_branches(trained, tmp_path):
    save_pipeline(trained, tmp_path / "out")
    transformer = load_pipeline(tmp_path / "out", dtype=torch.bfloat16).transformer
    assert transformer.dtype == transformer.skip_branches.dtype == torch.bfloat16


def test_an_mlp_ratio_that_diffusers_lacks(tmp_path):
    model = {**load_preset("digits").model}
    model["config"] = {**model["config"], "num_layers": 4, "mlp_ratio": 2.5}
    pipe = random_pipeline(Preset("half", model=model), merge="replace")
    assert pipe.transformer.transformer_blocks[0].ff.net[2].in_features == 160
    save_pipeline(pipe, tmp_path / "out")
    assert torch.equal(output(pipe), output(load_pipeline(tmp_path / "out")))


def test_random_pipelines_are_seeded_and_say_something():
    preset = load_preset("digits")
    one, again, other = (random_pipeline(preset, seed=seed, merge="residual") for seed in (1, 1, 2))
    assert torch.equal(output(one), output(again))
    assert not torch.equal(output(one), output(other))
    assert output(one).std() > 0.01
    assert random_pipeline(preset, torch.bfloat16).transformer.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: cut(folder / "transformer" / "diffusion_pytorch_model.safetensors"), "cannot be read"),
        (lambda folder: (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink(), "cannot be read"),
        (lambda folder: cut(folder / "skip" / "diffusion_pytorch_model.safetensors"), "Skip branches"),
        (lambda folder: (folder / "skip" / "config.json").write_text('{"dim": 8, "num_layers": 6}'), "branches"),
    ],
)
def test_damaged_folders_are_refused_in_one_sentence(damage, said, trained, tmp_path):
    save_pipeline(trained, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(UsageError, match=said) as caught:
        load_pipeline(tmp_path / "out")
    assert "\n" not in str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("name", ["nobody/nothing", "no such folder", "a/b/c"])
def test_a_model_that_is_nowhere(name):
    with pytest.raises(UsageError, match="folder"):
        load_pipeline(name)


def test_a_hub_id_is_found_in_the_offline_cache(trained, tmp_path, monkeypatch):
    from huggingface_hub import constants

    save_pipeline(trained, tmp_path / "out")
    repository = tmp_path / "hub" / "models--someone--digits"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    (tmp_path / "out").rename(repository / "snapshots" / ("a" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    assert torch.equal(output(trained), output(load_pipeline("someone/digits", cache_dir=str(repository.parent))))


def test_plain_save_pretrained_keeps_the_branches_apart(tiny_pipeline, tmp_path):
    pipe = load_pipeline(tiny_pipeline())
    branches = add_skip_branches(pipe.transformer)
    torch.nn.init.normal_(branches.linears[0].weight)
    pipe.save_pretrained(tmp_path / "saved")
    assert pipe.transformer.skip_branches is branches
    names = load_file(tmp_path / "saved" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not [name for name in names if "skip" in name]
    again = load_pipeline(tmp_path / "saved").transformer
    assert torch.equal(again.skip_branches.linears[0].weight, branches.linears[0].weight)
    pipe.transformer.save_pretrained(tmp_path / "alone")
    assert (tmp_path / "alone" / "skip" / "config.json").is_file()
