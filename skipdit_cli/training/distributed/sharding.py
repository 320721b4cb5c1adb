"""Sharding a transformer over processes with torch's FSDP2, and making it whole again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from skipdit_cli.errors import UsageError
from skipdit_cli.trunk import trunk_of


def fsdp_is_requested() -> bool:
    """Return whether the launcher requests FSDP (``accelerate launch --use_fsdp --fsdp_version 2``)."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def shards_on_cpu() -> bool:
    """Return whether this torch has right gradients of shards on a CPU: those of two processes were measured twice as
    large under 2.8, and right under 2.13."""
    return tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


def check_fsdp() -> None:
    """Check the settings of FSDP that the launcher passes on in environment variables.

    Every process loads the whole model before it is sharded, so the launcher's setting that leaves all but the first
    one without weights is turned off.

    Raises:
        UsageError: A setting is not supported.
    """
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UsageError(
            f"Launched with version {version} of FSDP, but expected version 2: accelerate launch --use_fsdp "
            "--fsdp_version 2."
        )
    for name, flag, advice in (
        ("FSDP_OFFLOAD_PARAMS", "--fsdp_offload_params", "leave it out"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "--fsdp_activation_checkpointing", "give --gradient-checkpointing instead"),
    ):
        if parse_flag_from_env(name):
            raise UsageError(f"Launched with {flag} true, which is not supported; {advice}.")
    if not torch.accelerator.is_available() and not shards_on_cpu():
        raise UsageError(
            f"Launched with FSDP on a CPU with torch {torch.__version__}, but expected 2.13 or newer: older "
            "ones have wrong gradients there; install that, or leave out --use_fsdp."
        )
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def shard(transformer: nn.Module, device: torch.device) -> None:
    """Shard the weights of a transformer over all processes, in place.

    Each block of the trunk and the Linear of each skip branch are gathered while they run, all other weights during
    the whole forward.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # No block and no branch changes the output of a Linear in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    gathered_again = parse_flag_from_env("FSDP_RESHARD_AFTER_FORWARD", default=True)
    for module in _units(transformer):
        fully_shard(module, mesh=mesh, reshard_after_forward=gathered_again)
    fully_shard(transformer, mesh=mesh)


def _units(transformer: nn.Module) -> list[nn.Module]:
    """Return the modules that are gathered one at a time, inner ones first."""
    blocks = trunk_of(transformer).blocks
    # DiT calls the embedding of its first block by itself, at the end of its forward.
    embedding = getattr(getattr(blocks[0], "norm1", None), "emb", None)
    inner = [embedding] if embedding is not None else []
    branches = getattr(transformer, "skip_branches", None)
    return [*inner, *blocks, *([] if branches is None else branches.linears)]


def reshard(transformer: nn.Module) -> None:
    """Drop gathered weights. Without a backward pass FSDP2 keeps those of the root, though the shards may change."""
    for module in _sharded_modules(transformer):
        module.reshard()


def _sharded_modules(transformer: nn.Module) -> list:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in transformer.modules() if isinstance(module, FSDPModule)]


@contextmanager
def gradients_kept(transformer) -> Iterator[None]:
    """Leave the gradients of backward passes in each process, to be reduced together with those of a later one."""
    transformer.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        transformer.set_requires_gradient_sync(True)


@torch.no_grad()
def make_whole(transformer: nn.Module, keep: bool) -> None:
    """Gather the weights of a sharded transformer on the CPU and turn it into an ordinary module again, in place.

    All processes call it, because all take part in gathering.

    Args:
        keep: Whether this process keeps the weights; otherwise its transformer is on the meta device.
    """
    reshard(transformer)
    for module in transformer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            whole = full_tensor(parameter)
            value = whole.cpu() if keep else torch.empty_like(whole, device="meta")
            module._parameters[name] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for module in _sharded_modules(transformer):
        module.__class__ = type(module).__mro__[2]
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if type(getattr(hook, "__self__", None)).__name__ == "FSDPState":
                    del hooks[key]
    transformer.to("cpu" if keep else "meta")  # the buffers


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that is sharded over processes as a whole, in every process; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a tensor, in the same memory; of a tensor that is not sharded all of it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor sharded as another of its shape is, which may be not at all."""
    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
