"""Try skip branches and cache on every transformer class of diffusers, and record the results for ``info --families``.

    python tests/support/record_families.py DIFFUSERS [CLASS...]

DIFFUSERS is a checkout of the diffusers repository. Its tests/models/transformers hold a tiny configuration and the
inputs of each class; the script reads them and deepens them to six blocks. Classes without such a test have their
configurations below. The script writes the package's ``families.json``, for the classes named or for all; all of them
take about five minutes on one core.
"""

import copy
import importlib
import inspect
import json
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from skipdit_cli.families.record import RECORD

DEPTHS = ("num_layers", "n_layers", "depth", "num_hidden_layers", "dit_depth", "num_mmdit_layers")
SINGLE = ("num_single_layers", "num_single_dit_layers")
WIDTH = {"num_attention_heads": 2, "attention_head_dim": 8}


def noise(*shape):
    """Return standard normal noise."""
    return torch.randn(shape)


def positions(*counts):
    """Return the position indices of each axis."""
    return [torch.arange(count) for count in counts]


time = torch.tensor([500.0])
KANDINSKY = dict(out_visual_dim=4, time_dim=8, model_dim=32, ff_dim=32, num_visual_blocks=6, axes_dims=(4, 6, 6))
TEXTS = dict(in_text_dim=6, in_text_dim2=6, num_text_blocks=1, in_visual_dim=4)
FIBO = dict(
    injection_layer_ids=(2, 4), perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=2
)
OWN = {
    "StableAudioDiTModel": lambda: (
        dict(WIDTH, sample_size=8, in_channels=4, out_channels=4, num_layers=6, num_key_value_attention_heads=2,
             cross_attention_dim=6, time_proj_dim=8, global_states_input_dim=6, cross_attention_input_dim=6),
        dict(hidden_states=noise(1, 4, 8), timestep=time, encoder_hidden_states=noise(1, 5, 6),
             global_hidden_states=noise(1, 1, 6), rotary_embedding=(torch.ones(9, 4), torch.zeros(9, 4))),
    ),
    "Flux3Transformer2DModel": lambda: (
        dict(WIDTH, in_channels=4, cond_in_channels=4, num_layers=2, num_single_layers=6, joint_attention_dim=6,
             timestep_channels=8, axes_dims_rope=(2, 2, 2, 2)),
        dict(hidden_states=noise(1, 16, 4), encoder_hidden_states=noise(1, 5, 6), timestep=time,
             img_ids=torch.zeros(16, 4), txt_ids=torch.zeros(5, 4)),
    ),
    "HunyuanImageTransformer2DModel": lambda: (
        dict(WIDTH, in_channels=4, out_channels=4, num_layers=2, num_single_layers=4, num_refiner_layers=1,
             text_embed_dim=6, rope_axes_dim=(4, 4)),
        dict(hidden_states=noise(1, 4, 8, 8), timestep=time, encoder_hidden_states=noise(1, 5, 6),
             encoder_attention_mask=torch.ones(1, 5)),
    ),
    "Kandinsky5Transformer3DModel": lambda: (
        dict(KANDINSKY, **TEXTS),
        dict(hidden_states=noise(1, 2, 8, 8, 4), encoder_hidden_states=noise(1, 5, 6), timestep=time,
             pooled_projections=noise(1, 6), visual_rope_pos=positions(2, 4, 4), text_rope_pos=torch.arange(5)),
    ),
    "Kandinsky6Transformer3DModel": lambda: (
        dict(KANDINSKY, **TEXTS, visual_cond=False),
        dict(hidden_states=noise(1, 2, 8, 8, 4), encoder_hidden_states=noise(1, 5, 6), timestep=time,
             pooled_projections=noise(1, 6), visual_rope_pos=positions(2, 4, 4)),
    ),
    "Kandinsky6SRTransformer3DModel": lambda: (
        dict(KANDINSKY, in_visual_dim=4), dict(hidden_states=noise(1, 2, 8, 8, 9), timestep=time)
    ),
    "BriaFibo2Transformer2DModel": lambda: (
        dict(FIBO, gist_step=2, in_channels=4, dim=16, n_layers=6, n_refiner_layers=1, n_heads=2, cap_feat_dim=6,
             gist_min_text_len=4, gist_max_text_len=32, axes_dims=(4, 2, 2), axes_lens=(64, 32, 32)),
        dict(hidden_states=noise(1, 4, 8, 8), timestep=time / 1000, encoder_hidden_states=noise(1, 3, 6, 6)),
    ),
    "QwenImage21Transformer2DModel": lambda: (
        dict(WIDTH, in_channels=4, out_channels=4, num_layers=6, context_in_dim=6, axes_dims_rope=(4, 2, 2)),
        dict(hidden_states=noise(1, 16, 4), encoder_hidden_states=noise(1, 5, 6), timestep=time,
             img_shapes=[[(1, 4, 4)]], img_mask=torch.tensor([[False] * 5 + [True] * 4])),
    ),
    "SanaWMTransformer3DModel": lambda: (
        dict(in_channels=4, num_layers=6, hidden_size=32, num_attention_heads=2, softmax_every_n=2, linear_head_dim=16,
             t_kernel_size=3, caption_channels=6, mlp_ratio=2.0, chunk_plucker_channels=6,
             chunk_plucker_post_attn_blocks=6),
        dict(hidden_states=noise(1, 4, 4, 8, 8), timestep=time.expand(1, 1, 4), chunk_plucker=noise(1, 6, 4, 8, 8),
             encoder_hidden_states=noise(1, 1, 5, 6), encoder_attention_mask=torch.ones(1, 5),
             camera_conditions=torch.cat([torch.eye(4).flatten(), torch.tensor([8.0, 8, 4, 4])]).expand(1, 4, 20)),
    ),
    "SanaWMLTX2RefinerTransformer3DModel": lambda: (
        dict(WIDTH, in_channels=4, out_channels=4, num_layers=6, cross_attention_dim=16, caption_channels=6,
             audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4,
             audio_cross_attention_dim=8, rope_double_precision=False),
        dict(hidden_states=noise(1, 32, 4), timestep=time.expand(1, 32), encoder_hidden_states=noise(1, 5, 6),
             encoder_attention_mask=torch.ones(1, 5), video_rotary_emb=(torch.ones(1, 32, 16), noise(1, 32, 16))),
    ),
    "DreamLiteTransformer2DModel": lambda: (
        dict(WIDTH, in_channels=16, num_layers=6, norm_num_groups=4, cross_attention_dim=6),
        dict(hidden_states=noise(1, 16, 4, 4), encoder_hidden_states=noise(1, 5, 6)),
    ),
    "Transformer2DModel": lambda: (
        dict(WIDTH, in_channels=16, num_layers=6, norm_num_groups=4, cross_attention_dim=6),
        dict(hidden_states=noise(1, 16, 4, 4), encoder_hidden_states=noise(1, 5, 6)),
    ),
    "PriorTransformer": lambda: (
        dict(WIDTH, num_layers=6, embedding_dim=8, num_embeddings=7, additional_embeddings=4),
        dict(hidden_states=noise(2, 8), timestep=2, proj_embedding=noise(2, 8), encoder_hidden_states=noise(2, 7, 8)),
    ),
    "T5FilmDecoder": lambda: (
        dict(input_dims=4, targets_length=8, d_model=16, num_layers=6, num_heads=2, d_kv=8, d_ff=16),
        dict(encodings_and_masks=[(noise(1, 5, 16), torch.ones(1, 5))], decoder_input_tokens=noise(1, 8, 4),
             decoder_noise_time=torch.tensor([0.5])),
    ),
    "MiniMaxMusic3RVQDepthDecoder": lambda: (
        dict(hidden_size=16, num_layers=6, num_attention_heads=2, intermediate_size=16, audio_vocab_size=8,
             num_codebooks=4),
        dict(inputs_embeds=noise(1, 4, 16)),
    ),
}  # fmt: skip


def from_tests(checkout: Path):
    """Yield class, configuration, inputs and tester of each transformer that the diffusers repository tests."""
    sys.path.insert(0, str(checkout))
    for path in sorted((checkout / "tests" / "models" / "transformers").glob("test_*.py")):
        try:
            module = importlib.import_module(f"tests.models.transformers.{path.stem}")
        except ImportError as cause:
            print(f"{path.stem} cannot be imported: {cause}")
            continue
        for name, tester in vars(module).items():
            if name.endswith("TesterConfig") and tester.__module__ == module.__name__ and "Quant" not in name:
                tester = tester()
                if "SDNQ" not in name and hasattr(tester, "get_init_dict"):
                    yield tester.model_class, dict(tester.get_init_dict()), dict(tester.get_dummy_inputs()), tester


def deepen(name: str, parameters, config: dict, inputs: dict) -> None:
    """Set the depth to six blocks, in place, and repeat the inputs that there is one of for each block."""
    single = [key for key in SINGLE if key in parameters]
    config.update({key: 3 if single else 6 for key in DEPTHS if key in parameters}, **dict.fromkeys(single, 3))
    if name == "HiDreamImageTransformer2DModel":
        config["llama_layers"] = tuple(range(6))
        inputs["encoder_hidden_states_llama3"] = torch.cat([inputs["encoder_hidden_states_llama3"]] * 6)[:6]
    elif name == "BriaFiboTransformer2DModel":
        inputs["text_encoder_layers"] = (inputs["text_encoder_layers"] * 6)[:6]
    elif name == "NucleusMoEImageTransformer2DModel":
        for key, value in config.items():
            if isinstance(value, (list, tuple)) and len(value) == 2:
                config[key] = (list(value) * 6)[:6]
    elif name == "WanAnimate2Transformer3DModel":
        inputs["kv_cache"] = type(inputs["kv_cache"])(6)


def first(output) -> torch.Tensor:
    """Return the first tensor of a model's output."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return first(next(value for value in values if isinstance(value, (torch.Tensor, list, tuple))))


def run(model, inputs: dict) -> torch.Tensor:
    """Return the first output of one forward, which may change lists among its inputs."""
    copied = {key: list(value) if type(value) is list else value for key, value in inputs.items()}
    return first(model(**copied))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether two tensors are equal, NaN included."""
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def left_on(model):
    """Return what attaching could leave behind: names of attributes, the number of hooks, names of weights."""
    names = {name: set(module.__dict__) for name, module in model.named_modules()}
    return (
        names,
        sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        [*model.state_dict()],
    )


def caches(model, inputs: dict, expected: torch.Tensor) -> None:
    """Check that a reused step equals a full one at the same input, and that interval 1 equals no cache."""
    from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache

    late = CachePolicy(2, interval=3, forecast="taylor2", target="residual")
    for policy in (CachePolicy(1, interval=3), late, CachePolicy(1, interval=1)):
        cache = enable_skip_cache(model, policy)
        with torch.no_grad():
            assert all(same(run(model, inputs), expected) for _ in range(4)), f"a reused step differs under {policy}"
        assert ("reused" in cache.trace) == (policy.interval > 1), f"{policy} gave {cache.trace}"
    disable_skip_cache(model)


def try_out(model, inputs: dict) -> dict:
    """Return the entry of one model in ``families.json``.

    The model is converted, trained for one step, cached with and without branches, saved, loaded, and restored.

    Raises:
        AssertionError: A promise does not hold. Whatever the model itself raises passes through; both become the note.
    """
    from skipdit_cli import SkipBranches, add_skip_branches, remove_skip_branches
    from skipdit_cli.families import BACKBONES
    from skipdit_cli.trunk import trunk_of

    name, note = type(model).__name__, ""
    declared = BACKBONES.get(name)
    with torch.no_grad():
        before = run(model, inputs)
    clean = left_on(model)
    caches(model, inputs, before)
    if declared is None or not declared.native_skips:
        branches = add_skip_branches(model, example_inputs=None if declared else inputs)
        with torch.no_grad():
            assert same(run(model, inputs), before), "new branches change the output"
        model.requires_grad_(False)
        branches.requires_grad_(True)
        try:
            run(model, inputs).float().square().mean().backward()
            assert all(linear.weight.grad.abs().max() > 0 for linear in branches.linears), "a branch gets no gradient"
            own = [p for key, p in model.named_parameters() if not key.startswith("skip_branches.")]
            assert all(p.grad is None for p in own), "the frozen trunk gets gradients"
        except NotImplementedError as cause:
            note = f"not trained: {str(cause).split('.')[0]}"
        for parameter in branches.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            joined = run(model, inputs)
        assert not same(joined, before), "trained branches do not show"
        caches(model, inputs, joined)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            branches.save_pretrained(folder)
            other = copy.deepcopy(model)
            remove_skip_branches(other)
            add_skip_branches(other, branches=SkipBranches.from_pretrained(folder))
            assert same(run(other, inputs), joined), "loaded branches differ"
        remove_skip_branches(model)
        model.requires_grad_(True)  # PyTorch's attention may take another way without, also under no_grad
    with torch.no_grad():
        assert left_on(model) == clean and same(run(model, inputs), before), "something was left behind"
    lists = trunk_of(model).backbone.lists
    return {"works": True, "blocks": [each.name for each in lists], "note": note}


def stand_in_for_torchvision() -> None:
    """Give Cosmos the one function of torchvision that it calls: it resizes a mask."""
    cosmos = importlib.import_module("diffusers.models.transformers.transformer_cosmos")
    if not hasattr(cosmos, "transforms"):
        nearest = SimpleNamespace(resize=lambda x, size, interpolation=None: F.interpolate(x, size))
        modes = SimpleNamespace(NEAREST=0)
        cosmos.transforms = SimpleNamespace(functional=nearest, InterpolationMode=modes)


def record(checkout: Path, wanted: list[str]) -> dict:
    """Return the content of ``families.json`` for the classes in ``wanted``, or for all if it is empty."""
    import diffusers

    stand_in_for_torchvision()
    cases = [*from_tests(checkout)]
    cases += [(getattr(diffusers, name), *make(), None) for name, make in OWN.items() if hasattr(diffusers, name)]
    classes: dict[str, dict] = {}
    for kind, config, inputs, tester in cases:
        name = kind.__name__
        if (wanted and name not in wanted) or not classes.get(name, {"works": True})["works"]:
            continue
        try:
            if tester is not None:
                deepen(name, inspect.signature(kind.__init__).parameters, config, inputs)
            torch.manual_seed(0)
            model = kind(**config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.is_floating_point():
                        parameter.add_(0.02 * torch.randn_like(parameter))
                if name == "WanAnimate2Transformer3DModel":  # blocks fill its other cache first, then read it
                    run(model, inputs)
                    inputs = tester.get_dummy_generation_inputs(inputs["kv_cache"])
            classes[name] = try_out(model, inputs)
        except Exception as cause:
            traceback.print_exc()
            classes[name] = {"works": False, "blocks": [], "note": str(cause).split("\n")[0]}
        print(name, classes[name], flush=True)
    return {"diffusers": diffusers.__version__, "classes": dict(sorted(classes.items()))}


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    made = record(Path(sys.argv[1]), sys.argv[2:])
    if sys.argv[2:]:
        made["classes"] = dict(sorted({**json.loads(RECORD.read_text())["classes"], **made["classes"]}.items()))
    RECORD.write_text(json.dumps(made, indent=1) + "\n")
    print(sum(each["works"] for each in made["classes"].values()), "of", len(made["classes"]))
