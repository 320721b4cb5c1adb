"""Schedulers that step like the official code of DiT and SiT, where the classes of diffusers differ from it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from skipdit_cli.sampling.schedulers.explicit_timesteps import noise_to_signal


class RespacedDDIMScheduler(DDIMScheduler):
    """Step by DDIM (arXiv 2010.02502, eq. 12, eta 0) from each timestep to the next in the list of timesteps.

    The class of diffusers steps back by ``num_train_timesteps // num_inference_steps`` whatever the list holds, which
    is right for leading spacing only. This is the respaced DDIM of the DiT repository (diffusion/respace.py).

    Attributes:
        explicit: The timesteps that ``set_timesteps`` sets; None for those of ``timestep_spacing``.
    """

    config: Any
    explicit: Sequence[float] | None = None

    def take_timesteps(self, timesteps: Sequence[float]) -> None:
        """Have ``set_timesteps`` set explicit timesteps, fractions among them."""
        self.explicit = timesteps

    def set_timesteps(self, num_inference_steps: int, device=None) -> None:
        """Set the timesteps, and the products of alphas at each and at the one that follows it."""
        super().set_timesteps(num_inference_steps, device)
        if self.explicit is not None:
            whole = all(t == int(t) for t in self.explicit)
            self.timesteps = torch.tensor(self.explicit, dtype=torch.int64 if whole else torch.float32, device=device)
        steps = self.timesteps.tolist()
        alphas = [*map(self._alpha_at, steps), self.final_alpha_cumprod]
        self.alphas_of = dict(zip(steps, itertools.pairwise(alphas)))

    def _alpha_at(self, timestep: float) -> torch.Tensor:
        if timestep == int(timestep):
            return self.alphas_cumprod[int(timestep)]
        return torch.tensor(1 / (1 + noise_to_signal(self.alphas_cumprod, [timestep])[0] ** 2), dtype=torch.float32)

    def step(self, model_output, timestep, sample, return_dict: bool = True):  # type: ignore[override]  # eta is 0
        """Return the sample at the next timestep, and the predicted data, as diffusers' DDIM does."""
        alpha, alpha_next = self.alphas_of[float(timestep)]
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
