"""The tensors of a checkpoint put back into a run, which may hold them in another number of shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.training.distributed.sharded_checkpoint import AVERAGE, WEIGHT, is_sharded, read_shards, shapes_in
from skipdit_cli.training.distributed.sharding import shard_like


@torch.no_grad()
def restore(
    folder: Path, state, trained: Mapping[str, torch.Tensor], average, load_optimizer: Callable[[dict], None]
) -> None:
    """Put the weights, their averages and the state of the optimizer back as a checkpoint holds them.

    Args:
        folder: The folder of the checkpoint.
        state: The ``TrainingState`` that was read from it.
        trained: The parameters that are trained, by name.
        average: Their ``MovingAverage``.
        load_optimizer: Puts the state dict of the optimizer of ``trained`` back.
    Raises:
        UsageError: The checkpoint is damaged, or of another model.
    """
    (_restore_shards if is_sharded(folder) else _restore_whole)(folder, state, trained, average, load_optimizer)
    average.set_steps(state.rest["average_step"])


def _restore_whole(folder, state, trained, average, load_optimizer) -> None:
    _check_shapes(folder, {name: tensor.shape for name, tensor in state.weights.items()}, trained)
    for targets, tensors in ((trained, state.weights), (average.state_dict(), state.average or state.weights)):
        for name, target in targets.items():
            target.copy_(shard_like(tensors[name], target))
    saved = state.rest["optimizer"]
    values = {
        number: {key: _shard_value(value, parameter) for key, value in saved["state"][number].items()}
        for number, parameter in enumerate(trained.values())
        if number in saved["state"]
    }
    load_optimizer({**saved, "state": values})


def _shard_value(value, parameter: torch.Tensor):
    return shard_like(value, parameter) if torch.is_tensor(value) else value


def _restore_shards(folder, state, trained, average, load_optimizer) -> None:
    shapes = shapes_in(folder)
    prefix = f"{WEIGHT}."
    weights = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    _check_shapes(folder, weights, trained)
    read_shards(folder, {f"{WEIGHT}.{name}": parameter for name, parameter in trained.items()})
    averages = average.state_dict()
    kind = AVERAGE if all(f"{AVERAGE}.{name}" in shapes for name in averages) else WEIGHT
    read_shards(folder, {f"{kind}.{name}": tensor for name, tensor in averages.items()})
    saved, values = state.rest["optimizer"], {}
    tensors: dict[str, torch.Tensor] = {}
    for number, (name, parameter) in enumerate(trained.items()):
        large = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in shapes}
        tensors |= {f"{key}.{name}": tensor for key, tensor in large.items()}
        if number in saved["state"]:
            values[number] = {**saved["state"][number], **large}
    read_shards(folder, tensors)
    load_optimizer({**saved, "state": values})


def _check_shapes(folder: Path, shapes: Mapping[str, torch.Size], trained: Mapping[str, torch.Tensor]) -> None:
    if {**shapes} != {name: parameter.shape for name, parameter in trained.items()}:
        raise UsageError(f"Checkpoint {folder} holds other weights than this run trains; give the model it is of.")
