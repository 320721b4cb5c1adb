"""Whether tensors hold numbers, where they do not, and whether two are the same to the bit."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all its elements are numbers; waits for its device."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # of eight bits, which torch only converts
    return bool(tensor.isfinite().all())


def first_broken(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Where the first element is that is no number, and what it is: ``nan in proj.weight[0, 3]``; None if all are."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            at = (~tensor.float().isfinite()).nonzero()[0].tolist()
            return f"{tensor[tuple(at)].item()} in {name}{at or ''}"
    return None


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, so that what is no number equals itself, and nothing else."""
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    bits = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)
