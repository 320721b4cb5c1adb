"""Spectral norms: of the halves of skip branches, and of Jacobians of blocks and of the model, by power iteration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from skipdit_cli.errors import UsageError
from skipdit_cli.skip.branches import SkipBranches
from skipdit_cli.studies.smoothness.surface import Call
from skipdit_cli.trunk import Trunk

ITERATIONS, TOLERANCE = 100, 1e-4
"""The most steps of a power iteration, and the relative change of the norm at which it ends."""

Operator = Callable[[torch.Tensor], torch.Tensor]


def power_iteration(
    apply: Operator, transposed: Operator, start: torch.Tensor, iterations: int = ITERATIONS, tolerance=TOLERANCE
) -> torch.Tensor:
    """Return the largest singular value of a linear map for each sample of a batch: (B,).

    Args:
        apply: The map J, which mixes no samples: (B, ...) to (B, ...).
        transposed: Its transpose.
        start: (B, ...), a random vector of the domain for each sample.
        iterations: The most applications of J.
        tolerance: The iteration ends when no norm changes by more than this share.
    """
    vector, norms, former = _normalised(start)[0], start.new_zeros(len(start)), None
    for _ in range(iterations):
        image, norms = _normalised(apply(vector))
        if former is not None and bool(((norms - former).abs() <= tolerance * norms).all()):
            break
        former = norms
        vector = _normalised(transposed(image))[0]
    return norms


def jacobian_norm(
    function: Operator, x: torch.Tensor, seed: int = 0, iterations: int = ITERATIONS, tolerance: float = TOLERANCE
) -> torch.Tensor:
    """Return the spectral norm of the Jacobian of a function at x, for each sample of the batch: (B,).

    Args:
        function: From (B, ...) to (B, ...), each sample by itself.
        x: Where the Jacobian is taken.
        seed: That of the first vector.
        iterations, tolerance: See ``power_iteration``.
    """
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
        pull: Callable = torch.func.vjp(function, x)[1]
        return power_iteration(
            lambda vector: torch.func.jvp(function, (x,), (vector,))[1].detach(),
            lambda vector: pull(vector)[0].detach(),
            start,
            iterations,
            tolerance,
        )


def half_norms(branches: SkipBranches) -> list[dict[str, float]]:
    """Return the spectral norms of W_x and W_s, the two halves of each pair's Linear, exact and by power iteration.

    Returns:
        ``x``, ``s`` by singular values in float64, ``x_power`` and ``s_power``, for the pairs (i, L-1-i) by i.
    """
    norms: list[dict[str, float]] = []
    for linear in branches.linears:
        weight: torch.Tensor = linear.get_parameter("weight").detach().double()
        norms.append({})
        for name, half in zip(("x", "s"), weight.chunk(2, dim=1)):
            norms[-1][name] = float(torch.linalg.matrix_norm(half, 2))
            norms[-1][f"{name}_power"] = matrix_norm(half)
    return norms


def matrix_norm(matrix: torch.Tensor, iterations: int = 1000) -> float:
    """Return the spectral norm of a matrix by power iteration."""
    start = torch.randn(1, matrix.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix)
    return float(power_iteration(lambda v: v @ matrix.T, lambda u: u @ matrix, start, iterations, 1e-12))


@dataclass(frozen=True)
class BlockCall:
    """One block in a forward: its input before its merge, the source that joins it, and its other arguments."""

    block: torch.nn.Module
    x: torch.Tensor
    output: torch.Tensor
    arguments: inspect.BoundArguments
    stream: str

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the block alone, without its merge, for another input."""
        arguments = inspect.BoundArguments(self.arguments.signature, self.arguments.arguments.copy())
        arguments.arguments[self.stream] = x
        return type(self.block).forward(*arguments.args, **arguments.kwargs)


def block_calls(transformer, trunk: Trunk, call: Call) -> list[BlockCall]:
    """Run a transformer, and return each of its blocks with its input.

    Raises:
        UsageError: Its blocks take several streams, or come in pairs.
    """
    if any(len(unit) > 1 for unit in trunk.listings) or any(
        not listing.bare or len(listing.names) > 1 for (listing,) in trunk.listings
    ):
        raise UsageError(f"Got {trunk.model_class}, whose blocks are no functions of one stream; expected a DiT.")
    calls: list[BlockCall] = []

    def keep(module, args, kwargs, result) -> None:
        arguments = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        stream = trunk.listings[len(calls)][0].names[0]
        calls.append(BlockCall(module, arguments.arguments[stream], result, arguments, stream))

    handles = [block.register_forward_hook(keep, with_kwargs=True) for (block,) in trunk.units]
    try:
        call.run(transformer)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def block_norms(transformer, trunk: Trunk, call: Call) -> dict[str, list[float | None]]:
    """Return the spectral norms of the Jacobians of the blocks at the inputs of one denoising step, mean over samples.

    Returns:
        ``block``: of each block, at the input that it gets from its merge. ``fused``: of each target block with its
        merge, as a function of the trunk's stream, the source being fixed; None for a block that is no target.
    """
    calls, branches = block_calls(transformer, trunk, call), trunk.branches
    norms: dict[str, list[float | None]] = {"block": [], "fused": []}
    for index, each in enumerate(calls):
        pair = len(calls) - 1 - index
        if branches is None or pair >= min(index, branches.num_pairs):
            norms["block"].append(float(jacobian_norm(each.run, each.x).mean()))
            norms["fused"].append(None)
            continue

        def merge(x: torch.Tensor, source=calls[pair].output, pair: int = pair) -> torch.Tensor:
            return branches(x, source, pair)

        def fused(x: torch.Tensor, each=each, merge=merge) -> torch.Tensor:
            return each.run(merge(x))

        with torch.no_grad():
            joined = merge(each.x)
        norms["block"].append(float(jacobian_norm(each.run, joined).mean()))
        norms["fused"].append(float(jacobian_norm(fused, each.x).mean()))
    return norms


def model_norm(transformer, call: Call) -> float:
    """Return the spectral norm of the Jacobian of the predicted noise by x_t, mean over the samples of a step."""
    kwargs: dict[str, Any] = dict(call.kwargs)
    x = kwargs.pop("hidden_states")

    def predict(latents: torch.Tensor) -> torch.Tensor:
        return transformer(hidden_states=latents, **{**kwargs, "return_dict": False})[0][:, : x.shape[1]]

    return float(jacobian_norm(predict, x).mean())


def _normalised(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors of a batch at length 1, and their lengths (B,); a vector 0 stays as it is."""
    norms = batch.flatten(1).norm(dim=1)
    lengths = norms.where(norms > 0, torch.ones_like(norms))
    return batch / lengths.view(-1, *[1] * (batch.ndim - 1)), norms
