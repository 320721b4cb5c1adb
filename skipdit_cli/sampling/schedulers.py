"""Schedulers by name, each a diffusers scheduler made from the config of the pipeline's own."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from skipdit_cli.errors import UsageError, nearest, reading
from skipdit_cli.families.protocols import Pipeline, Transformer
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional


class RespacedDDIMScheduler(DDIMScheduler):
    """Step by DDIM (arXiv 2010.02502, eq. 12, eta 0) from each timestep to the next in the list of timesteps.

    The class of diffusers steps back by ``num_train_timesteps // num_inference_steps`` whatever the list holds, which
    is right for leading spacing only. This is the respaced DDIM of the DiT repository (diffusion/respace.py).
    """

    config: Any

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        """Set the timesteps, and the timestep that follows each."""
        super().set_timesteps(num_inference_steps, device)
        steps = self.timesteps.tolist()
        self.next_timestep = dict(zip(steps, [*steps[1:], None]))

    def step(self, model_output, timestep, sample, return_dict: bool = True):  # type: ignore[override]  # eta is 0
        """Return the sample at the next timestep, and the predicted data, as diffusers' DDIM does."""
        next_timestep = self.next_timestep[int(timestep)]
        alpha = self.alphas_cumprod[int(timestep)]
        alpha_next = self.final_alpha_cumprod if next_timestep is None else self.alphas_cumprod[next_timestep]
        a, b = alpha**0.5, (1 - alpha) ** 0.5
        if self.config.prediction_type == "epsilon":
            x0, eps = (sample - b * model_output) / a, model_output
        elif self.config.prediction_type == "v_prediction":
            x0, eps = a * sample - b * model_output, a * model_output + b * sample
        else:
            x0, eps = model_output, (sample - a * model_output) / b
        if self.config.thresholding:
            x0 = self._threshold_sample(x0)
        elif self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        prev_sample = alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * eps
        if not return_dict:
            return prev_sample, x0
        return DDIMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x0)


class EvenFlowScheduler(FlowMatchEulerDiscreteScheduler):
    """Take Euler steps of equal length from noise to data, as SiT's ``ode`` does (transport/integrators.py).

    The class of diffusers puts its last step at 1 / ``num_train_timesteps`` unless a pipeline passes the sigmas.
    """

    # Our loop gives a number of steps, and never the timesteps or sigmas of the class of diffusers.
    def set_timesteps(self, num_inference_steps: int, device=None) -> None:  # type: ignore[override]
        """Set the timesteps of steps of equal length."""
        super().set_timesteps(device=device, sigmas=even_sigmas(num_inference_steps))


def even_sigmas(num_inference_steps: int) -> list[float]:
    """Return the noise levels before each of some Euler steps of equal length from 1, noise, to 0, data."""
    return [1 - step / num_inference_steps for step in range(num_inference_steps)]


SCHEDULERS: dict[str, tuple[type[Any], dict]] = {
    "ddim": (RespacedDDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "dpm++-sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
}

FLOWS = ("dpm++", "dpm++-sde", "unipc", "deis")
"""Names of ``SCHEDULERS`` that can sample a flow, if the config of the pipeline's own scheduler allows it (Wan)."""


def check_name(name: str | None) -> None:
    """Refuse an unknown scheduler.

    Raises:
        UsageError: The name is not in ``SCHEDULERS``, and not None.
    """
    if name is not None and name not in SCHEDULERS:
        raise UsageError(
            f"Got --scheduler '{name}' but expected one of {', '.join(SCHEDULERS)}.{nearest(name, SCHEDULERS)}"
        )


def make_scheduler(name: str | None, pipe: Pipeline) -> Any:
    """Return a new scheduler for one run.

    Args:
        name: One of ``SCHEDULERS``. None stands for the class of the pipeline's own scheduler, and for DDIM and flow
            matching of class-conditional models for ours, which step like the official code.
    Raises:
        UsageError: The name is unknown, or its scheduler cannot sample what the model was trained for.
    """
    check_name(name)
    original: Any = pipe.scheduler
    config = dict(original.config)
    if name is not None and follows_flow(original) and ("beta_schedule" not in config or name not in FLOWS):
        allowed = f"takes {', '.join(FLOWS)}" if "beta_schedule" in config else "takes its own scheduler only"
        raise UsageError(f"Got --scheduler {name}, but this model's samples follow a flow, which {allowed}.")
    if name is None and is_text_conditional(pipe):
        return type(original).from_config(original.config)
    if type(original) is FlowMatchEulerDiscreteScheduler:
        return EvenFlowScheduler.from_config(config)
    if name is None and type(original) is diffusers.DDIMScheduler:
        name = "ddim"
    kind, changes = SCHEDULERS[name] if name else (type(original), {})
    if kind is diffusers.DDPMScheduler and "variance_type" not in config:
        changes = {"variance_type": "learned_range" if predicts_sigma(pipe.transformer) else "fixed_small"}
    if kind is not diffusers.DDPMScheduler:  # diffusers' DPM-Solver would keep three channels of a learned variance
        config.pop("variance_type", None)
    with reading(f"Got --scheduler {name}, but the scheduler's config of this model", failed="does not fit it"):
        return kind.from_config(config, **changes)


def follows_flow(scheduler) -> bool:
    """Return whether a scheduler integrates a flow from noise to data (flow matching), by its config."""
    config = scheduler.config
    return "beta_schedule" not in config or config.get("prediction_type") == "flow_prediction"


def predicts_sigma(transformer: Transformer) -> bool:
    """Return whether the transformer predicts a variance beside the noise, in twice the channels of its input."""
    return transformer.config.out_channels == 2 * transformer.config.in_channels
