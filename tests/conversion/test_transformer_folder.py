"""``skipdit convert`` and ``info`` of a transformer's own folder: it stays one, with ``skip/`` in it."""

import diffusers
import pytest
import torch

from skipdit_cli import SkipBranches, add_skip_branches, remove_skip_branches
from tests.support.pipeline_parts import tiny_vae
from tests.support.tiny_transformers import WIDTH, arguments, run, tiny

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _tiny(name):
    if name != "BriaTransformer2DModel":
        return tiny(name)
    sizes = dict(num_layers=2, num_single_layers=4, in_channels=4, joint_attention_dim=6, axes_dims_rope=(4, 2, 2))
    return diffusers.BriaTransformer2DModel(**WIDTH, **sizes, pooled_projection_dim=None)  # not declared


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "BriaTransformer2DModel"])
def test_a_transformer_alone_is_converted_and_stays_one(name, dtype, skipdit, tmp_path, monkeypatch):
    """Declared or not: a folder with ``skip/`` in it, which the Python of its card loads."""
    model, source, out = _tiny(name), tmp_path / "alone", tmp_path / "out"
    model.save_pretrained(source)
    outcome = skipdit("convert", source, "-o", out, "--dtype", dtype, "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["weights_equal"] and outcome.json["bitwise_equal"] and outcome.json["pairs"] == 3
    assert {path.name for path in out.glob("[!.]*")} == {"README.md", "config.json", "skip", WEIGHTS}
    if dtype == "auto":
        assert (out / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()

    told = skipdit("info", out, "--json")
    assert told.code == 0, told.stderr
    branches = sum(each.numel() for each in SkipBranches.from_pretrained(out / "skip").parameters())
    assert (told.json["attached"], told.json["blocks"], told.json["skip_parameters"]) == (True, 6, branches)

    monkeypatch.chdir(tmp_path)  # the card names the folder by its last part
    shown = {}
    exec((out / "README.md").read_text().split("```python\n")[1].split("```")[0], shown)
    loaded = shown["transformer"]
    assert loaded.skip_branches.num_pairs == 3
    after = run(loaded, arguments(loaded))
    remove_skip_branches(loaded)
    assert torch.equal(after, run(loaded, arguments(loaded)))

    again = skipdit("convert", out, "-o", tmp_path / "again")
    assert again.code == 2 and "has skip branches already" in again.stderr
    sampled = skipdit("sample", "-m", out, "--prompt", "a", "-o", tmp_path / "a.png")
    assert sampled.code == 2 and "one part of a pipeline" in sampled.stderr


def test_convert_keeps_no_branches_from_a_transformer_that_brings_some(tiny_dit, skipdit, tmp_path):
    model = tiny_dit()
    add_skip_branches(model)
    model.save_pretrained(tmp_path / "own")
    refused = skipdit("convert", tmp_path / "own", "-o", tmp_path / "out")
    assert refused.code == 2 and "has skip branches already" in refused.stderr and not (tmp_path / "out").exists()


def test_it_takes_no_other_parts(skipdit, tmp_path):
    tiny("SanaTransformer2DModel").save_pretrained(tmp_path / "alone")
    tiny_vae(latent_channels=2).save_pretrained(tmp_path / "vae")
    refused = skipdit("convert", tmp_path / "alone", "-o", tmp_path / "out", "--vae", tmp_path / "vae")
    assert refused.code == 2 and "a SanaTransformer2DModel alone" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_info_of_a_plain_one_and_of_another_part(skipdit, tmp_path):
    tiny("SanaTransformer2DModel").save_pretrained(tmp_path / "alone")
    told = skipdit("info", tmp_path / "alone", "--json")
    assert told.code == 0 and (told.json["blocks"], told.json["attached"]) == (6, False)
    tiny_vae().save_pretrained(tmp_path / "vae")
    refused = skipdit("info", tmp_path / "vae")
    assert refused.code == 2 and "no transformer trunk" in refused.stderr


def test_the_hubs_old_class_name_is_understood(tiny_pipeline, skipdit):
    """The hub's DiT folders say Transformer2DModel."""
    config = tiny_pipeline() / "transformer" / "config.json"
    config.write_text(config.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    told = skipdit("info", config.parent.parent, "--json")
    assert told.code == 0 and told.json["blocks"] == 6, told.stderr
