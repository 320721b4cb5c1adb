"""Multiply-adds of a step, counted by running the model's own forward on weights that are not there: exact, without
their memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from accelerate import init_empty_weights
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from skipdit_cli.cache.policy import check_depth
from skipdit_cli.cache.schedule import uniform
from skipdit_cli.families import Backbone
from skipdit_cli.families.example import example_inputs
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.models import build_transformer
from skipdit_cli.skip import SkipBranches, add_skip_branches
from skipdit_cli.trunk import Trunk, remember_trunk, trunk_of


class StepFlops:
    """What one step of a model costs, in multiply-adds of a call for one image or video (half of its FLOPs).

    Args:
        transformer: A model whose trunk is known, with or without skip branches, on any device. Only its class and
            configuration are read; the count is made on an empty copy.
        calls: The arguments of each forward of a step, of any batch; one at the size of the model's configuration, or
            of its pipeline's default, if not given.

    Attributes:
        shape: What is denoised, of one image or video: (C, [F,] h, w), or (tokens, width) where that is packed.
        full: A full step: every block, and every skip branch if there are any.
        vanilla: The same without skip branches.
        units: Share of each unit of the trunk in ``full``, with the branch that joins it.
    """

    def __init__(self, transformer, calls: Sequence[Mapping] | None = None):
        transformer = unwrap_compiled(transformer)
        trunk = trunk_of(transformer)
        branches, found = trunk.branches, None if trunk.declared else trunk.backbone
        merge = None if branches is None else branches.config.merge
        model = meta_transformer(type(transformer), transformer.config, merge, found)
        for name, adapter in getattr(transformer, "peft_config", {}).items():
            model.add_adapter(adapter, name)  # a LoRA that is not fused costs, too
        model.eval()
        calls = (
            [example_inputs(model)] if calls is None else [tree_map_only(torch.Tensor, _plain, dict(c)) for c in calls]
        )
        denoised = [next(iter(inputs.values())) for inputs in calls]  # (batch, ...), or lists of as many
        self.shape: tuple[int, ...] = tuple(denoised[0][0].shape)
        batch, counter = sum(map(len, denoised)), FlopCounterMode(display=False)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")  # from here on the weights are fake; the inputs, masks say, have values
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), counter:
            warnings.simplefilter("ignore")  # Mochi's, of a precision that no CPU has
            for inputs in calls:
                model(**inputs)  # with attention as plain products, which the counter knows
        name_of = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}

        def macs(module) -> int:
            return sum(counter.get_flop_counts().get(name_of[module], {}).values()) // (2 * batch)

        self.full: int = counter.get_total_flops() // (2 * batch)
        self.vanilla: int = self.full if branches is None else self.full - macs(model.skip_branches)
        self.units: list[int] = [sum(macs(block) for block in unit) for unit in trunk_of(model).units]

    def reused(self, layers: int) -> int:
        """A reused step with N = ``layers``: a full one without the units between the first and the last N.

        Raises:
            UsageError: Nothing lies between.
        """
        check_depth(layers, len(self.units))
        return self.full - sum(self.units[layers : len(self.units) - layers])

    def limit(self, trace: Sequence[str | bool], layers: int) -> float:
        """FLOPs of all-full sampling over FLOPs run: the most that a schedule can speed this model up.

        Args:
            trace: One entry a step, "full" or "reused" (``SkipCache.trace``), or True where full (a plan).
            layers: N.
        """
        full = sum(step in ("full", True) for step in trace)
        return self.full * len(trace) / (self.full * full + self.reused(layers) * (len(trace) - full))

    def ideal_speedup(self, layers: int, interval: int, steps: int = 50) -> float:
        """``limit`` of a run whose every ``interval``-th step is full."""
        return self.limit(uniform(steps, interval), layers)


def count_step(transformer) -> StepFlops | None:
    """Return the ``StepFlops`` of a transformer, or None where no example inputs of it are known or its forward does
    not run without weights."""
    try:
        return StepFlops(transformer)
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError):
        return None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, in the precision of weights that are not there."""
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


def meta_transformer(model_class, config: dict, merge: str | None = None, found: Backbone | None = None):
    """A transformer without weights (meta tensors), with skip branches if ``merge`` is given; in eval mode.

    Args:
        found: Where the trunk of a class lies that is not declared.
    """
    with init_empty_weights():  # tables of positions keep their values, some forwards read them
        model = build_transformer({**config, "_class_name": model_class.__name__})
        if found is not None:
            remember_trunk(model, Trunk(model, found, declared=False))
        if merge is not None:
            trunk = trunk_of(model)
            add_skip_branches(model, branches=SkipBranches(trunk.width, len(trunk), merge, trunk.model_class))
    return model
