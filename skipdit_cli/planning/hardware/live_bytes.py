"""Counting the bytes of live tensors, and the FLOPs, of what runs: on real tensors, or on fake ones without memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop


def _attention_flops(query, key, value, *args, out_val=None, **kwargs) -> int:
    return sdpa_flop(query.shape, key.shape, value.shape)


def _attention_backward_flops(gradient, query, key, value, *args, out_val=None, **kwargs) -> int:
    return sdpa_backward_flop(gradient.shape, query.shape, key.shape, value.shape)


CPU_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_flops,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward_flops,
}
"""The fused attention of a CPU, which torch's own counter leaves out. It saves what that of a GPU saves."""


class LiveBytes(TorchDispatchMode):
    """A context in which the storages that operators make are counted from when they are made until they are freed.

    What an operator takes and frees within itself is not seen.

    Args:
        known: Tensors that are there before, such as weights and inputs, which are not counted.
        share: The share of the gradients that a process keeps, for ``sharded_peak``.

    Attributes:
        live, gradients: Bytes of all tensors, and of those that are gradients of weights.
        peak: The most bytes of all tensors.
        sharded_peak: The most bytes where gradients count with their ``share``.
        flops: FLOPs of all products of matrices, convolutions and attentions.
    """

    def __init__(self, known: Iterable[torch.Tensor], share: float = 1.0):
        super().__init__()
        self.known = {_key(tensor) for tensor in known}
        self.share = share
        self.sizes: dict[int, int] = {}
        self.live = self.gradients = self.peak = self.flops = 0
        self.sharded_peak = 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operator, and count what it returns."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.flops += _flops(function, args, kwargs, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return result

    def follow_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Count the gradients of these weights as gradients, once they have been accumulated."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._note_gradient)

    def _note_gradient(self, parameter: torch.Tensor) -> None:
        self.gradients += parameter.nbytes

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes or key in self.known:
            return
        self.sizes[key] = size
        weakref.finalize(storage, self._free, key).atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)
        sharded = self.live - (1 - self.share) * self.gradients
        self.sharded_peak = max(self.sharded_peak, sharded)

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def _key(tensor: Any) -> int | None:
    return tensor.untyped_storage()._cdata if isinstance(tensor, torch.Tensor) else None


def _flops(function, args: tuple, kwargs: dict, result) -> int:
    count: Any = flop_registry.get(function._overloadpacket) or CPU_ATTENTION.get(function._overloadpacket.__name__)
    return 0 if count is None else count(*args, **kwargs, out_val=result)
