"""Folders as the hub has them: DiT and PixArt under their former class name, weights in one variant alone."""

import json

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from skipdit_cli import (
    add_skip_branches,
    disable_skip_cache,
    enable_skip_cache,
    load_pipeline,
    load_skip_branches,
    remove_skip_branches,
    unload_skip_branches,
)
from skipdit_cli.cache import CachePolicy
from tests.support.pipeline_parts import tiny_vae
from tests.support.tiny_transformers import tiny

FORMER = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 8,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 2,
    "num_embeds_ada_norm": 1000,
    "num_layers": 4,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 8,
    "upcast_attention": False,
    "use_linear_projection": False,
}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.12.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "trained_betas": None,
}
INDEX = {
    "_class_name": "DiTPipeline",
    "_diffusers_version": "0.12.0.dev0",
    "id2label": {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus", "999": "toilet tissue"},
    "scheduler": ["diffusers", "DDIMScheduler"],
    "transformer": ["diffusers", "Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
STEM = "diffusion_pytorch_model"


def write(path, data) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2))


@pytest.fixture
def hub(tiny_dit, tmp_path):
    """A folder laid out as facebook/DiT-XL-2-256 is: its configs key for key, pickled weights, tiny."""
    folder = tmp_path / "hub"
    model = tiny_dit(num_layers=4, in_channels=4, out_channels=8, num_embeds_ada_norm=1000, norm_eps=1e-5)
    write(folder / "model_index.json", INDEX)
    write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write(folder / "transformer" / "config.json", FORMER)
    torch.save(model.state_dict(), folder / "transformer" / f"{STEM}.bin")
    vae = tiny_vae()
    vae.save_config(folder / "vae")
    torch.save(vae.state_dict(), folder / "vae" / f"{STEM}.bin")
    return folder


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data" / "0").mkdir(parents=True)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / "0" / "a.png")
    return ["--data", tmp_path / "data", "--max-train-steps", 1, "--train-batch-size", 1]


def classes_in(folder) -> tuple[str, str]:
    index = json.loads((folder / "model_index.json").read_text())
    return index["transformer"][1], json.loads((folder / "transformer" / "config.json").read_text())["_class_name"]


def test_the_first_workflow_of_the_readme(hub, data, skipdit, tmp_path):
    """Sample, convert, both stages of finetune, and bench of what the hub has."""
    expected = torch.load(hub / "transformer" / f"{STEM}.bin", weights_only=True)
    assert skipdit("info", hub, "--json").json["class"] == "DiTTransformer2DModel"
    for name in ("Tinca tinca", "999"):
        sampled = skipdit("sample", "-m", hub, "--class-labels", name, "--steps", 2, "-o", tmp_path / f"{name}.png")
        assert sampled.code == 0, sampled.stderr
    refused = skipdit("finetune", "-m", hub, *data, "-o", tmp_path / "none")
    assert refused.code == 2 and "skipdit convert" in refused.stderr
    converted, stages = tmp_path / "dit", [tmp_path / "stage1", tmp_path / "stage2"]
    outcome = skipdit("convert", hub, "-o", converted, "--json")
    assert outcome.code == 0 and outcome.json["bitwise_equal"], outcome.stderr
    for model, stage, part in ((converted, stages[0], "skip"), (stages[0], stages[1], "all")):
        outcome = skipdit("finetune", "-m", model, *data, "-o", stage, "--train", part)
        assert outcome.code == 0, outcome.stderr
    for folder in (converted, *stages):
        assert classes_in(folder) == ("DiTTransformer2DModel", "DiTTransformer2DModel")
        assert json.loads((folder / "model_index.json").read_text())["id2label"] == INDEX["id2label"]
        assert not set(FORMER) - set(json.loads((folder / "transformer" / "config.json").read_text())) - {
            "cross_attention_dim", "num_vector_embeds", "only_cross_attention", "use_linear_projection",
        }  # fmt: skip
    for folder in (converted, stages[0]):
        kept = load_file(folder / "transformer" / f"{STEM}.safetensors")
        assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())
    sampled = skipdit("sample", "-m", stages[1], "--class-labels", "goldfish", "--steps", 2, "-o", tmp_path / "b.png")
    assert sampled.code == 0, sampled.stderr
    benched = skipdit("bench", "-m", converted, "--cache-layers", 1, "--cache-interval", 2, "--steps", 2,
                      "--rounds", 1, "--batch-size", 1, "--no-exact")  # fmt: skip
    assert benched.code == 0, benched.stderr


def test_the_whole_of_it_can_be_trained_without_branches(hub, data, skipdit, tmp_path):
    outcome = skipdit("finetune", "-m", hub, *data, "-o", tmp_path / "run", "--train", "all")
    assert outcome.code == 0, outcome.stderr
    assert classes_in(tmp_path / "run") == ("DiTTransformer2DModel", "DiTTransformer2DModel")


def test_what_was_written_loads_in_diffusers_without_a_word(hub, skipdit, tmp_path, caplog, recwarn):
    from diffusers.utils import logging as library

    write(
        hub / "model_index.json", {key: value for key, value in INDEX.items() if key != "id2label"}
    )  # it warns of any
    assert skipdit("convert", hub, "-o", tmp_path / "dit", "--no-verify").code == 0
    library.enable_propagation()
    plain = diffusers.DiTPipeline.from_pretrained(tmp_path / "dit")
    library.disable_propagation()
    assert not [record for record in caplog.records if record.name.startswith("diffusers")]
    assert type(plain.transformer) is diffusers.DiTTransformer2DModel


@pytest.mark.parametrize(
    ("config", "index"),
    [
        ("Transformer2DModel", "Transformer2DModel"),
        ("Transformer2DModel", "DiTTransformer2DModel"),
        ("DiTTransformer2DModel", "Transformer2DModel"),
    ],
)
def test_either_file_may_say_the_former_name(config, index, hub, skipdit, tmp_path):
    write(hub / "model_index.json", {**INDEX, "transformer": ["diffusers", index]})
    write(hub / "transformer" / "config.json", {**FORMER, "_class_name": config})
    outcome = skipdit("convert", hub, "-o", tmp_path / "dit")
    assert outcome.code == 0, outcome.stderr
    assert classes_in(tmp_path / "dit") == ("DiTTransformer2DModel", "DiTTransformer2DModel")


def test_a_lone_transformer_of_the_former_name(hub, skipdit, tmp_path):
    outcome = skipdit("convert", hub / "transformer", "-o", tmp_path / "dit")
    assert outcome.code == 0, outcome.stderr
    assert classes_in(tmp_path / "dit") == ("DiTTransformer2DModel", "DiTTransformer2DModel")
    model = tiny("PixArtTransformer2DModel")
    model.save_pretrained(tmp_path / "pixart")
    config = json.loads((tmp_path / "pixart" / "config.json").read_text())
    write(
        tmp_path / "pixart" / "config.json", {**config, "_class_name": "Transformer2DModel", "num_vector_embeds": None}
    )
    assert skipdit("info", tmp_path / "pixart", "--json").json["class"] == "PixArtTransformer2DModel"
    outcome = skipdit("convert", tmp_path / "pixart", "-o", tmp_path / "alone")
    assert outcome.code == 0, outcome.stderr
    written = json.loads((tmp_path / "alone" / "config.json").read_text())
    assert written["_class_name"] == "PixArtTransformer2DModel" and "num_vector_embeds" not in written


@pytest.mark.parametrize("norm_type", ["layer_norm", None, 3])
def test_another_model_of_that_class_is_none_of_these(norm_type, hub, skipdit, tmp_path):
    write(hub / "transformer" / "config.json", {**FORMER, "norm_type": norm_type})
    outcome = skipdit("convert", hub, "-o", tmp_path / "dit")
    assert outcome.code == 2 and outcome.exception is None and "Transformer2DModel" in outcome.stderr, outcome.stderr
    assert outcome.stderr.count("\n") == 1 and not (tmp_path / "dit").exists()


def test_a_plain_pipeline_of_the_former_class_takes_cache_and_branches(hub, skipdit, tmp_path):
    assert skipdit("convert", hub, "-o", tmp_path / "dit", "--no-verify").code == 0
    pipe = diffusers.DiTPipeline.from_pretrained(hub)
    pipe.set_progress_bar_config(disable=True)
    cache = enable_skip_cache(pipe, "balanced")
    pipe([1], num_inference_steps=12)
    assert cache.report().reused_steps == 12 - 8
    disable_skip_cache(pipe)
    assert load_skip_branches(pipe, tmp_path / "dit").merge == "residual"
    unload_skip_branches(pipe)
    assert not hasattr(pipe.transformer, "skip_branches")


@torch.no_grad()
def test_an_instance_of_the_former_class_is_declared():
    """diffusers still makes one where it is asked for by name."""
    own = {key: value for key, value in FORMER.items() if not key.startswith("_")}
    torch.manual_seed(0)
    model = diffusers.Transformer2DModel(**{**own, "num_embeds_ada_norm": 10}).eval()
    assert type(model).__name__ == "Transformer2DModel"
    given = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }
    before = model(**given).sample
    branches = add_skip_branches(model)
    assert branches.config.backbone == "DiTTransformer2DModel" and torch.equal(model(**given).sample, before)
    cache = enable_skip_cache(model, CachePolicy(layers=1))
    model(**given), model(**given)
    assert cache.trace == ["full", "reused"]
    other = diffusers.DiTTransformer2DModel(**{k: v for k, v in own.items() if k in dit_arguments()}).eval()
    add_skip_branches(other, branches=remove_skip_branches(model))


def dit_arguments() -> set[str]:
    import inspect

    return set(inspect.signature(diffusers.DiTTransformer2DModel.__init__).parameters)


def into_variant(part, variant: str, former: bool = False) -> None:
    """Rename the weights of a part as diffusers' ``save_pretrained(variant=...)`` would have named them."""
    for file in part.iterdir():
        name = file.name
        if name.endswith(".index.json"):
            index = json.loads(file.read_text())
            index["weight_map"] = {key: varied(value, variant, former) for key, value in index["weight_map"].items()}
            write(file, index)
            ending = f".{variant}.index.json" if former else f".index.{variant}.json"
            file.rename(part / name.replace(".index.json", ending))
        elif name.endswith((".safetensors", ".bin")):
            file.rename(part / varied(name, variant, former))


def varied(name: str, variant: str, former: bool) -> str:
    stem, suffix = name.rsplit(".", 1)
    whole = stem if former or "-" not in stem else stem.split("-", 1)[0]
    shard = stem.removeprefix(whole)
    return f"{whole}.{variant}{shard}.{suffix}"


@pytest.mark.parametrize(
    ("variant", "sharded", "former"), [("fp16", False, False), ("bf16", True, False), ("ema", True, True)]
)
def test_weights_of_one_variant_alone_are_read_by_every_command(
    variant, sharded, former, tiny_dit, hub, data, skipdit, tmp_path
):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(variant, torch.float32)
    model = torch.nn.Module.to(tiny_dit(num_layers=4, in_channels=4, out_channels=8), dtype)
    for name in ("transformer", "vae"):
        part = hub / name
        (part / f"{STEM}.bin").unlink()
        saved = model if name == "transformer" else torch.nn.Module.to(tiny_vae(), dtype)
        saved.save_pretrained(part, max_shard_size="40KB" if sharded else "10GB")
        assert sharded == (len(list(part.glob("*.safetensors"))) > 1)
        into_variant(part, variant, former)
    sampled = skipdit("sample", "-m", hub, "--class-labels", 3, "--steps", 1, "-o", tmp_path / "a.png")
    assert sampled.code == 0, sampled.stderr
    loaded = load_pipeline(hub, dtype=dtype)
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.transformer.state_dict().items()
    )
    for source, target in ((hub, "whole"), (hub / "transformer", "lone")):
        outcome = skipdit("convert", source, "-o", tmp_path / target)
        assert outcome.code == 0 and f"({variant} weights)" in outcome.stdout, outcome.stderr
    plain = diffusers.DiTPipeline.from_pretrained(tmp_path / "whole", torch_dtype=dtype)
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in plain.transformer.state_dict().items()
    )
    outcome = skipdit("finetune", "-m", hub, *data, "--train", "all", "-o", tmp_path / "run")
    assert outcome.code == 0, outcome.stderr
    diffusers.DiTPipeline.from_pretrained(tmp_path / "run")
    decoder = skipdit("convert", hub / "transformer", "-o", tmp_path / "again", "--vae", hub / "vae")
    assert decoder.code == 0, decoder.stderr


def test_what_a_system_leaves_beside_a_model_is_passed_over(hub, skipdit, tmp_path):
    """macOS puts ``._config.json`` beside each file on a disk of another system; and a config may name no origin."""
    for part in ("transformer", "scheduler"):
        for file in list((hub / part).iterdir()):
            (hub / part / f"._{file.name}").write_bytes(b"\x00\x05\x16\x07")
    config = json.loads((hub / "transformer" / "config.json").read_text())
    write(hub / "transformer" / "config.json", {**config, "_name_or_path": None})

    for command in (
        ("convert", hub, "-o", tmp_path / "dit"),
        ("sample", "-m", tmp_path / "dit", "--class-labels", 1, "--steps", 1, "-o", tmp_path / "a.png"),
        ("info", hub),
    ):
        assert (ended := skipdit(*command)).code == 0, ended.stderr


def test_weights_without_a_variant_go_first_and_several_are_ambiguous(tiny_pipeline, skipdit, tmp_path):
    folder = tiny_pipeline()
    weights = folder / "transformer" / f"{STEM}.safetensors"
    (folder / "transformer" / f"{STEM}.fp16.safetensors").write_bytes(weights.read_bytes())
    outcome = skipdit("convert", folder, "-o", tmp_path / "out")
    assert outcome.code == 0 and "fp16" not in outcome.stdout, outcome.stderr
    assert not list((tmp_path / "out").rglob("*fp16*"))
    weights.rename(folder / "transformer" / f"{STEM}.ema.safetensors")
    for command in (["convert", folder, "-o", tmp_path / "two"], ["sample", "-m", folder, "-o", tmp_path / "a.png"]):
        outcome = skipdit(*command)
        assert outcome.code == 2 and "variants ema, fp16" in outcome.stderr, outcome.stderr


def test_a_variant_is_asked_for_where_the_hub_has_nothing_else(monkeypatch, tiny_pipeline):
    import huggingface_hub

    from skipdit_cli.models import hub as pipeline

    folder, asked = tiny_pipeline(), []
    files = ["model_index.json", f"transformer/{STEM}.fp16.safetensors", "vae/config.json"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, *args, **kwargs: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: folder / "model_index.json")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    monkeypatch.setattr(pipeline, "is_local", lambda arguments: False)
    monkeypatch.setattr(
        pipeline.pipeline_class("", {"_class_name": "DiTPipeline"}),
        "download",
        lambda *args, **kwargs: asked.append(kwargs.get("variant")) or str(folder),
    )
    assert pipeline.find_folder("someone/model") == folder
    files[1] = f"transformer/{STEM}.safetensors"
    assert pipeline.find_folder("someone/model") == folder
    assert asked == ["fp16", None]


def test_text_parts_of_one_variant(text_pipeline, tmp_path, skipdit):
    import shutil

    shutil.copytree(text_pipeline, tmp_path / "text")
    for part in ("transformer", "vae", "text_encoder"):
        into_variant(tmp_path / "text" / part, "fp16")
    sampled = skipdit("sample", "-m", tmp_path / "text", "--prompt", "a cat", "--steps", 1, "-o", tmp_path / "a.gif")
    assert sampled.code == 0, sampled.stderr
    assert skipdit("convert", tmp_path / "text", "-o", tmp_path / "out").code == 0
    assert not list((tmp_path / "out").rglob("*fp16*"))
    diffusers.LattePipeline.from_pretrained(tmp_path / "out")
