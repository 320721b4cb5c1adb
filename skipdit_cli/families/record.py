"""Try skip branches and cache on every transformer class of diffusers, and record the results in ``record.json``.

    python -m skipdit_cli.families.record DIFFUSERS [CLASS...]

DIFFUSERS is a checkout of the diffusers repository. Its tests/models/transformers hold a tiny configuration and the
inputs of each class; the script reads them and deepens them to six blocks. ``tiny`` has configurations of classes
without such a test. The results of the classes named, or of all, are what ``skipdit info --families`` shows; all of
them take about five minutes on one core.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from skipdit_cli.families.declarations import Backbone
from skipdit_cli.families.registry import declared_trunk
from skipdit_cli.families.table import RECORD
from skipdit_cli.families.tiny import CASES

DEPTHS = ("num_layers", "n_layers", "depth", "num_hidden_layers", "dit_depth", "num_mmdit_layers")
SINGLE = ("num_single_layers", "num_single_dit_layers")
"""Arguments for the number of blocks, and for that of single-stream blocks after dual-stream ones."""


def from_tests(checkout: Path, tell: Callable[[str], None]) -> Iterator[tuple]:
    """Yield class, configuration, inputs and tester of each transformer that the diffusers repository tests."""
    sys.path.insert(0, str(checkout))
    for path in sorted((checkout / "tests" / "models" / "transformers").glob("test_*.py")):
        try:
            module = importlib.import_module(f"tests.models.transformers.{path.stem}")
        except ImportError as cause:
            tell(f"{path.stem} cannot be imported: {cause}")
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
        assert ("reused" in cache.trace) == (policy.interval != 1), f"{policy} gave {cache.trace}"
    disable_skip_cache(model)


def try_out(model, inputs: dict) -> dict:
    """Return the entry of one model in ``record.json``.

    The model is converted, trained for one step, cached with and without branches, saved, loaded, and restored.

    Raises:
        AssertionError: A promise does not hold. Whatever the model itself raises passes through; both become the note.
    """
    declared = declared_trunk(type(model).__name__)
    with torch.no_grad():
        before = run(model, inputs)
    clean = left_on(model)
    caches(model, inputs, before)
    if declared is not None and declared.native_skips:
        trunk, note = declared, ""
    else:
        trunk, note = try_branches(model, inputs, before, declared)
    with torch.no_grad():
        assert left_on(model) == clean, "something was left behind"
        assert same(run(model, inputs), before), "something was left behind"
    return {"works": True, "blocks": [listing.name for listing in trunk.lists], "note": note}


def try_branches(model, inputs: dict, before: torch.Tensor, declared: Backbone | None) -> tuple[Backbone, str]:
    """Convert a model, train its branches for one step, cache it, save and load the branches, and take them off.

    Args:
        before: The model's output without branches.
        declared: Its declared trunk, if any.
    Returns:
        The trunk, and a note about what was not tried.
    """
    from skipdit_cli import SkipBranches, add_skip_branches, remove_skip_branches

    branches = add_skip_branches(model, example_inputs=None if declared else inputs)
    with torch.no_grad():
        assert same(run(model, inputs), before), "new branches change the output"
    model.requires_grad_(False)
    branches.requires_grad_(True)
    note = ""
    try:
        run(model, inputs).float().square().mean().backward()
        linears: Any = branches.linears
        assert all(linear.weight.grad.abs().max() > 0 for linear in linears), "a branch gets no gradient"
        trunk = [p for key, p in model.named_parameters() if not key.startswith("skip_branches.")]
        assert all(p.grad is None for p in trunk), "the frozen trunk gets gradients"
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
    return declared or Backbone.from_record(branches.config.trunk), note


def stand_in_for_torchvision() -> None:
    """Give Cosmos the one function of torchvision that it calls: it resizes a mask."""
    cosmos: Any = importlib.import_module("diffusers.models.transformers.transformer_cosmos")
    if not hasattr(cosmos, "transforms"):
        nearest = SimpleNamespace(resize=lambda x, size, interpolation=None: F.interpolate(x, size))
        modes = SimpleNamespace(NEAREST=0)
        cosmos.transforms = SimpleNamespace(functional=nearest, InterpolationMode=modes)


def record(checkout: Path, wanted: list[str], tell: Callable[[str], None]) -> dict:
    """Return the content of ``record.json``.

    Args:
        checkout: The diffusers repository.
        wanted: Names of the classes to try; all if empty.
        tell: Gets a line about each class.
    """
    import diffusers

    stand_in_for_torchvision()
    cases = [*from_tests(checkout, tell)]
    cases += [(getattr(diffusers, name), *make(), None) for name, make in CASES.items() if hasattr(diffusers, name)]
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
        tell(f"{name} {classes[name]}")
    return {"diffusers": diffusers.__version__, "classes": dict(sorted(classes.items()))}


def main() -> None:
    """Write ``record.json`` for the classes named on the command line, or for all."""
    tests = Path(sys.argv[1] if len(sys.argv) > 1 else "") / "tests" / "models" / "transformers"
    if not tests.is_dir():
        sys.exit(f"Got no checkout of the diffusers repository ({tests} is missing); give its folder.")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = record(Path(sys.argv[1]), sys.argv[2:], lambda line: print(line, flush=True))
    if sys.argv[2:]:
        earlier = json.loads(RECORD.read_text(encoding="utf-8"))["classes"]
        results["classes"] = dict(sorted({**earlier, **results["classes"]}.items()))
    RECORD.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(sum(each["works"] for each in results["classes"].values()), "of", len(results["classes"]))


if __name__ == "__main__":
    main()
