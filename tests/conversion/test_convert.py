"""``skipdit convert``: from every source to a pipeline folder with ``skip/``; bad input is refused in one sentence."""

import argparse
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from skipdit_cli import load_pipeline

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@torch.no_grad()
def output(transformer):
    config = transformer.config
    shape = (2, config.in_channels, config.sample_size, config.sample_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return transformer(x, timestep=torch.tensor([10, 900]), class_labels=torch.tensor([1, 2])).sample


def read(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def test_a_pipeline_folder_is_copied_and_proved_equal(tiny_pipeline, tmp_path, skipdit):
    folder = tiny_pipeline()
    outcome = skipdit("convert", folder, "-o", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.stderr
    result = outcome.json
    assert result["bitwise_equal"] and result["weights_equal"]
    assert (result["merge"], result["time_embedding"], result["pairs"]) == ("residual", "diffusers", 3)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    converted = load_pipeline(tmp_path / "out").transformer
    assert torch.equal(output(converted), output(load_pipeline(folder).transformer))
    assert result["added"]["parameters"] == sum(p.numel() for p in converted.skip_branches.parameters())


def test_it_says_what_it_did_and_what_comes_next(tiny_pipeline, tmp_path, skipdit):
    outcome = skipdit("convert", "-m", tiny_pipeline(), "-o", tmp_path / "out")
    for said in (
        "bit for bit equal",
        "Time embedding: diffusers",
        "3 pairs, residual merge",
        "Next: skipdit sample -m",
    ):
        assert said in outcome.stdout


def test_replace_branches_cannot_be_equal_and_it_says_so(tiny_pipeline, tmp_path, skipdit):
    outcome = skipdit("convert", "-m", tiny_pipeline(), "-o", tmp_path / "out", "--merge", "replace", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["bitwise_equal"] is None and outcome.json["merge"] == "replace"
    assert "cannot equal vanilla's" in outcome.stderr


def test_replace_branches_begin_with_random_weights_of_their_seed(tiny_pipeline, tmp_path, skipdit):
    folder, weights = tiny_pipeline(), {}
    for name, seed in {"first": 1, "again": 1, "other": 2}.items():
        ended = skipdit("convert", folder, "-o", tmp_path / name, "--merge", "replace", "--seed", seed)
        assert ended.code == 0, ended.stderr
        weights[name] = load_pipeline(tmp_path / name).transformer.skip_branches.linears[0].weight
    assert torch.equal(weights["first"], weights["again"]) and not torch.equal(weights["first"], weights["other"])


@pytest.mark.parametrize("channels, space", [(1, "pixels"), (3, "pixels"), (4, "latent")])
def test_a_lone_transformer_becomes_a_pipeline_said_aloud(channels, space, tiny_pipeline, tmp_path, skipdit):
    folder = tiny_pipeline(in_channels=channels)
    outcome = skipdit("convert", folder / "transformer", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert f"Space: {space}" in outcome.stdout and "DDIM" in outcome.stdout
    pipe = load_pipeline(tmp_path / "out")
    assert pipe.vae is None
    settings = pipe.scheduler.config
    assert (settings.beta_schedule, settings.beta_start, settings.beta_end) == ("linear", 1e-4, 0.02)
    assert (settings.clip_sample, settings.timestep_spacing) == (False, "linspace")


def test_a_decoder_can_be_given(tiny_pipeline, tmp_path, skipdit):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)
    vae.save_pretrained(tmp_path / "kl")
    for channels, code in ((4, 0), (3, 2)):
        source = tiny_pipeline(f"from{channels}", in_channels=channels) / "transformer"
        target = tmp_path / f"out{channels}"
        outcome = skipdit("convert", source, "-o", target, "--vae", tmp_path / "kl")
        assert outcome.code == code and target.exists() == (code == 0)
    assert load_pipeline(tmp_path / "out4").vae.config.latent_channels == 4


def test_the_layouts_of_one_official_checkpoint_agree(golden, golden_pipeline, tmp_path, skipdit):
    case = golden("dit_skip")
    state = read(case.checkpoint)["ema"]
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"model": state}, tmp_path / "model.ckpt")
    torch.save({"state": 1, "ema": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "parallel.pth")
    save_file(state, tmp_path / "same.safetensors")
    expected = output(load_pipeline(golden_pipeline("dit_skip")).transformer)
    for name in ("bare.pt", "model.ckpt", "parallel.pth", "same.safetensors"):
        target = tmp_path / f"{name}-out"
        outcome = skipdit("convert", tmp_path / name, "-o", target, "--num-attention-heads", 4, "--json")
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["merge"] == "replace" and outcome.json["time_embedding"] == "official"
        torch.testing.assert_close(output(load_pipeline(target).transformer), expected, rtol=1e-5, atol=1e-5)


def test_official_pairs_are_counted_from_the_middle(golden, golden_pipeline):
    state = read(golden("dit_skip").checkpoint)["ema"]
    branches = load_file(golden_pipeline("dit_skip") / "skip" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(branches["linears.2.weight"], state["skip_linears.0.linear.weight"])
    assert torch.equal(branches["norms.0.bias"], state["skip_norms.2.bias"])


def test_standard_widths_need_no_head_count(golden, tmp_path, skipdit):
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    width, state = 384, {}
    for name, tensor in read(golden("dit").checkpoint)["ema"].items():
        shape = [width * size // 24 if size % 24 == 0 and size else size for size in tensor.shape]
        state[name] = torch.zeros(shape)
    state["pos_embed"] = get_2d_sincos_pos_embed(width, 4, base_size=4, output_type="pt").float()[None]
    torch.save(state, tmp_path / "small.pt")
    outcome = skipdit("convert", tmp_path / "small.pt", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert load_pipeline(tmp_path / "out").transformer.config.num_attention_heads == 6


@pytest.mark.parametrize(
    "flag, kind, why", [("auto", "official", "facebook"), ("diffusers", "diffusers", "as --time")]
)
def test_official_hub_folders_keep_official_numbers(flag, kind, why, tiny_pipeline, tmp_path, skipdit):
    folder = tiny_pipeline()
    index = json.loads((folder / "model_index.json").read_text())
    index["_name_or_path"] = "facebook/DiT-XL-2-256"
    index["id2label"] = {"0": "tench, Tinca tinca"}
    (folder / "model_index.json").write_text(json.dumps(index))
    outcome = skipdit("convert", folder, "-o", tmp_path / "out", "--time-embedding", flag, "--json")
    assert outcome.json["time_embedding"] == kind and why in outcome.json["time_embedding_why"]
    pipe = load_pipeline(tmp_path / "out")
    shift = pipe.transformer.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift
    assert shift == (0 if kind == "official" else 1)
    assert pipe.labels == {"tench": 0, "Tinca tinca": 0}


def test_the_hubs_old_class_name_and_pickled_weights(tiny_pipeline, tmp_path, skipdit):
    """facebook/DiT-XL-2-256 was saved as a Transformer2DModel."""
    folder = tiny_pipeline()
    path = folder / "transformer" / "config.json"
    old = {"_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0", "cross_attention_dim": None,
           "num_vector_embeds": None, "only_cross_attention": False, "use_linear_projection": False}  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), **old}))
    expected = load_file(folder / WEIGHTS)
    torch.save(expected, folder / "transformer" / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    outcome = skipdit("convert", folder, "-o", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["bitwise_equal"]
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert not list((tmp_path / "out").rglob("*.bin"))


def test_shards_are_copied(tiny_dit, tiny_pipeline, tmp_path, skipdit):
    folder = tiny_pipeline()
    shutil.rmtree(folder / "transformer")
    tiny_dit().save_pretrained(folder / "transformer", max_shard_size="40KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    outcome = skipdit("convert", folder, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert torch.equal(output(load_pipeline(tmp_path / "out").transformer), output(tiny_dit()))


def test_another_dtype_is_written_anew(tiny_pipeline, tmp_path, skipdit):
    outcome = skipdit("convert", tiny_pipeline(), "-o", tmp_path / "out", "--dtype", "bf16", "--json")
    assert outcome.code == 0, outcome.stderr
    assert outcome.json["bitwise_equal"]
    for file in (WEIGHTS, "skip/diffusion_pytorch_model.safetensors"):
        assert {tensor.dtype for tensor in load_file(tmp_path / "out" / file).values()} == {torch.bfloat16}


def test_dry_run_and_overwrite(tiny_pipeline, tmp_path, skipdit):
    folder, target = tiny_pipeline(), tmp_path / "out"
    outcome = skipdit("convert", folder, "-o", target, "--dry-run")
    assert outcome.code == 0 and "nothing written" in outcome.stdout and not target.exists()
    assert skipdit("convert", folder, "-o", target, "--no-verify").code == 0
    assert skipdit("convert", folder, "-o", target).code == 2
    assert skipdit("convert", folder, "-o", target, "--overwrite", "--merge", "replace").code == 0
    assert load_pipeline(target).transformer.skip_branches.config.merge == "replace"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def bad_inputs(folder, state, converted):
    """Name to (arguments, part of the sentence)."""
    latte = {**state, "temp_embed": torch.zeros(1, 16, 24)}
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("final_layer.adaLN")}
    moved = {**state, "pos_embed": state["pos_embed"] + 0.1}
    for name, data in {"latte": latte, "headless": headless, "moved": moved, "foreign": {"conv.weight": torch.ones(1)},
                       "numbers": {"ema": {"step": 1}}, "good": state, "list": [1, 2]}.items():  # fmt: skip
        torch.save(data, folder / f"{name}.pt")
    whole = (folder / "good.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pt").write_text("not a checkpoint")
    (folder / "cut.safetensors").write_bytes(b"\x10\x00")
    torch.save({"ema": Bomb(folder / "ran")}, folder / "bomb.pt")
    (folder / "old-bomb.pt").write_bytes(pickle.dumps(Bomb(folder / "ran")))
    (folder / "empty").mkdir()
    heads = ["--num-attention-heads", "4"]
    files = {
        "cut.pt": "damaged", "text.pt": "refused", "cut.safetensors": "damaged", "bomb.pt": "could run code",
        "old-bomb.pt": "could run code", "latte.pt": "temp_embed", "headless.pt": "final_layer.adaLN",
        "moved.pt": "position table", "foreign.pt": "x_embedder", "numbers.pt": "no state dict",
        "list.pt": "no state dict", "missing.pt": "does not exist", "empty": "no model",
    }  # fmt: skip
    cases = {
        name: (["-m", folder / name] + (heads if (folder / name).is_file() else []), said)
        for name, said in files.items()
    }
    good = folder / "good.pt"
    cases |= {
        "no heads": (["-m", good], "--num-attention-heads"),
        "wrong heads": (["-m", good, "--num-attention-heads", "5"], "does not divide"),
        "heads for a folder": (["-m", converted, *heads], "leave it out"),
        "converted twice": (["-m", converted], "already"),
        "offline hub id": (["-m", "facebook/DiT-XL-2-256"], "local cache"),
        "merge": (["-m", good, *heads, "--merge", "replcae"], "Did you mean 'replace'"),
        "time embedding": (["-m", good, *heads, "--time-embedding", "offical"], "Did you mean 'official'"),
        "dtype": (["-m", good, *heads, "--dtype", "int8"], "--dtype int8"),
        "vae": (["-m", good, *heads, "--vae", folder / "empty"], "--vae"),
        "no model": ([], "no model"),
    }
    return cases


def test_bad_input_is_one_sentence_and_writes_nothing(golden, golden_pipeline, tmp_path, skipdit):
    state = read(golden("dit").checkpoint)["ema"]
    cases = bad_inputs(tmp_path, state, golden_pipeline("dit"))
    before = sorted(tmp_path.iterdir())
    for name, (arguments, said) in cases.items():
        outcome = skipdit("convert", *arguments, "-o", tmp_path / "out")
        assert outcome.code == 2 and outcome.exception is None, (name, outcome)
        assert said in outcome.stderr, (name, outcome.stderr)
        assert outcome.stderr.startswith("Error: ") and outcome.stderr.count("\n") == 1, (name, outcome.stderr)
    assert sorted(tmp_path.iterdir()) == before


def test_official_branches_keep_their_merge(golden, tmp_path, skipdit):
    arguments = ["-m", golden("dit_skip").checkpoint, "--num-attention-heads", 4, "-o", tmp_path / "out"]
    outcome = skipdit("convert", *arguments, "--merge", "residual")
    assert outcome.code == 2 and "trained branches" in outcome.stderr


def test_outputs_that_cannot_be(tiny_pipeline, tmp_path, skipdit, monkeypatch):
    folder = tiny_pipeline()
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "out", folder):
        assert skipdit("convert", folder, "-o", target).code == 2
    outcome = skipdit("convert", folder, "-o", folder, "--overwrite")
    assert outcome.code == 2 and "the model itself" in outcome.stderr
    assert skipdit("convert", folder).code == 2

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    outcome = skipdit("convert", folder, "-o", tmp_path / "out")
    assert outcome.code == 1 and "No space left" in outcome.stderr and outcome.exception is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny"]
    assert load_pipeline(folder)
