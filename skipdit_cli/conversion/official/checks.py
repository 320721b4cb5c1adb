"""Checks of official checkpoints: required tensors, the number of attention heads, the frozen position tables."""

from __future__ import annotations

import torch

from skipdit_cli.errors import NotFiniteError, UsageError
from skipdit_cli.finite import first_broken

DRIFT = 1e-3
"""Largest rounding error of a moving average over a table that never changes."""
STANDARD_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads by width, of DiT and Latte in the sizes S, B, L and XL."""


def check_plain(path, state: dict[str, torch.Tensor]) -> None:
    """Refuse a state dict with tensors that are no plain weights.

    Raises:
        UsageError: A tensor is sparse, nested, quantised, complex, empty, without data, or expanded from a part.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_complex():
            what = "sparse, nested, quantised or complex"
        elif tensor.is_meta:
            what = "without data"
        elif not tensor.numel():
            what = f"of shape {list(tensor.shape)}, which is empty"
        elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            what = f"of shape {list(tensor.shape)}, of which the file holds a part alone"
        else:
            continue
        raise UsageError(f"Checkpoint {path} holds {name}, which is {what}; save plain weights.")


def check_needed(path, state: dict[str, torch.Tensor], needed: dict[str, int], kind: str) -> None:
    """Check the tensors from which a layout's architecture is read.

    Args:
        path: The checkpoint, for errors.
        needed: Number of dimensions by tensor name.
        kind: Name of the model in the error.
    Raises:
        UsageError: A tensor is missing, or has another number of dimensions.
        NotFiniteError: A tensor holds NaN or infinity.
    """
    for name, rank in needed.items():
        if name not in state or state[name].dim() != rank:
            what = "lacks" if name not in state else "has another shape of"
            raise UsageError(f"Checkpoint {path} is no {kind} of the official layout: it {what} {name}.")
    where = first_broken((name, state[name]) for name in needed)
    if where is not None:
        raise NotFiniteError(f"Checkpoint {path} holds {where}; get it again.")


def head_count(path, width: int, given: int | None) -> int:
    """Return the number of attention heads: the given one, or that of the standard size with this width.

    Raises:
        UsageError: The number is not known, or does not divide the width.
    """
    heads = given if given is not None else STANDARD_HEADS.get(width)
    if heads is None:
        raise UsageError(
            f"Checkpoint {path} is {width} wide, no standard DiT size, and does not say how many attention heads it "
            "has; give --num-attention-heads."
        )
    if heads < 1 or width % heads:
        raise UsageError(f"Got --num-attention-heads {heads}, which does not divide the width {width} of {path}.")
    return heads


def check_positions(path, table: torch.Tensor, side: int, width: int) -> list[str]:
    """Check that the frozen spatial position table is the one that diffusers computes from the size.

    Args:
        path: The checkpoint, for errors.
        table: (1, tokens, D).
        side: Patches along an edge.
        width: D.
    Returns:
        A sentence for the user if the table differs slightly, otherwise nothing.
    Raises:
        UsageError: It is another table.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    if side**2 != table.shape[1] or width != table.shape[2] or width % 4:
        raise UsageError(f"Checkpoint {path} has a position table of shape {tuple(table.shape)}, of no square image.")
    return _check_table(
        path, "pos_embed", table, get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt")
    )


def check_frames(path, table: torch.Tensor, width: int) -> list[str]:
    """Check the temporal position table (1, frames, D) in the same way as ``check_positions``."""
    from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid

    if width != table.shape[2]:
        raise UsageError(f"Checkpoint {path} has a table temp_embed of width {table.shape[2]}, but is {width} wide.")
    expected = get_1d_sincos_pos_embed_from_grid(width, torch.arange(table.shape[1]), output_type="pt")
    return _check_table(path, "temp_embed", table, expected)


def _check_table(path, name: str, table: torch.Tensor, expected: torch.Tensor) -> list[str]:
    """Compare a position table with the expected one.

    A table that does not change in training still drifts in a moving average of all parameters, e = d·e + (1-d)·p:
    rounding errors add up to some 1e-4 over thousands of updates.
    """
    off = (table[0].double() - expected.double()).abs().max().item()
    rounding = torch.finfo(table.dtype).eps if table.is_floating_point() else 0.0
    if not off <= (DRIFT if rounding < DRIFT / 2 else 1e-2):
        raise UsageError(f"Checkpoint {path} has a position table of its own, {name}, but expected the sin-cos one.")
    if off <= max(rounding, 1e-5):
        return []
    return [
        f"Positions: {name} is {off:.1g} off the sin-cos table, as a moving average drifts; the exact one is used."
    ]
