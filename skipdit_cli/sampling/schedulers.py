"""Samplers by name, each a diffusers scheduler made from the pipeline's own configuration."""

from __future__ import annotations

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from skipdit_cli.errors import UsageError, nearest, reading
from skipdit_cli.sampling.call_arguments import takes_text


class RespacedDDIMScheduler(diffusers.DDIMScheduler):
    """DDIM (arXiv 2010.02502, eq. 12, eta 0) from each timestep to the next one of its own list.

    diffusers' class steps back by ``num_train_timesteps // num_inference_steps`` whatever the list says, which is
    right for leading spacing only. This is the respaced DDIM of the DiT repository (diffusion/respace.py).
    """

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        super().set_timesteps(num_inference_steps, device)
        steps = self.timesteps.tolist()
        self.next_timestep = dict(zip(steps, [*steps[1:], None]))

    def step(self, model_output, timestep, sample, return_dict: bool = True):
        following = self.next_timestep[int(timestep)]
        alpha = self.alphas_cumprod[int(timestep)]
        alpha_next = self.final_alpha_cumprod if following is None else self.alphas_cumprod[following]
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
        moved = alpha_next**0.5 * x0 + (1 - alpha_next) ** 0.5 * eps
        return DDIMSchedulerOutput(prev_sample=moved, pred_original_sample=x0) if return_dict else (moved, x0)


class EvenFlowScheduler(diffusers.FlowMatchEulerDiscreteScheduler):
    """Euler steps of one length from noise to data, as SiT's ``ode`` takes them (transport/integrators.py).

    diffusers' class puts its last step at 1 / ``num_train_timesteps`` unless a pipeline gives it the sigmas.
    """

    init_noise_sigma = 1.0

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        sigmas = [1 - step / num_inference_steps for step in range(num_inference_steps)]
        super().set_timesteps(device=device, sigmas=sigmas)

    def scale_model_input(self, sample, timestep=None):
        return sample


SCHEDULERS: dict[str, tuple[type, dict]] = {
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
"""Those that can sample a flow, where the configuration says so (Wan)."""


def check_name(name: str | None) -> None:
    """
    Raises:
        UsageError: Not one of ``SCHEDULERS``, and not None.
    """
    if name is not None and name not in SCHEDULERS:
        raise UsageError(
            f"Got --scheduler '{name}' but expected one of {', '.join(SCHEDULERS)}.{nearest(name, SCHEDULERS)}"
        )


def make_scheduler(name: str | None, pipe):
    """A fresh scheduler for one run.

    Args:
        name: One of ``SCHEDULERS``, or None for the pipeline's own kind; of a text pipeline that is its very own, so
            that a sample is the one diffusers makes.
    Raises:
        UsageError: An unknown name, or one that cannot sample what the model was trained for.
    """
    check_name(name)
    own = pipe.scheduler
    flow = follows_flow(own)
    if name is not None and flow and ("beta_schedule" not in own.config or name not in FLOWS):
        among = f"takes {', '.join(FLOWS)}" if "beta_schedule" in own.config else "has a scheduler of its own alone"
        raise UsageError(f"Got --scheduler {name}, but this model's samples follow a flow, which {among}.")
    if name is None and takes_text(pipe):
        return type(own).from_config(own.config)
    if type(own) is diffusers.FlowMatchEulerDiscreteScheduler:
        return EvenFlowScheduler.from_config(own.config)
    if name is None and type(own) is diffusers.DDIMScheduler:
        name = "ddim"
    kind, settings = SCHEDULERS[name] if name else (type(own), {})
    if kind is diffusers.DDPMScheduler and "variance_type" not in own.config:
        settings = {"variance_type": "learned_range" if predicts_sigma(pipe.transformer) else "fixed_small"}
    config = dict(own.config)
    if kind is not diffusers.DDPMScheduler:  # diffusers' DPM-Solver would keep three channels of a learned variance
        config.pop("variance_type", None)
    with reading(f"Got --scheduler {name}, but the scheduler's config of this model", failed="does not fit it"):
        return kind.from_config(config, **settings)


def follows_flow(scheduler) -> bool:
    """Whether samples follow the flow from noise to data, by what the scheduler's configuration says."""
    config = scheduler.config
    return "beta_schedule" not in config or config.get("prediction_type") == "flow_prediction"


def predicts_sigma(transformer: torch.nn.Module) -> bool:
    """Whether the model's output holds a learned variance behind the noise (twice the input's channels)."""
    return transformer.config.out_channels == 2 * transformer.config.in_channels
