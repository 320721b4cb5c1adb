"""DeepSpeed's ZeRO stage 2: every process holds the weights, and a partition of the state of the optimizer."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env

from skipdit_cli.errors import UsageError
from skipdit_cli.training.distributed.parallelism import Replicated, computing_in, trained_parameters

MOMENTS = ("exp_avg", "exp_avg_sq")
"""The tensors in the state of AdamW that are as large as their parameter."""


def zero_is_requested() -> bool:
    """Return whether the launcher requests DeepSpeed (``accelerate launch --use_deepspeed --zero_stage 2``)."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def check_zero(mixed_precision: str) -> None:
    """Check the settings of DeepSpeed that the launcher passes on in environment variables.

    Raises:
        UsageError: A setting is not supported, or DeepSpeed is not installed.
    """
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage != "2":
        raise UsageError(
            f"Launched with ZeRO stage {stage}, but expected stage 2, or FSDP2, which shards weights as well: "
            "accelerate launch --use_fsdp --fsdp_version 2."
        )
    if mixed_precision == "fp16":
        raise UsageError("Got --mixed-precision fp16 with DeepSpeed; expected no or bf16.")
    for name, flag in (
        ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "--deepspeed_config_file"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "--offload_optimizer_device"),
        ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "--offload_param_device"),
    ):
        value = os.environ.get(name, "none")
        if value != "none":
            raise UsageError(f"Launched with {flag} {value}, which is not supported; leave it out.")
    if importlib.util.find_spec("deepspeed") is None:
        raise UsageError("Launched with DeepSpeed, which is not installed: run 'pip install deepspeed'.")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it logs to standard output


class ZeroPartitioned(Replicated):
    """Every process holds the weights, and a partition of the state of the optimizer (ZeRO stage 2).

    Weights stay in float32 and are computed with under autocast, so that the numbers are those of DDP.
    """

    def prepare(self, transformer, make_optimizer):
        settings, accelerator = self.settings, self.accelerator
        plugin = accelerator.state.deepspeed_plugin
        plugin.gradient_accumulation_steps = settings.gradient_accumulation_steps
        plugin.deepspeed_config |= {
            "train_batch_size": settings.batch(accelerator.num_processes),
            "train_micro_batch_size_per_gpu": settings.train_batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            "gradient_clipping": settings.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
        }
        trained = trained_parameters(transformer)
        model, optimizer = accelerator.prepare(transformer, make_optimizer(trained))
        self._set_steps(optimizer, 0.0)  # DeepSpeed has taken a first step, without gradients
        return trained, computing_in(settings.mixed_precision, accelerator.device, model), optimizer

    @contextmanager
    def accumulating(self, model) -> Iterator[None]:
        gradient_state = self.accelerator.gradient_state
        gradient_state._set_sync_gradients(False)
        try:
            yield
        finally:
            gradient_state._set_sync_gradients(True)

    def finish(self, model, transformer):
        """Do nothing: the transformer is still the module that it was, with all weights in every process."""

    def save(self, checkpoints, state, optimizer, trained):
        from deepspeed.utils import safe_get_full_optimizer_state

        group = _inner(optimizer).param_groups[0]
        steps = next(iter(_inner(optimizer).state.values()))["step"].cpu()
        values = {}
        for number, parameter in enumerate(trained.values()):
            moments = {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in MOMENTS}
            values[number] = {"step": steps.clone(), **moments}
        groups = [{**{key: value for key, value in group.items() if key != "params"}, "params": list(values)}]
        if self.accelerator.is_main_process:
            state.rest = {"optimizer": {"state": values, "param_groups": groups}, **state.rest}
            checkpoints.save(state)

    def load_optimizer(self, optimizer, trained, state):
        from deepspeed.utils import safe_set_full_optimizer_state

        optimizer.optimizer.refresh_fp32_params()
        for number, parameter in enumerate(trained.values()):
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state["state"][number][key].to(parameter.device), key)
        self._set_steps(optimizer, float(state["state"][0]["step"]))
        saved = {key: value for key, value in state["param_groups"][0].items() if key != "params"}
        _inner(optimizer).param_groups[0].update(saved)

    def _set_steps(self, optimizer, steps: float) -> None:
        for values in _inner(optimizer).state.values():
            values["step"].fill_(steps)


def _inner(optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of torch inside those of accelerate and DeepSpeed."""
    return optimizer.optimizer.optimizer
