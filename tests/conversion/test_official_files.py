"""What official files may look like: wrappers, prefixes, moving averages, label tables with and without a last row."""

import argparse
import json

import pytest
import torch

from skipdit_cli import load_pipeline
from skipdit_cli.sampling.generate import generate

TABLE = "y_embedder.embedding_table.weight"
NULL = 10


@pytest.fixture(scope="session")
def states(golden):
    """``states("dit")``: the state dict of a golden checkpoint, not to be changed."""

    def read(name: str = "dit") -> dict:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(golden(name).checkpoint, weights_only=True)["ema"]

    return read


@pytest.fixture
def convert(golden, skipdit, tmp_path):
    """``convert(data, *flags)``: the outcome of converting a file that holds ``data``, to the folder ``out``."""

    def run(data, *flags, case="dit"):
        torch.save(data, tmp_path / "file.pt")
        architecture = golden(case).architecture
        heads = architecture.get("num_heads") or architecture["num_attention_heads"]
        given = ["-m", tmp_path / "file.pt", "-o", tmp_path / "out", "--num-attention-heads", heads, "--no-verify"]
        return skipdit("convert", *given, "--overwrite", *flags)

    return run


def weights(folder) -> dict:
    return {name: tensor for name, tensor in load_pipeline(folder, branches=False).transformer.state_dict().items()}


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_forward_module.module.model."]


def behind(prefix: str):
    def make(state: dict, worse: dict) -> dict:
        return {key: {prefix + n: t for n, t in own.items()} for key, own in (("model", worse), ("ema", state))}

    return make


def inside(state: dict, worse: dict) -> dict:
    """Blocks that were compiled or checkpointed one by one."""
    return {
        name.replace("blocks.0.", "blocks.0._orig_mod._checkpoint_wrapped_module."): t for name, t in state.items()
    }


FILES = {
    **{prefix: (behind(prefix), f"'ema' weights, named behind '{prefix}'") for prefix in PREFIXES},
    "blocks": (inside, "bare state dict"),
    "state_dict": (lambda state, worse: {"state_dict": state, "epoch": 3}, "'state_dict' weights"),
    "model_state_dict": (lambda state, worse: {"model_state_dict": state}, "'model_state_dict' weights"),
    "beside numbers": (
        lambda state, worse: {**behind("module.")(state, worse)["ema"], "n_averaged": torch.tensor(3), "step": 4},
        "Left aside: 1 tensors that are not behind 'module.'",
    ),
    "empty average": (lambda state, worse: {"model": state, "ema": {}}, "Its 'ema' holds no weights"),
    "average of nothing": (lambda state, worse: {"model": state, "ema": None}, "Its 'ema' holds no weights"),
    "unnamed average": (
        lambda state, worse: {"model": state, "ema": {"decay": 0.9, "shadow_params": list(worse.values())}},
        "weights without names (shadow_params)",
    ),
    "shadow": (lambda state, worse: {"model": worse, "ema": {"decay": 0.9, "shadow": state}}, "'ema.shadow' weights"),
    "trained only": (
        lambda state, worse: {
            "model": {**worse, "pos_embed": state["pos_embed"]},
            "ema": {name: tensor for name, tensor in state.items() if name != "pos_embed"},
        },
        "Taken from 'model' weights, for the average has none: pos_embed.",
    ),
    "lightning": (
        lambda state, worse: {
            "state_dict": {
                **{f"net.{name}": tensor for name, tensor in worse.items()},
                **{f"ema_net.{name}": tensor for name, tensor in state.items()},
                "vae.conv.weight": torch.ones(1),
            }
        },
        "named behind 'ema_net.'",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_it_is_read_and_said_what(kind, states, convert, golden_pipeline, tmp_path):
    state = states()
    make, said = FILES[kind]
    outcome = convert(make(state, {name: tensor + 1 for name, tensor in state.items()}))
    assert outcome.code == 0, outcome.stderr
    assert said in outcome.stdout
    expected, read = weights(golden_pipeline("dit")), weights(tmp_path / "out")
    assert expected.keys() == read.keys() and all(torch.equal(read[name], expected[name]) for name in read)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda state: {"ema": {"shadow_params": list(state.values())}}, "have no names"),
        (lambda state: {"shadow_params": list(state.values()), "decay": 0.9}, "have no names"),
        (lambda state: {"model": {}, "ema": {}}, "no state dict"),
        (lambda state: {**state, **{f"_orig_mod.{name}": tensor for name, tensor in state.items()}}, "twice"),
    ],
)
def test_what_has_no_weights_by_name_is_refused(make, said, states, convert, tmp_path):
    outcome = convert(make(states()))
    assert outcome.code == 2 and said in outcome.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("case", "name"), [("dit", "pos_embed"), ("latte_cond", "pos_embed"), ("latte_cond", "temp_embed")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_table_that_an_average_moved_is_replaced_by_the_exact_one(case, name, dtype, states, convert, tmp_path):
    state = states(case)
    for off, code in ((1.6e-4, 0), (9e-4, 0), (2e-3, 2)):
        moved = state[name].to(dtype, copy=True)
        moved[0, 0, 0] += off
        outcome = convert({"ema": {**state, name: moved}}, case=case)
        assert outcome.code == code, outcome.stderr
        assert outcome.stdout.count(f"{name} is ") == (code == 0)
    assert "Positions" not in convert({"ema": state}, case=case).stdout


def test_thousands_of_updates_of_an_average_are_within_bounds(states, convert):
    state = states()
    table = state["pos_embed"].clone()
    for _ in range(5000):
        table.mul_(0.9999).add_(state["pos_embed"], alpha=1 - 0.9999)
    assert 5e-5 < (table - state["pos_embed"]).abs().max() < 5e-4
    assert convert({"ema": {**state, "pos_embed": table}}).code == 0


def arguments(**said) -> dict:
    return {"args": argparse.Namespace(model="DiT-S/2", **said)}


TABLES = {
    "with a row for none": (11, arguments(num_classes=10), [], 10, True),
    "without": (11, arguments(num_classes=11), [], 11, False),
    "one class": (1, arguments(num_classes=1), [], 1, False),
    "one row, nothing said": (1, {}, [], 1, False),
    "labels never dropped": (11, arguments(class_dropout_prob=0.0), [], 11, False),
    "labels dropped": (11, arguments(class_dropout_prob=0.1), [], 10, True),
    "arguments in a dict": (11, {"args": {"num_classes": 11}}, [], 11, False),
    "nothing said": (11, {}, [], 10, True),
    "flag": (11, {}, ["--num-classes", 11], 11, False),
    "flag over arguments": (11, arguments(num_classes=1000), ["--num-classes", 10], 10, True),
    "no table": (None, {}, [], 1, False),
}


@pytest.mark.parametrize("kind", TABLES)
def test_classes_are_counted(kind, states, convert, tmp_path):
    rows, said, flags, number, has_null = TABLES[kind]
    state = states()
    table = state.pop(TABLE)
    if rows is not None:
        state[TABLE] = table[:rows]
    outcome = convert({"ema": state, **said}, *flags)
    assert outcome.code == 0, outcome.stderr
    assert f"Classes: {number} and {'a' if has_null else 'no'} row for the null class" in outcome.stdout
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert config["num_embeds_ada_norm"] == number and config.get("_null_class", True) == has_null
    kept = weights(tmp_path / "out")["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    assert kept.shape[0] == number + 1
    assert torch.equal(kept[:rows], table[:rows]) if rows else not kept.any()


@pytest.mark.parametrize(
    ("said", "flags", "sentence"),
    [
        (arguments(num_classes=1000), [], "its args say 1000 classes; give --num-classes 10 if"),
        ({}, ["--num-classes", 12], "a label table of 11 rows"),
    ],
)
def test_a_table_of_another_size_is_refused(said, flags, sentence, states, convert, tmp_path):
    outcome = convert({"ema": states(), **said}, *flags)
    assert outcome.code == 2 and sentence in outcome.stderr and not (tmp_path / "out").exists()


@pytest.fixture
def eleven(states, convert, tmp_path):
    """A converted model of eleven classes and no row for none."""
    assert convert({"ema": states(), **arguments(num_classes=11)}).code == 0
    return tmp_path / "out"


def test_the_last_class_is_sampled_and_nothing_guides(eleven, skipdit, tmp_path):
    sampled = skipdit("sample", "-m", eleven, "--class-labels", "10", "--steps", 2, "-o", tmp_path / "s", "--json")
    assert sampled.code == 0 and sampled.json["settings"]["guidance_scale"] == 1.0, sampled.stderr
    for command, more in (("sample", ["-o", tmp_path / "t"]), ("bench", ["--cache-layers", 1])):
        refused = skipdit(command, "-m", eleven, "--class-labels", "0", "--guidance-scale", 2, *more)
        assert refused.code == 2 and "no null class" in refused.stderr, (refused.stdout, refused.stderr)
    pipe = load_pipeline(eleven)
    with pytest.raises(Exception, match="no null class"):
        pipe([0], guidance_scale=2.0)
    assert len(pipe([10, 0], num_inference_steps=1).images) == 2
    benched = skipdit("bench", "-m", eleven, "--cache-layers", 1, "--cache-interval", 2, "--steps", 2, "--rounds", 1,
                      "--batch-size", 1, "--no-exact", "--json")  # fmt: skip
    assert benched.code == 0 and benched.json["guidance_scale"] == 1.0, benched.stderr


def test_its_labels_are_not_dropped_and_what_is_trained_says_the_same(eleven, skipdit, tmp_path):
    from diffusers import AutoencoderKL
    from PIL import Image

    pipe = load_pipeline(eleven, vae=AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4))
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "data" / "10").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "10" / "a.png")
    run = ["finetune", "-m", tmp_path / "model", "--data", tmp_path / "data", "--train", "all"]
    run += ["--max-train-steps", 1, "--train-batch-size", 2, "--validation-steps", 1]
    refused = skipdit(*run, "-o", tmp_path / "refused", "--label-dropout", 0.2)
    assert refused.code == 2 and "no null class to train" in refused.stderr and not (tmp_path / "refused").exists()
    trained = skipdit(*run, "-o", tmp_path / "trained")
    assert trained.code == 0 and "none is dropped" in trained.stdout, trained.stderr
    assert len(list((tmp_path / "trained" / "samples").glob("*.png"))) == 2 and "grid" not in trained.stderr
    config = load_pipeline(tmp_path / "trained").transformer.config
    assert config.num_embeds_ada_norm == 11 and config["_null_class"] is False


def test_a_model_trained_without_dropped_labels_is_not_guided(skipdit, tmp_path, fresh_accelerate):
    run = ["--preset", "digits", "--label-dropout", 0, "--max-train-steps", 1, "--train-batch-size", 1]
    assert skipdit("train", *run, "-o", tmp_path / "run").code == 0
    refused = skipdit("sample", "-m", tmp_path / "run", "--guidance-scale", 2, "-o", tmp_path / "a.png")
    assert refused.code == 2 and "no null class" in refused.stderr


def test_a_latte_without_a_row_for_none(states, convert, tmp_path):
    outcome = convert({"ema": states("latte_cond")}, "--num-classes", 11, case="latte_cond")
    assert outcome.code == 0 and "Classes: 11 and no row" in outcome.stdout, outcome.stderr
    made = generate(load_pipeline(tmp_path / "out"), [10], num_inference_steps=1, decode=False)
    assert made.latents.isfinite().all()
