"""Checks of the values of tensors: whether they are finite, and whether two tensors have the same bits."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite. It waits for the tensor's device."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch only converts types of eight bits
    return bool(tensor.isfinite().all())


def first_broken(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the first element that is not finite and its place, such as ``nan in proj.weight[0, 3]``.

    Args:
        tensors: Names and tensors, such as the items of a state dict.

    Returns:
        Value and place, or None if all elements are finite.
    """
    for name, tensor in tensors:
        if not is_finite(tensor):
            at = (~tensor.float().isfinite()).nonzero()[0].tolist()
            return f"{tensor[tuple(at)].item()} in {name}{at or ''}"
    return None


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are equal bit for bit. NaN then equals itself, and 0.0 does not equal -0.0."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    bits = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)
