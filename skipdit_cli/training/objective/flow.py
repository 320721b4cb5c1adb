"""The flow matching loss: the velocity from sample to noise (arXiv 2403.03206)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.pipelines.sit_pipeline import SiTPipeline
from skipdit_cli.training.objective.loss import PREDICTIONS, DiffusionLoss, Losses
from skipdit_cli.training.training_settings import Weighting

AT_ONCE, ROUNDS = 1024, 1000
"""How many timesteps are drawn to find some of a span, and how often."""


class FlowLoss:
    """The velocity's squared error at the noise levels of a scheduler, shifted as it shifts them.

    Timesteps are counted from the most noise to the least, as in diffusers' training scripts.

    Args:
        scheduler: One of flow matching.
        token: Height times width of a token in latents: a scheduler may shift by the number of tokens.
        span: The timesteps trained on, as the model is told them: from the first number on and below the second. None
            for all.
    Raises:
        UsageError: The weighting draws next to no timestep of the span.
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
        return self  # the tables are made where they are asked for

    def _tables(self, tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(T,) sigmas and (T,) timesteps."""
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
        """Where timesteps lie among all: (count,), from 0 to 1. Of a span: drawn among all, and kept if they lie in
        it."""
        if self.span is None:
            return self._drawn(count, generator)
        least, most = self.span
        _, times = self.tables(1, torch.device("cpu"))
        inside, found = (times >= least) & (times < most), torch.empty(0)
        for _ in range(ROUNDS):
            drawn = self._drawn(AT_ONCE, generator)
            at = (drawn * self.num_timesteps).long().clamp(0, self.num_timesteps - 1)
            found = torch.cat([found, drawn[inside[at]]])
            if len(found) >= count:
                return found[:count]
        raise UsageError(
            f"The weighting {self.weighting} draws next to no timesteps t with {least:g} <= t < {most:g}, which this "
            "run trains; give another --weighting-scheme, --logit-mean or --logit-std."
        )

    def _drawn(self, count: int, generator: torch.Generator) -> torch.Tensor:
        own = self.weighting
        return compute_density_for_timestep_sampling(
            own.scheme, count, own.logit_mean, own.logit_std, own.mode_scale, generator=generator
        )

    def times(self, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Timesteps as the model is told them."""
        return self.tables(x0[0, 0].numel() // self.token, x0.device)[1][t]

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = self._at(t, x0)
        return (1 - sigma) * x0 + sigma * noise

    def __call__(self, output, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Losses:
        """
        Args:
            output: (B, C, [F,] h, w), the predicted velocity.
            x0, noise: (B, C, [F,] h, w).
            t: (B,) int64 in 0..T-1.
        """
        squared = (noise - x0 - output.float()).square()
        weighted = compute_loss_weighting_for_sd3(self.weighting.scheme, self._at(t, x0)) * squared
        return Losses(weighted.mean(), squared.mean().detach(), torch.zeros_like(squared.mean()))


def shift_of(config, tokens: int) -> float:
    """mu of a scheduler that shifts by the number of tokens."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(config[name] for name in names))


def is_flow(scheduler) -> bool:
    config = scheduler.config
    return type(scheduler).__name__.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def span_of(pipe, expert: str | None) -> tuple[float, float] | None:
    """The timesteps at which a pipeline of two transformers uses one: from the first number on and below the second.

    Args:
        expert: ``high`` or ``low``; None of a pipeline of one.
    """
    if expert is None:
        return None
    boundary = pipe.config.boundary_ratio * pipe.scheduler.config.num_train_timesteps
    return (boundary, math.inf) if expert == "high" else (-math.inf, boundary)


def usual_weighting(pipe) -> Weighting | None:
    """The weighting that a pipeline's model was trained with where it is not that of diffusers' scripts: SiT draws its
    timesteps evenly (``Transport.sample`` in its transport/transport.py)."""
    return Weighting("none") if isinstance(pipe, SiTPipeline) else None


def loss_of(
    scheduler, weighting: Weighting | None, token: int = 1, span: tuple[float, float] | None = None
) -> DiffusionLoss | FlowLoss:
    """The loss of what a scheduler denoises.

    Args:
        weighting, span: Of a flow matching loss; None for the usual one, and for all timesteps.
    Raises:
        UsageError: There is none for its prediction type, or a weighting for a loss of another kind.
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
