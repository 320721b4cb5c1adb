"""The base of skip branches: what their config records of the transformer that they were made for or trained with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.skip.branches import SkipBranches

SHAPES, VALUES = "_base_shapes", "_base_values"
"""Keys of the config of branches. diffusers keeps keys that begin with an underscore, and does not read them."""
COUNT = 32
"""How many weights are recorded, each the first value of a tensor."""
TOLERANCE = 2**-7
"""The relative difference of a weight in bfloat16 or float16 from the same in float32, at most."""


def record_base(branches: SkipBranches, state: Mapping[str, torch.Tensor]) -> None:
    """Record in the config of skip branches what identifies their base: a hash of the shapes of its weights, and the
    values of a few. Nothing is recorded of weights that are quantised or on the meta device.

    Args:
        branches: The skip branches.
        state: The state dict of the base.
    """
    base = _plain_state(state)
    if base and not any(tensor.is_meta for tensor in base.values()):
        branches.register_to_config(**{SHAPES: _hash_shapes(base), VALUES: _sample_values(base)})


def check_base(branches: SkipBranches, transformer) -> bool:
    """Check that a transformer has the architecture of the base that skip branches record.

    Args:
        branches: The skip branches; ones without a record fit any transformer of their class and size.
        transformer: The transformer that they are to be attached to.

    Returns:
        Whether its weights are those of the base as well, as far as is known.

    Raises:
        UsageError: The shapes of its weights differ, or the record is damaged.
    """
    base = _plain_state(unwrap_compiled(transformer).state_dict())
    shapes, values = branches.config.get(SHAPES), branches.config.get(VALUES)
    if not base or shapes is None or values is None:
        return True
    if _hash_shapes(base) != shapes:
        raise UsageError(
            f"These skip branches were made for another {branches.config.backbone}: its weights have other shapes "
            "than those of this model; give the base that they were trained with."
        )
    if any(tensor.is_meta for tensor in base.values()):
        return True
    actual = torch.tensor(_sample_values(base))
    try:
        recorded = torch.tensor(values, dtype=actual.dtype)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise UsageError(f"Got skip branches whose config.json has a damaged {VALUES}; load them anew.") from cause
    if recorded.shape != actual.shape:
        return False
    return bool(torch.allclose(actual, recorded, rtol=TOLERANCE, atol=1e-7))


def _plain_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict sorted by name, without branches, adapters and the prefixes of wrappers; empty if it is
    quantised."""
    plain = {
        name.replace("_orig_mod.", "").replace(".base_layer", ""): tensor
        for name, tensor in state.items()
        if not name.startswith("skip_branches.") and "lora_" not in name
    }
    is_quantised = any(not tensor.is_floating_point() or tensor.itemsize < 2 for tensor in plain.values())
    return {} if is_quantised else dict(sorted(plain.items()))


def _hash_shapes(base: Mapping[str, torch.Tensor]) -> str:
    text = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in base.items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sample_values(base: Mapping[str, torch.Tensor]) -> list[float]:
    """Return the first values of tensors that are spread evenly over the names."""
    tensors = [tensor for tensor in base.values() if tensor.numel()]
    chosen = [tensors[at * len(tensors) // COUNT] for at in range(COUNT)] if len(tensors) > COUNT else tensors
    return [float(f"{tensor.flatten()[0].item():.6g}") for tensor in chosen]
