"""The multiply-adds of a step, counted in a forward of the model without memory for its weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from accelerate import init_empty_weights
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from skipdit_cli.cache.policy import both_ends, check_depth
from skipdit_cli.cache.schedule import uniform
from skipdit_cli.families import Backbone
from skipdit_cli.families.example import example_inputs
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.models import build_transformer
from skipdit_cli.skip import SkipBranches, add_skip_branches
from skipdit_cli.skip.parameters import copied_embedders
from skipdit_cli.trunk import Trunk, remember_trunk, trunk_of


class StepFlops:
    """The cost of one step of a model, in multiply-adds (half of its FLOPs) for one image or video.

    Args:
        transformer: A model whose trunk is known, with or without skip branches, on any device. Only its class and
            configuration are read; a copy without weights runs.
        calls: The arguments of each forward of a step, with any batch size. By default one forward at the size of the
            model's configuration, or of its pipeline's default.

    Attributes:
        shape: Shape of the noisy input of one image or video: (C, [F,] h, w), or (tokens, width) if it is packed.
        full: Cost of a full step: every block, and every skip branch if there are any.
        vanilla: Cost of a full step without skip branches.
        copies: The part of ``vanilla`` that the DiT paper does not count: diffusers' DiT runs the timestep embedder
            again in each block after the first.
        units: Share of each unit of the trunk in ``full``, with the branch that joins it.
        branches: Share of the branch of each pair in ``full``; empty without branches.
    """

    def __init__(self, transformer, calls: Sequence[Mapping] | None = None):
        transformer = unwrap_compiled(transformer)
        trunk = trunk_of(transformer)
        branches, backbone = trunk.branches, None if trunk.declared else trunk.backbone
        merge = None if branches is None else branches.config.merge
        model = meta_transformer(type(transformer), transformer.config, merge, backbone)
        for name, adapter in getattr(transformer, "peft_config", {}).items():
            model.add_adapter(adapter, name)  # a LoRA that is not fused adds to the cost
        model.eval()
        calls = (
            [example_inputs(model)] if calls is None else [tree_map_only(torch.Tensor, _plain, dict(c)) for c in calls]
        )
        noisy = [next(iter(inputs.values())) for inputs in calls]  # (batch, ...), or a list of that length
        self.shape: tuple[int, ...] = tuple(noisy[0][0].shape)
        batch, counter = sum(map(len, noisy)), FlopCounterMode(display=False)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")  # the weights are fake from here on; inputs such as masks have values
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings(), counter:
            warnings.simplefilter("ignore")  # Mochi asks for a precision that no CPU has
            for inputs in calls:
                model(**inputs)  # with the MATH attention, whose products the counter knows
        name_of = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}

        def macs(module) -> int:
            return sum(counter.get_flop_counts().get(name_of[module], {}).values()) // (2 * batch)

        self.full: int = counter.get_total_flops() // (2 * batch)
        self.vanilla: int = self.full if branches is None else self.full - macs(model.skip_branches)
        self.copies: int = sum(macs(each) for each in copied_embedders(model))
        self.units: list[int] = [sum(macs(block) for block in unit) for unit in trunk_of(model).units]
        self.branches: list[int] = [] if branches is None else [macs(each) for each in model.skip_branches.linears]

    def reused(self, layers: int | tuple[int, int]) -> int:
        """Return the cost of a reused step: a full step without the units that are left out, and without the branches
        that lack their source. With the layers (0, 0) nothing runs.

        Args:
            layers: N, or (front, back).

        Raises:
            UsageError: No unit lies between them.
        """
        check_depth(layers, len(self.units))
        front, back = both_ends(layers)
        if not front + back:
            return 0
        left_out = sum(self.units[front : len(self.units) - back])
        return self.full - left_out - sum(self.branches[front : min(back, len(self.branches))])

    def cost(self, trace: Sequence[str | bool], layers: int | tuple[int, int]) -> float:
        """Return the cost of a run in full forwards: 1 for a full step, and its share for a reused one.

        Args:
            trace: One entry per step: "full" or "reused" (``SkipCache.trace``), or True for a full step (a plan).
            layers: N, or (front, back).
        """
        return len(trace) / self.limit(trace, layers)

    def limit(self, trace: Sequence[str | bool], layers: int | tuple[int, int]) -> float:
        """Return the FLOPs of full steps alone over the FLOPs of a run: the largest speedup of its schedule.

        Args:
            trace, layers: As for ``cost``.
        """
        full = sum(step in ("full", True) for step in trace)
        return self.full * len(trace) / (self.full * full + self.reused(layers) * (len(trace) - full))

    def ideal_speedup(self, layers: int | tuple[int, int], interval: int, steps: int = 50) -> float:
        """Return the ``limit`` of a run in which every ``interval``-th step is full."""
        return self.limit(uniform(steps, interval), layers)


def count_step(transformer) -> StepFlops | None:
    """Return the cost of a step of a transformer, or None if it cannot be counted.

    That is so where no example inputs of its class are known, or its forward does not run without weights.
    """
    try:
        return StepFlops(transformer)
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError):
        return None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU, in the precision of the copy without weights."""
    return tensor.to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)


def meta_transformer(model_class, config: dict, merge: str | None = None, backbone: Backbone | None = None):
    """Return a transformer on the meta device, without weights.

    Args:
        model_class: Class of the transformer.
        config: Its configuration.
        merge: Attach skip branches with this merge; none if None.
        backbone: The trunk of a class that is not declared.
    """
    with init_empty_weights():  # position tables keep their values, which some forwards read
        model = build_transformer({**config, "_class_name": model_class.__name__})
        if backbone is not None:
            remember_trunk(model, Trunk(model, backbone, declared=False))
        if merge is not None:
            trunk = trunk_of(model)
            add_skip_branches(model, branches=SkipBranches(trunk.width, len(trunk), merge, trunk.model_class))
    return model
