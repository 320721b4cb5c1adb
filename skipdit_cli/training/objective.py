"""From a micro-batch to its loss: latents, noise, what the model is told, and images beside videos."""

from __future__ import annotations

from dataclasses import replace

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from skipdit_cli.training.conditioning import conditioning_of
from skipdit_cli.training.latents import moments
from skipdit_cli.training.listing import Condition
from skipdit_cli.training.loss import DiffusionLoss, Losses
from skipdit_cli.training.order import LATENT, NOISE, Draws, draw, generator
from skipdit_cli.training.pixels import Batch
from skipdit_cli.training.store import Store


class Objective:
    """What a pipeline's transformer is trained on.

    Args:
        device: Where the losses are computed.
        store: Where what is made once is kept: batches hold the moments of ``Latents`` instead of pixels.
    """

    def __init__(self, pipe, device: torch.device, seed: int, label_dropout: float, store: Store | None = None):
        self.vae, self.device, self.seed, self.label_dropout = pipe.vae, device, seed, label_dropout
        self.encoded = store is not None
        self.condition = conditioning_of(pipe, device, store)
        self.loss = DiffusionLoss(pipe.scheduler.betas).to(device)

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
        return x0, draw((self.seed, NOISE, *key), x0.shape, self.loss.num_timesteps, self.label_dropout)

    def losses(self, model, x0: torch.Tensor, drawn: Draws, conditions: list[Condition], **arguments) -> Losses:
        """The loss on latents or pixels (B, C, [F,] h, w); ``arguments`` go to the model."""
        noise, t = drawn.noise.to(self.device), drawn.t.to(self.device)
        frames = x0.shape[2] if x0.ndim == 5 else 1
        told = self.condition(conditions, drawn.dropped, self.device, frames)
        xt = self.loss.add_noise(x0, noise, t)
        return self.loss(model(xt, timestep=t, return_dict=False, **told, **arguments)[0], x0, noise, t)

    def encode(self, pixels: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        """Latents drawn from the VAE's posterior, scaled; for a model of pixels, those."""
        if self.vae is None:
            return pixels
        posterior = DiagonalGaussianDistribution(pixels if self.encoded else moments(self.vae, pixels))
        return posterior.sample(generator=source) * self.vae.config.scaling_factor
