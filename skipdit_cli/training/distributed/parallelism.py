"""How the processes of a run share the model: each holds all of it (DDP), or a shard (FSDP2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, convert_outputs_to_fp32, gather_object

from skipdit_cli.training.distributed.sharded_checkpoint import AVERAGE, WEIGHT, split_optimizer, write_shards
from skipdit_cli.training.distributed.sharding import (
    full_tensor,
    gradients_kept,
    make_whole,
    reshard,
    shard,
)
from skipdit_cli.training.training_settings import TrainingSettings

Parameters = dict[str, torch.nn.Parameter]


class Replicated:
    """Every process holds the whole model: one process, or several under DDP.

    Args:
        accelerator: The accelerator of the run.
        settings: The settings of the run.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings):
        self.accelerator, self.settings = accelerator, settings

    def prepare(self, transformer, make_optimizer: Callable[[Parameters], torch.optim.Optimizer]):
        """Prepare a transformer to be trained.

        Args:
            make_optimizer: Makes the optimizer of the parameters that are trained, by name.
        Returns:
            These parameters, the model to call in training, and the optimizer.
        """
        trained = trained_parameters(transformer)
        return trained, *self.accelerator.prepare(transformer, make_optimizer(trained))

    def accumulating(self, model) -> AbstractContextManager:
        """Leave the gradients of a backward pass in each process for a while."""
        return self.accelerator.no_sync(model)

    def clip(self, trained: Parameters, max_norm: float) -> float:
        """Clip the gradients and return their norm.

        Args:
            max_norm: The maximum norm; 0 for none.
        """
        return float(self.accelerator.clip_grad_norm_(trained.values(), max_norm or math.inf))

    def sampling(self, transformer) -> AbstractContextManager:
        """Have the model ready for sampling, by all processes alike."""
        return nullcontext()

    def finish(self, model, transformer) -> None:
        """Turn the transformer into an ordinary module again, with its weights in the main process."""
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    def load_optimizer(self, optimizer, trained: Parameters, state: dict) -> None:
        """Put the state of the optimizer of ``trained`` back.

        Args:
            state: Its state dict, with tensors that are sharded as the parameters are.
        """
        optimizer.load_state_dict(state)

    def save(self, checkpoints, state, optimizer, trained: Parameters) -> None:
        """Save a checkpoint.

        Args:
            checkpoints: The ``Checkpoints`` of the run.
            state: The ``TrainingState``, without the optimizer.
            optimizer: The optimizer of ``trained``.
        """
        if self.accelerator.is_main_process:
            state.rest = {"optimizer": optimizer.state_dict(), **state.rest}
            checkpoints.save(state)


class Sharded(Replicated):
    """Every process holds a shard of the weights, of their averages and of the state of the optimizer (FSDP2).

    Weights are gathered in float32 and computed with under autocast, so that the numbers are those of DDP.
    """

    def prepare(self, transformer, make_optimizer):
        device, self.transformer = self.accelerator.device, transformer
        shard(transformer, device)
        trained = trained_parameters(transformer)
        optimizer = self.accelerator.prepare_optimizer(make_optimizer(trained))
        return trained, computing_in(self.settings.mixed_precision, device, transformer), optimizer

    def accumulating(self, model):
        return gradients_kept(self.transformer)

    def clip(self, trained, max_norm):
        self.accelerator.unscale_gradients()
        return float(full_tensor(torch.nn.utils.clip_grad_norm_(trained.values(), max_norm or math.inf)))

    @contextmanager
    def sampling(self, transformer):
        reshard(transformer)
        try:
            yield
        finally:
            reshard(transformer)

    def finish(self, model, transformer):
        make_whole(transformer, self.accelerator.is_main_process)

    def save(self, checkpoints, state, optimizer, trained):
        tensors, rest = split_optimizer(optimizer.state_dict(), trained)
        tensors |= {f"{WEIGHT}.{name}": tensor for name, tensor in state.weights.items()}
        tensors |= {f"{AVERAGE}.{name}": tensor for name, tensor in state.average.items()}
        state.rest = {"optimizer": rest, **state.rest}

        def write(folder: Path | None = None) -> dict[str, str]:
            """Write the shards of this process, and return the checksums of all processes' files."""
            place = [None if folder is None else str(folder)]
            broadcast_object_list(place)
            sums = gather_object([write_shards(tensors, Path(str(place[0])), self.accelerator.process_index)])
            return {name: value for each in sums for name, value in each.items()}

        if self.accelerator.is_main_process:
            checkpoints.save(state, write)
        else:
            write()


def computing_in(precision: str, device: torch.device, model) -> Callable:
    """Return the model, or under mixed precision a function that calls it with autocast.

    Args:
        precision: A value of ``--mixed-precision``.
    """
    if precision == "no":
        return model

    def call(*args, **kwargs):
        with torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]):
            return model(*args, **kwargs)

    return convert_outputs_to_fp32(call)


def trained_parameters(transformer) -> Parameters:
    """Return the parameters that require gradients, by name."""
    return {name: parameter for name, parameter in transformer.named_parameters() if parameter.requires_grad}
