"""The flow matching loss: the velocity from sample to noise (arXiv 2403.03206)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.pipelines.sit_pipeline import SiTPipeline
from skipdit_cli.training.objective.loss import PREDICTIONS, DiffusionLoss, Losses
from skipdit_cli.training.weighting import Weighting

DRAWS_PER_ROUND, ROUNDS = 1024, 1000
"""Timesteps are drawn in rounds until enough of them lie in a span."""


class FlowLoss:
    """The squared error of the velocity at the noise levels of a scheduler, shifted as the scheduler shifts them.

    Timesteps are counted from the most noise to the least, as in diffusers' training scripts.

    Args:
        scheduler: A flow matching scheduler.
        token: The area of a token in latents, because a scheduler may shift by the number of tokens.
        span: The range of timesteps to train on, as the model takes them: from the first number up to but not
            including the second. None for all.
    Raises:
        UsageError: The weighting draws almost no timestep in the span.
    """

    def __init__(
        self,
        scheduler,
        weighting: Weighting = Weighting(),
        token: int = 1,
        span: tuple[float, float] | None = None,
    ):
        self.scheduler, self.weighting, self.token = type(scheduler).from_config(scheduler.config), weighting, token
        self.num_timesteps, self.span = scheduler.config.num_train_timesteps, span
        self.tables = lru_cache(maxsize=4)(self._tables)
        if span is not None:
            self.density(1, torch.Generator())

    def to(self, device: torch.device) -> FlowLoss:
        """Return this loss, whose tables are made on the device of the latents."""
        return self

    def _tables(self, tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sigmas (T,) and timesteps (T,) for a number of tokens."""
        scheduler, config = self.scheduler, self.scheduler.config
        if config.get("use_dynamic_shifting"):
            even = torch.arange(self.num_timesteps, 0, -1) / self.num_timesteps
            sigmas = scheduler.time_shift(shift_of(config, tokens), 1.0, even)
            return sigmas.to(device), (sigmas * self.num_timesteps).to(device)
        if config.get("use_flow_sigmas"):
            scheduler.set_timesteps(self.num_timesteps)
        sigmas, timesteps = scheduler.sigmas[: self.num_timesteps], scheduler.timesteps
        return sigmas.float().to(device), timesteps.to(device)

    def _at(self, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        sigmas, _ = self.tables(x0[0, 0].numel() // self.token, x0.device)
        return sigmas[t].view(-1, *[1] * (x0.ndim - 1))

    def density(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the positions of timesteps, (count,) between 0 and 1; those outside the span are drawn again."""
        if self.span is None:
            return self._draw(count, generator)
        least, end = self.span
        _, times = self.tables(1, torch.device("cpu"))
        inside, positions = (times >= least) & (times < end), torch.empty(0)
        for _ in range(ROUNDS):
            round_positions = self._draw(DRAWS_PER_ROUND, generator)
            t = (round_positions * self.num_timesteps).long().clamp(0, self.num_timesteps - 1)
            positions = torch.cat([positions, round_positions[inside[t]]])
            if len(positions) >= count:
                return positions[:count]
        raise UsageError(
            f"The weighting {self.weighting} draws next to no timesteps t with {least:g} <= t < {end:g}, which this "
            "run trains; give another --weighting-scheme, --logit-mean or --logit-std."
        )

    def _draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        weighting = self.weighting
        return compute_density_for_timestep_sampling(
            weighting.scheme,
            count,
            weighting.logit_mean,
            weighting.logit_std,
            weighting.mode_scale,
            generator=generator,
        )

    def times(self, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Return timesteps as the model takes them."""
        return self.tables(x0[0, 0].numel() // self.token, x0.device)[1][t]

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return noisy latents x_t, (B, C, [F,] h, w), for t (B,) int64."""
        sigma = self._at(t, x0)
        return (1 - sigma) * x0 + sigma * noise

    def __call__(self, output, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Losses:
        """Return the loss of a prediction.

        Args:
            output: (B, C, [F,] h, w), the predicted velocity.
            x0, noise: (B, C, [F,] h, w).
            t: (B,) int64 in 0..T-1.
        """
        squared = (noise - x0 - output.float()).square()
        weighted = compute_loss_weighting_for_sd3(self.weighting.scheme, self._at(t, x0)) * squared
        return Losses(weighted.mean(), squared.mean().detach(), torch.zeros_like(squared.mean()))


def shift_of(config, tokens: int) -> float:
    """Return mu of a scheduler that shifts by the number of tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(config[name] for name in names))


def is_flow(scheduler) -> bool:
    """Return whether a scheduler is for flow matching."""
    config = scheduler.config
    return type(scheduler).__name__.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def span_of(pipe, expert: str | None) -> tuple[float, float] | None:
    """Return the range of timesteps at which a pipeline of two transformers uses one, without its end.

    Args:
        expert: ``high`` or ``low``; None for a pipeline with one transformer.
    """
    if expert is None:
        return None
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    return (boundary, math.inf) if expert == "high" else (-math.inf, boundary)


def usual_weighting(pipe) -> Weighting | None:
    """Return the weighting that a pipeline's model was trained with, or None for that of diffusers' scripts.

    SiT draws its timesteps uniformly (``Transport.sample`` in its transport/transport.py).
    """
    return Weighting("none") if isinstance(pipe, SiTPipeline) else None


def loss_of(
    scheduler, weighting: Weighting | None, token: int = 1, span: tuple[float, float] | None = None
) -> DiffusionLoss | FlowLoss:
    """Return the loss that belongs to a scheduler.

    Args:
        weighting: The weighting of a flow matching loss; None for that of diffusers' scripts.
        token: The area of a token in latents.
        span: The range of timesteps of a flow matching loss, see ``FlowLoss``.
    Raises:
        UsageError: There is none for its prediction type, or a weighting or span is given without flow matching.
    """
    if is_flow(scheduler):
        return FlowLoss(scheduler, weighting or Weighting(), token, span)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UsageError(
            f"The model's scheduler has prediction type {kind}, but what can be trained is {', '.join(PREDICTIONS)} "
            "and flow matching."
        )
    if span is not None:
        raise UsageError(f"Got --expert with a {type(scheduler).__name__} of {kind}, but it is for flow matching.")
    if weighting is not None:
        raise UsageError(
            f"Got --weighting-scheme {weighting.scheme} or one of its numbers, which is for flow matching, but the "
            f"model's {type(scheduler).__name__} has prediction type {kind}; leave it out."
        )
    return DiffusionLoss(scheduler.betas, kind)
