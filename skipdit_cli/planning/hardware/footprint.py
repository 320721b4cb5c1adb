"""The footprint of a training step and of a sampling forward: bytes and FLOPs, counted in a run on fake tensors.

The model runs once, forward and backward, on tensors that have shapes and no memory, in the order that torch runs it;
``LiveBytes`` counts what is alive. Nothing is estimated from formulas but what comes before and after that run.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

from skipdit_cli.errors import UsageError, first_line
from skipdit_cli.families.example import example_inputs
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.planning.flops import meta_transformer
from skipdit_cli.planning.hardware.live_bytes import LiveBytes
from skipdit_cli.trunk import known_trunk

LATENT_COPIES = 4
"""Float32 tensors of the size of the latents that a step holds: the samples, their noise, both mixed, the target."""
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Workload:
    """What one process trains on in one forward and backward pass.

    Args:
        batch: Samples.
        size: Latent frames, height and width; None for each that is the model's own.
        mixed_precision: ``no``, ``bf16`` or ``fp16``.
        gradient_checkpointing: Whether blocks are computed again in the backward pass.
        only_branches: Whether the trunk is frozen (stage 1); None leaves what requires a gradient as in the model.
    """

    batch: int
    size: tuple[int | None, int | None, int | None] = (None, None, None)
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    only_branches: bool | None = False


@dataclass(frozen=True)
class Footprint:
    """Bytes and FLOPs of one forward and backward pass of one process.

    Args:
        weights: Of all weights and buffers, in float32.
        trained: Of the weights that are trained, in float32.
        largest_block: Of the weights of the largest block.
        outside_blocks: Of the weights that are in no block.
        inputs: Of latents, noise and conditions.
        activations: What the forward pass leaves for the backward pass, copies of weights in half precision included.
        peak: The most that was alive at once beside weights and inputs, gradients included.
        sharded_peak: The same where the process keeps a share of the gradients.
        flops: Of the forward and the backward pass.
    """

    weights: int
    trained: int
    largest_block: int
    outside_blocks: int
    inputs: int
    activations: int
    peak: int
    sharded_peak: int
    flops: int


@dataclass(frozen=True)
class SamplingFootprint:
    """Bytes and FLOPs of one sampling forward.

    Args:
        weights: Of the transformer.
        activations: The most that was alive at once beside the weights.
        boundary: The streams at the input of the last unit, which the cache keeps of a full step with ``reuse``; None
            where the trunk is not known.
        flops: Of the forward.
    """

    weights: int
    activations: int
    boundary: int | None
    flops: int


def training_footprint(transformer, workload: Workload, share: float = 1.0) -> Footprint:
    """Return the footprint of a forward and backward pass.

    Args:
        transformer: The model, with or without skip branches, on any device. Only its class, its config and, with
            ``only_branches=None``, what requires a gradient are read.
        share: The share of the gradients that one process keeps where they are sharded.

    Raises:
        UsageError: No example of the model's inputs is known, or its forward does not run without weights.
    """
    model = fake_copy(transformer)
    _set_train_mode(model, workload.only_branches, transformer)
    with _running(model):
        if workload.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        inputs = example_inputs(model, workload.batch, size=workload.size)
        trained = [p for p in model.parameters() if p.requires_grad]
        known = [*model.parameters(), *model.buffers(), *_tensors(inputs)]
        counter = LiveBytes(known, share)
        counter.follow_gradients(trained)
        dtype = HALF.get(workload.mixed_precision)
        with counter:
            with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
                outputs = _tensors(model(**inputs, return_dict=False))
            activations = counter.live
            loss = sum(
                (each.float() - torch.zeros_like(each, dtype=torch.float32)).square().mean() for each in outputs
            )
            del outputs
            loss.backward()  # type: ignore[union-attr]
    blocks = _bytes_of_blocks(model)
    weights = _bytes([*model.parameters(), *model.buffers()])
    latents = next(iter(inputs.values()))
    return Footprint(
        weights=weights,
        trained=_bytes(trained),
        largest_block=max(blocks, default=0),
        outside_blocks=max(weights - sum(blocks), 0),
        inputs=_bytes(_tensors(inputs)) + (LATENT_COPIES - 1) * _bytes(_tensors(latents)),
        activations=activations,
        peak=counter.peak,
        sharded_peak=int(counter.sharded_peak),
        flops=counter.flops,
    )


def sampling_footprint(
    transformer,
    batch: int,
    size: tuple[int | None, int | None, int | None] = (None, None, None),
    dtype: torch.dtype = torch.bfloat16,
) -> SamplingFootprint:
    """Return the footprint of one sampling forward.

    Args:
        transformer: As for ``training_footprint``.
        batch: Samples, twice as many as images where guidance doubles the batch.
        size: As in ``Workload``.
        dtype: That of the weights.

    Raises:
        UsageError: As for ``training_footprint``.
    """
    model = fake_copy(transformer, dtype)
    model.eval()
    boundaries: list[int] = []
    trunk = known_trunk(model)
    with _running(model):
        if trunk is not None:
            last, names = trunk.units[-1][0], trunk.listings[-1][0].names
            parameters = list(inspect.signature(type(last).forward).parameters)[1:]

            def note_streams(_, args: tuple, kwargs: dict) -> None:
                arguments = {**dict(zip(parameters, args)), **kwargs}
                boundaries.append(_bytes(_tensors([arguments.get(name) for name in names])))

            last.register_forward_pre_hook(note_streams, with_kwargs=True)
        inputs = example_inputs(model, batch, dtype=dtype, size=size)
        counter = LiveBytes([*model.parameters(), *model.buffers(), *_tensors(inputs)])
        with counter, torch.no_grad():
            model(**inputs, return_dict=False)
    weights = _bytes([*model.parameters(), *model.buffers()])
    return SamplingFootprint(
        weights, counter.peak + _bytes(_tensors(inputs)), boundaries[0] if boundaries else None, counter.flops
    )


def supports_checkpointing(transformer) -> bool:
    """Return whether diffusers' class of a transformer has gradient checkpointing."""
    return bool(getattr(unwrap_compiled(transformer), "_supports_gradient_checkpointing", False))


def fake_copy(transformer, dtype: torch.dtype = torch.float32):
    """Return a copy of a transformer on fake tensors, which have shapes and no memory."""
    transformer = unwrap_compiled(transformer)
    trunk: Any = known_trunk(transformer)
    branches = None if trunk is None else trunk.branches
    backbone = None if trunk is None or trunk.declared else trunk.backbone
    merge = None if branches is None else branches.config.merge
    kind = next(kind for kind in type(transformer).__mro__ if not kind.__name__.startswith("FSDP"))  # FSDP2 derives
    model = meta_transformer(kind, transformer.config, merge, backbone)
    if dtype is not torch.float32:
        torch.nn.Module.to(model, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
    return model


@contextmanager
def _running(model) -> Iterator[None]:
    """Silence the warnings of a run on fake tensors, and turn what it raises into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UsageError:
        raise
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError, NotImplementedError) as cause:
        raise UsageError(
            f"A {type(model).__name__} cannot be planned without its weights: its forward does not run on tensors "
            f"without memory ({first_line(cause)})."
        ) from cause


def _set_train_mode(model, only_branches: bool | None, original) -> None:
    """Set train mode as ``training`` does, and what is trained."""
    model.train()
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.eval()
    if only_branches is None:
        flags = {name: p.requires_grad for name, p in unwrap_compiled(original).named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, False))
        return
    model.requires_grad_(not only_branches)
    if only_branches:
        model.skip_branches.requires_grad_(True)


def _bytes_of_blocks(model) -> list[int]:
    """Return the bytes of the weights of each block; of none where the trunk is not known."""
    trunk = known_trunk(model)
    return [] if trunk is None else [_bytes(block.parameters()) for unit in trunk.units for block in unit]


def _tensors(values) -> list[torch.Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def _bytes(tensors) -> int:
    return sum(each.nbytes for each in tensors)
