"""From a micro-batch to its loss: latents, noise, what the model is told, and images beside videos."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from skipdit_cli.sampling.latents import check_scaling, scale
from skipdit_cli.training.data.crops import Batch
from skipdit_cli.training.data.encoding import moments
from skipdit_cli.training.data.listing import Condition
from skipdit_cli.training.data.order import LATENT, NOISE, Draws, Order, draw, generator
from skipdit_cli.training.data.store import Store
from skipdit_cli.training.objective.conditioning import conditioning_of
from skipdit_cli.training.objective.flow import loss_of, span_of, usual_weighting
from skipdit_cli.training.objective.loss import Losses
from skipdit_cli.training.objective.text_conditioning import patch_of
from skipdit_cli.training.training_settings import Weighting


class Objective:
    """What a pipeline's transformer is trained on.

    Args:
        device: Where the losses are computed.
        store: Where what is made once is kept: batches hold the moments of ``Latents`` instead of pixels.
        weighting: Of a flow matching loss; None for the usual one.
        expert: Which of two transformers it is, see ``demand.EXPERTS``: its timesteps alone are drawn.
    Raises:
        UsageError: There is no such loss, no text encoder, or no knowing how the VAE's latents are scaled.
    """

    def __init__(
        self,
        pipe,
        device: torch.device,
        seed: int,
        label_dropout: float,
        store: Store | None = None,
        weighting: Weighting | None = None,
        expert: str | None = None,
    ):
        self.vae, self.device, self.seed, self.label_dropout = pipe.vae, device, seed, label_dropout
        self.encoded, self.finite = store is not None, {}
        if self.vae is not None:
            check_scaling(self.vae)
        self.condition = conditioning_of(pipe, device, store)
        span = span_of(pipe, expert)
        weighting = weighting or usual_weighting(pipe)
        self.loss = loss_of(pipe.scheduler, weighting, math.prod(patch_of(pipe)), span).to(device)

    def __call__(self, model, batch: Batch, *key: int) -> Losses:
        """The loss of a micro-batch; all that is drawn depends on the seed and ``key``.

        Images beside videos go through the model without its temporal blocks, at the timestep of their video; a frame
        counts as much as an image (``use_image_num`` in Latte's train_with_img.py).
        """
        x0, drawn = self.draw(batch.pixels, key)
        losses = self.losses(model, x0, drawn, batch.conditions)
        if batch.images is None:
            return losses
        images, beside = self.draw(batch.images, (*key, 1))
        count, frames = len(images) // len(x0), x0.shape[2]
        beside = replace(beside, t=drawn.t.repeat_interleave(count))
        others = self.losses(model, images, beside, batch.image_conditions, enable_temporal_attentions=False)
        weighted = ((frames * one + count * other) / (frames + count) for one, other in zip(losses, others))
        return Losses(*weighted)

    def draw(self, pixels: torch.Tensor, key: tuple[int, ...]) -> tuple[torch.Tensor, Draws]:
        """What the model is to restore, and the noise and timesteps for it."""
        x0 = self.encode(pixels.to(self.device), generator(self.seed, LATENT, *key))
        self.finite[key] = x0.flatten(1).isfinite().all(1)  # left on the device, and read if the loss is no number
        loss = self.loss
        key = (self.seed, NOISE, *key)
        return x0, draw(key, x0.shape, loss.num_timesteps, self.label_dropout, loss.density)

    def broken_sample(self, order: Order) -> int | None:
        """The number of the first sample since ``finite`` was last cleared whose latents are NaN or infinite.

        Args:
            order: Of this process's micro-batches.
        """
        for (micro, _, *beside), finite in self.finite.items():
            choices = order.batch(micro)
            choices = [image for choice in choices for image in choice.images] if beside else choices
            for choice, good in zip(choices, finite.tolist()):
                if not good:
                    return choice.index
        return None

    def losses(self, model, x0: torch.Tensor, drawn: Draws, conditions: list[Condition], **arguments) -> Losses:
        """The loss on latents or pixels (B, C, [F,] h, w); ``arguments`` go to the model."""
        noise, t = drawn.noise.to(self.device), drawn.t.to(self.device)
        xt, times = self.loss.add_noise(x0, noise, t), self.loss.times(t, x0)
        return self.loss(
            self.condition.predict(model, xt, times, conditions, drawn.dropped, **arguments), x0, noise, t
        )

    def encode(self, pixels: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        """Latents drawn from the VAE's posterior, scaled; for a model of pixels, those."""
        if self.vae is None:
            return pixels
        posterior = DiagonalGaussianDistribution(pixels if self.encoded else moments(self.vae, pixels))
        return scale(self.vae, posterior.sample(generator=source))
