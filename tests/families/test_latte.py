"""Latte: the class-conditional model, its official files at every depth, and branches and cache on both Lattes."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import LatteTransformer3DModel
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid, get_2d_sincos_pos_embed

from skipdit_cli import (
    CachePolicy,
    LatteClassTransformer3DModel,
    add_skip_branches,
    disable_skip_cache,
    enable_skip_cache,
    load_pipeline,
    remove_skip_branches,
)
from skipdit_cli.families.example import example_inputs
from skipdit_cli.models import random_pipeline, save_pipeline
from skipdit_cli.planning.flops import StepFlops, meta_transformer
from skipdit_cli.presets import Preset
from tests.support.measurements import relative_l2

CLASS_CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2, "out_channels": 4, "sample_size": 8,
    "patch_size": 4, "num_embeds_ada_norm": 5, "video_length": 3,
}  # fmt: skip
TEXT_CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2, "out_channels": 4, "sample_size": 8,
    "patch_size": 4, "video_length": 3, "caption_channels": 6, "cross_attention_dim": 16, "attention_bias": True,
    "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False, "norm_eps": 1e-6,
}  # fmt: skip
MODELS = {"class": (LatteClassTransformer3DModel, CLASS_CONFIG), "text": (LatteTransformer3DModel, TEXT_CONFIG)}


def make(kind, num_layers=5, **config):
    """A seeded model of random weights, and arguments for two videos."""
    torch.manual_seed(0)
    model_class, own = MODELS[kind]
    model = model_class(num_layers=num_layers, **{**own, **config}).eval()
    inputs = example_inputs(model, batch=2)
    inputs["hidden_states"].normal_()
    inputs["timestep"] += torch.tensor([30, 800])
    if kind == "text":
        inputs["encoder_hidden_states"] = torch.randn(2, 4, 6)
    elif "class_labels" in inputs:
        inputs["class_labels"] += torch.tensor([1, 5])
    return model, inputs


def run(model, inputs, **changed):
    with torch.no_grad():
        return model(**{**inputs, **changed}, return_dict=False)[0]


def train_a_little(branches):
    torch.manual_seed(1)
    for parameter in branches.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return branches


# Official files of any depth, against arithmetic of our own


def official_state(depth, width, frames, side, channels, classes=None, skip=False, patch=2, ratio=4, seed=0):
    """A random state dict under the names of the official code."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def linear(name, out, into):
        state[f"{name}.weight"] = torch.randn(out, into, generator=generator) * into**-0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(out, generator=generator)

    linear("x_embedder.proj", width, channels * patch**2)
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"].unflatten(1, (channels, patch, patch))
    linear("t_embedder.mlp.0", width, 256)
    linear("t_embedder.mlp.2", width, width)
    if classes:
        state["y_embedder.embedding_table.weight"] = torch.randn(classes + 1, width, generator=generator)
    state["pos_embed"] = get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt").float()[None]
    times = get_1d_sincos_pos_embed_from_grid(width, torch.arange(frames), output_type="pt")
    state["temp_embed"] = times.float()[None]
    for i in range(depth):
        linear(f"blocks.{i}.attn.qkv", 3 * width, width)
        linear(f"blocks.{i}.attn.proj", width, width)
        linear(f"blocks.{i}.mlp.fc1", ratio * width, width)
        linear(f"blocks.{i}.mlp.fc2", width, ratio * width)
        linear(f"blocks.{i}.adaLN_modulation.1", 6 * width, width)
    for k in range(depth // 4 if skip else 0):
        state[f"skip_norms.{k}.weight"] = 1 + 0.2 * torch.randn(2 * width, generator=generator)
        state[f"skip_norms.{k}.bias"] = 0.2 * torch.randn(2 * width, generator=generator)
        linear(f"skip_linears.{k}.linear", width, 2 * width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    linear("final_layer.linear", 2 * channels * patch**2, width)
    return state


def official_forward(state, heads, x, t, y=None):
    """What the weights mean, in plain arithmetic: x (N, F, C, H, W) to (N, F, 2C, H, W)."""
    n, f, c, h, w = x.shape
    width, _, p, _ = state["x_embedder.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (variance + 1e-6).sqrt()

    frequencies = 10000 ** (-torch.arange(128) / 128)
    angles = t[:, None] * frequencies
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], -1))))
    if y is not None:
        c = c + state["y_embedder.embedding_table.weight"][y]
    c = F.silu(c)[:, None, None]  # beside x (N, F, T, D)

    def attention(name, x):
        q, k, v = linear(f"{name}.attn.qkv", x).unflatten(-1, (3, heads, -1)).unbind(-3)
        scores = torch.einsum("abihd,abjhd->abhij", q, k) * (width // heads) ** -0.5
        return linear(f"{name}.attn.proj", torch.einsum("abhij,abjhd->abihd", scores.softmax(-1), v).flatten(-2))

    patches = x.reshape(n, f, -1, h // p, p, w // p, p).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)
    x = F.linear(patches, state["x_embedder.proj.weight"].flatten(1), state["x_embedder.proj.bias"])
    x = x + state["pos_embed"]
    sources = []
    for i in range(depth):
        if i % 2 == 0 and i >= depth // 2 and "skip_norms.0.weight" in state:
            k = (i - depth // 2) // 2
            both = norm(torch.cat([x, sources.pop()], -1))
            both = both * state[f"skip_norms.{k}.weight"] + state[f"skip_norms.{k}.bias"]
            x = linear(f"skip_linears.{k}.linear", both)
        if i == 1:
            x = x + state["temp_embed"][:, :, None]
        x = x.transpose(1, 2) if i % 2 else x
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, -1)
        x = x + gate1 * attention(f"blocks.{i}", norm(x) * (1 + scale1) + shift1)
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(x) * (1 + scale2) + shift2), approximate="tanh")
        x = x + gate2 * linear(f"blocks.{i}.mlp.fc2", hidden)
        x = x.transpose(1, 2) if i % 2 else x
        if i % 2 and i < depth // 2:
            sources.append(x)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, -1)
    x = linear("final_layer.linear", norm(x) * (1 + scale) + shift)
    return x.reshape(n, f, h // p, w // p, p, p, -1).permute(0, 1, 6, 2, 4, 3, 5).reshape(n, f, -1, h, w)


@pytest.mark.parametrize(
    "depth, width, heads, frames, classes, skip",
    [
        (12, 24, 3, 5, 7, True),
        (12, 24, 3, 5, None, True),
        (16, 16, 2, 2, 3, True),
        (24, 16, 4, 3, 3, True),
        (4, 16, 2, 1, 3, True),
        (10, 16, 4, 3, 3, False),
    ],
)
def test_official_files_of_any_depth(depth, width, heads, frames, classes, skip, tmp_path, skipdit):
    state = official_state(depth, width, frames, side=3, channels=3, classes=classes, skip=skip)
    torch.save({"ema": state}, tmp_path / "latte.pt")
    flags = ["--num-attention-heads", heads, "--json"]
    outcome = skipdit("convert", tmp_path / "latte.pt", "-o", tmp_path / "out", *flags)
    assert outcome.code == 0, outcome.stderr
    assert (outcome.json["blocks"], outcome.json["pairs"]) == (depth // 2, depth // 4)
    assert outcome.json["merge"] == ("replace" if skip else "residual")
    transformer = load_pipeline(tmp_path / "out").transformer
    x = torch.randn(2, frames, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([3, 977]), None if classes is None else torch.tensor([0, classes])
    out = run(transformer, {"hidden_states": x.transpose(1, 2), "timestep": t, "class_labels": y})
    assert relative_l2(out.transpose(1, 2), official_forward(state, heads, x, t, y)) < 1e-4


def test_that_arithmetic_is_the_official_codes(golden):
    case = golden("latte_skip_cond")
    state = torch.load(case.checkpoint, weights_only=True)["ema"]
    out = official_forward(state, case.architecture["num_heads"], case.io["x"], case.io["t"], case.io["y"])
    assert relative_l2(out, case.io["out_forward"]) < 1e-4


@pytest.mark.parametrize("width, heads", [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_standard_widths_need_no_head_count(width, heads, tmp_path, skipdit):
    state = official_state(4, width, frames=2, side=2, channels=1, ratio=1)
    torch.save(state, tmp_path / "latte.pt")
    assert skipdit("convert", tmp_path / "latte.pt", "-o", tmp_path / "out", "--no-verify").code == 0
    config = json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())
    assert (config["num_attention_heads"], config["mlp_ratio"]) == (heads, 1.0)


def test_the_released_size_has_the_released_number_of_parameters():
    model = meta_transformer(LatteClassTransformer3DModel, {"out_channels": 8}, "replace")
    tables = model.pos_embed.pos_embed.numel() + model.temp_pos_embed.numel()
    assert sum(p.numel() for p in model.parameters()) + tables == 692_614_688  # ffs-skip.pt


LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
BLOCK_NAMES = [f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]


BAD = {  # name: changes of a state dict (None: left out), flags, part of the sentence
    "one pair": ({f"blocks.{i}.{name}": None for i in (2, 3) for name in BLOCK_NAMES}, [], "too few"),
    "a part missing": ({"blocks.3.adaLN_modulation.1.bias": None}, [], "lacks blocks.3.adaLN_modulation.1.bias"),
    "wrong heads": ({}, ["--num-attention-heads", 3], "does not divide"),
    "odd depth": ({"blocks.4.attn.proj.bias": torch.zeros(16)}, [], "5 blocks, but a Latte has pairs"),
    "moved frames": ({"temp_embed": torch.zeros(1, 3, 16)}, [], "temp_embed"),
    "narrow frames": ({"temp_embed": torch.zeros(1, 3, 8)}, [], "temp_embed of width 8"),
    "flat frames": ({"temp_embed": torch.zeros(3, 16)}, [], "another shape of temp_embed"),
    "text": ({"text_embedding_projection.1.weight": torch.zeros(16, 8)}, [], "which a Latte has not"),
    "partial branches": ({"skip_norms.0.weight": torch.zeros(32)}, [], "does not fit a SkipBranches"),
    "branches beyond": ({"skip_norms.7.weight": torch.zeros(32)}, [], "does not fit a SkipBranches"),
    "frames given": ({}, ["--num-frames", 3], "tells that itself"),
    "size given": ({}, ["--sample-size", 8], "tells that itself"),
    "time": ({}, ["--time-embedding", "diffusers"], "official one alone"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_official_files(name, tmp_path, skipdit):
    changed, flags, said = BAD[name]
    state = official_state(4, 16, frames=3, side=2, channels=1)
    state = {name: tensor for name, tensor in {**state, **changed}.items() if tensor is not None}
    torch.save(state, tmp_path / "latte.pt")
    outcome = skipdit("convert", tmp_path / "latte.pt", "-o", tmp_path / "out", "--num-attention-heads", 2, *flags)
    assert outcome.code == 2 and outcome.exception is None, outcome
    assert said in outcome.stderr and outcome.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_branches_on_an_odd_number_of_pairs_are_not_of_the_official_form(tmp_path, skipdit):
    torch.save(official_state(6, 16, frames=3, side=2, channels=1, skip=True), tmp_path / "latte.pt")
    outcome = skipdit("convert", tmp_path / "latte.pt", "-o", tmp_path / "out", "--num-attention-heads", 2)
    assert outcome.code == 2 and "3 pairs of blocks" in outcome.stderr


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--num-attention-heads"),
        (["--num-attention-heads", 2], "--sample-size"),
        (["--num-attention-heads", 2, "--sample-size", 8], "--num-frames"),
        (["--num-attention-heads", 2, "--sample-size", 7, "--num-frames", 3], "patches of 2"),
        (["--num-attention-heads", 5, "--sample-size", 8, "--num-frames", 3], "does not divide"),
    ],
)
def test_a_text_to_video_file_says_what_it_lacks(flags, said, golden, tmp_path, skipdit):
    outcome = skipdit("convert", golden("latte_t2v_skip").checkpoint, "-o", tmp_path / "out", *flags)
    assert outcome.code == 2 and said in outcome.stderr and not (tmp_path / "out").exists()


# The model


def test_labels_and_frames_are_checked():
    model, inputs = make("class")
    with pytest.raises(ValueError, match="no class_labels for a class-conditional"):
        run(model, inputs, class_labels=None)
    with pytest.raises(ValueError, match="4 frames but the model has positions for 3"):
        run(model, inputs, hidden_states=torch.randn(2, 2, 4, 8, 8))
    model, inputs = make("class", num_embeds_ada_norm=None)
    with pytest.raises(ValueError, match="class_labels for an unconditional"):
        run(model, inputs, class_labels=torch.tensor([0, 1]))


def test_fewer_frames_and_oblong_latents():
    model, inputs = make("class")
    out = run(model, inputs, hidden_states=torch.randn(2, 2, 2, 8, 16))
    assert out.shape == (2, 4, 2, 8, 16)


def test_frames_meet_in_temporal_blocks_alone():
    """What joint training on video and images rests on: images are frames of a call without temporal attention."""
    for kind in MODELS:
        model, inputs = make(kind)
        train_a_little(add_skip_branches(model, "replace"))
        together = run(model, inputs, enable_temporal_attentions=False)
        for frame in range(3):
            x = inputs["hidden_states"][:, :, frame : frame + 1]
            alone = run(model, inputs, hidden_states=x, enable_temporal_attentions=False)
            torch.testing.assert_close(together[:, :, frame : frame + 1], alone)
        assert not torch.allclose(run(model, inputs), together, atol=1e-3)


def test_the_model_saves_and_loads_like_any_diffusers_part(tmp_path):
    model, inputs = make("class", mlp_ratio=2.5)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(LatteClassTransformer3DModel.from_pretrained(tmp_path), inputs), run(model, inputs))
    assert not model.transformer_blocks[0].temporal and model.temporal_transformer_blocks[0].temporal


def test_half_precision_stays_close():
    model, inputs = make("class")
    expected = run(model, inputs)
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    out = run(torch.nn.Module.to(model, torch.bfloat16), half)
    assert out.dtype == torch.bfloat16 and relative_l2(out.float(), expected) < 0.05


# Branches and cache on both


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("changed", [{}, {"enable_temporal_attentions": False}], ids=["video", "images"])
def test_new_branches_change_no_bit_and_come_off(kind, changed):
    for num_layers in (4, 5):
        model, inputs = make(kind, num_layers)
        before, names = run(model, inputs, **changed), list(model.state_dict())
        branches = add_skip_branches(model)
        assert branches.num_pairs == 2 and torch.equal(run(model, inputs, **changed), before)
        train_a_little(branches)
        assert not torch.allclose(run(model, inputs, **changed), before, atol=1e-3)
        remove_skip_branches(model)
        assert torch.equal(run(model, inputs, **changed), before) and list(model.state_dict()) == names


@pytest.mark.parametrize("kind", MODELS)
def test_a_pair_joins_before_its_spatial_block_what_left_its_temporal_one(kind):
    model, inputs = make(kind, num_layers=5)
    branches = train_a_little(add_skip_branches(model, "replace"))
    seen = []
    for i, (spatial, temporal) in enumerate(zip(model.transformer_blocks, model.temporal_transformer_blocks)):
        spatial.register_forward_pre_hook(lambda _, args, i=i: seen.append((i, "spatial", args[0])))
        temporal.register_forward_pre_hook(lambda _, args, i=i: seen.append((i, "temporal", args[0])))
    joined = []
    forward = branches.forward
    branches.forward = lambda x, source, pair: joined.append((pair, x, source)) or forward(x, source, pair)
    run(model, inputs)
    assert [(i, kind) for i, kind, _ in seen] == [(i, kind) for i in range(5) for kind in ("spatial", "temporal")]
    inputs_of = {i: x for i, kind, x in seen if kind == "spatial"}
    assert [pair for pair, _, _ in joined] == [1, 0]
    for pair, x, source in joined:
        assert torch.equal(source, inputs_of[pair + 1]) and torch.equal(x, inputs_of[4 - pair])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("changed", [{}, {"enable_temporal_attentions": False}], ids=["video", "images"])
@pytest.mark.parametrize("target", ["boundary", "residual"])
def test_a_reused_step_at_the_same_input_is_the_full_one(kind, changed, target):
    model, inputs = make(kind)
    train_a_little(add_skip_branches(model))
    expected = run(model, inputs, **changed)
    ran = []
    for blocks in (model.transformer_blocks, model.temporal_transformer_blocks):
        for i, block in enumerate(blocks):
            block.ff.register_forward_hook(lambda *_, i=i: ran.append(i))
    cache = enable_skip_cache(model, CachePolicy(2, interval=3, target=target))
    ran.clear()
    for _ in range(3):
        assert torch.equal(run(model, inputs, **changed), expected)
    assert cache.trace == ["full", "reused", "reused"]
    lists = 1 if changed else 2
    assert sorted(ran) == sorted(lists * [0, 1, 2, 3, 4] + 2 * lists * [0, 1, 3, 4])
    boundary = cache.slots[0].boundary
    assert len(boundary) == 1 and boundary[0].numel() == 2 * 3 * 4 * 16


def test_turning_temporal_attention_off_is_another_run_for_the_cache():
    model, inputs = make("class")
    cache = enable_skip_cache(model, CachePolicy(1, interval=4))
    run(model, inputs)
    expected_off = run(copy.deepcopy(model), inputs, enable_temporal_attentions=False)
    assert torch.equal(run(model, inputs, enable_temporal_attentions=False), expected_off)
    assert cache.trace == ["full", "full"]
    disable_skip_cache(model)


@pytest.mark.parametrize("kind", MODELS)
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    gradients = []
    for checkpointing in (False, True):
        model, inputs = make(kind)
        train_a_little(add_skip_branches(model))
        if checkpointing:
            model.enable_gradient_checkpointing()
        video = model(**inputs).sample
        images = model(**inputs, enable_temporal_attentions=False).sample
        (video.square().mean() + images.square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradient is not None for gradient in gradients[0].values())


@pytest.mark.parametrize("kind", MODELS)
def test_flops_of_full_and_reused_steps(kind):
    model, _ = make(kind)
    flops = StepFlops(model)
    add_skip_branches(model)
    joined = StepFlops(model)
    assert joined.vanilla == flops.full and len(flops.units) == 5
    assert joined.full - joined.vanilla == 2 * (3 * 4) * 2 * 16 * 16
    assert joined.reused(1) == joined.full - sum(joined.units[1:4])


# Folders


@pytest.mark.parametrize("kind", MODELS)
def test_folders_are_saved_loaded_and_converted(kind, tmp_path, skipdit):
    model_class, config = MODELS[kind]
    preset = Preset("tiny", model={"class": model_class.__name__, "config": {**config, "num_layers": 4}})
    pipe = random_pipeline(preset)
    save_pipeline(pipe, tmp_path / "vanilla")
    inputs = make(kind)[1]
    expected = run(pipe.transformer, inputs)
    assert type(load_pipeline(tmp_path / "vanilla")) is type(pipe)
    for name, source in (("whole", tmp_path / "vanilla"), ("lone", tmp_path / "vanilla" / "transformer")):
        outcome = skipdit("convert", source, "-o", tmp_path / name, "--json")
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["bitwise_equal"] and outcome.json["pairs"] == 2
        loaded = load_pipeline(tmp_path / name)
        assert loaded.vae is None and type(loaded) is type(pipe)
        assert torch.equal(run(loaded.transformer, inputs), expected)
    for folder in ("vanilla", "whole"):
        assert skipdit("info", tmp_path / folder, "--json").json["time_embedding"] == "official"
    facts = skipdit("info", tmp_path / "whole", "--json").json
    assert (facts["blocks"], facts["sample"], facts["attached"]) == (4, "video", True)


def test_a_hub_id_is_found_in_the_offline_cache(tmp_path):
    pipe = random_pipeline(Preset("tiny", model={"class": "LatteClassTransformer3DModel", "config": CLASS_CONFIG}))
    repository = tmp_path / "hub" / "models--someone--latte"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    save_pipeline(pipe, repository / "snapshots" / ("a" * 40))
    loaded = load_pipeline("someone/latte", cache_dir=str(repository.parent))
    inputs = make("class")[1]
    assert torch.equal(run(loaded.transformer, inputs), run(pipe.transformer, inputs))


def test_a_preset_may_name_the_class(tmp_path, skipdit):
    path = tmp_path / "own.yaml"
    path.write_text("model: {class: LatteClassTransformer3DModel, config: {num_layers: 6, video_length: 8}}")
    assert skipdit("presets", "check", path).code == 0
    assert skipdit("info", "--preset", path, "--json").json["blocks"] == 6
    path.write_text("model: {class: LatteClassTransformer3DModel, config: {video_lenght: 8}}")
    outcome = skipdit("presets", "check", path)
    assert outcome.code == 3 and "video_length" in outcome.stdout + outcome.stderr


def test_what_is_no_transformer_is_refused(tiny_pipeline, tmp_path, skipdit):
    folder = tiny_pipeline()
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "UNet2DModel"}))
    outcome = skipdit("convert", folder, "-o", tmp_path / "out")
    assert outcome.code == 2 and "holds a UNet2DModel, which has no transformer trunk" in outcome.stderr


def test_a_folder_of_an_older_version_loads(latte_pipeline):
    """Its ``model_index.json`` names the module that the transformer's class was in then."""
    folder = latte_pipeline()
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"][0] = "skipdit_cli.families.latte_class_model"
    (folder / "model_index.json").write_text(json.dumps(index))
    assert load_pipeline(folder).transformer.config.video_length == 4


def test_a_class_to_video_pipeline_is_called_in_python(latte_pipeline):
    for classes, labels in ((10, [3, 7]), (None, [None, None])):
        pipe = load_pipeline(latte_pipeline(f"of-{classes}", num_embeds_ada_norm=classes))
        pipe.set_progress_bar_config(disable=True)
        frames = pipe(labels, num_inference_steps=2, output_type="np").frames
        assert frames.shape == (2, 4, 8, 8, 3) and 0 <= frames.min() < frames.max() <= 1
        (videos,) = pipe(labels, num_inference_steps=1, return_dict=False)
        assert len(videos) == 2 and len(videos[0]) == 4 and videos[0][0].size == (8, 8)
