"""From a micro-batch to its loss: latents, noise, prediction, loss, and joint training on images and videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from skipdit_cli.sampling.latents import check_scaling, scale
from skipdit_cli.training.data.latent_dataset import moments
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.order import LATENT, NOISE, Draws, Order, Rows, draw, generator, join
from skipdit_cli.training.data.pixel_dataset import Batch
from skipdit_cli.training.encoded.tensor_store import Store
from skipdit_cli.training.objective.conditioning import conditioning_of
from skipdit_cli.training.objective.flow import loss_of, span_of, usual_weighting
from skipdit_cli.training.objective.loss import Losses
from skipdit_cli.training.objective.text_conditioning import patch_of
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.weighting import Weighting


class Objective:
    """The training objective of a pipeline's transformer: gives the loss of a micro-batch.

    Args:
        device: The device of the losses.
        store: Keeps encoded captions; with it, batches hold the moments of ``Latents`` instead of pixels.
        weighting: The weighting of a flow matching loss; None for the model's usual one.
        expert: Which of two transformers is trained, see ``EXPERTS``; only its timesteps are drawn.
    Raises:
        UsageError: The pipeline has no loss, no text encoder, or a VAE whose scaling is unknown.
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
        observer: Observer = SILENT,
    ):
        self.vae, self.device, self.seed, self.label_dropout = pipe.vae, device, seed, label_dropout
        self.encoded, self.finite = store is not None, {}
        self._draw, self._latent_noise = lru_cache(maxsize=2)(self._new_draw), lru_cache(maxsize=2)(self._new_noise)
        if self.vae is not None:
            check_scaling(self.vae)
        self.condition = conditioning_of(pipe, device, store, observer)
        span = span_of(pipe, expert)
        weighting = weighting or usual_weighting(pipe)
        self.loss = loss_of(pipe.scheduler, weighting, math.prod(patch_of(pipe)), span).to(device)

    def __call__(self, model, batch: Batch, *key: int, rows: Sequence[Rows] | None = None) -> Losses:
        """Return the loss of a micro-batch; all random numbers depend on the seed and on ``rows`` or ``key``.

        In joint training, images pass through the model without its temporal blocks, at the timestep of their video;
        a frame counts as much as an image (``use_image_num`` in Latte's train_with_img.py).

        Args:
            key: The number of the micro-batch, and that of the process.
            rows: Where the random numbers of its samples lie in the draws of all processes. None draws them for this
                micro-batch alone, by ``key``.
        """
        alone = Rows(0, 0, len(batch.pixels), len(batch.pixels))
        parts = [(key, alone)] if rows is None else [((each.draw, 0), each) for each in rows]
        x0, draws = self.draw(batch.pixels, parts, key)
        losses = self.losses(model, x0, draws, batch.conditions)
        if batch.images is None:
            return losses
        count, frames = len(batch.images) // len(x0), x0.shape[2]
        parts = [((*draw_key, 1), each.times(count)) for draw_key, each in parts]
        images, image_draws = self.draw(batch.images, parts, (*key, 1))
        image_draws = replace(image_draws, t=draws.t.repeat_interleave(count))
        image_losses = self.losses(
            model, images, image_draws, batch.image_conditions, enable_temporal_attentions=False
        )
        return Losses(*((frames * a + count * b) / (frames + count) for a, b in zip(losses, image_losses)))

    def draw(
        self, pixels: torch.Tensor, parts: Sequence[tuple[tuple[int, ...], Rows]], key: tuple[int, ...]
    ) -> tuple[torch.Tensor, Draws]:
        """Return the latents of a micro-batch, or its pixels, and its random numbers.

        Args:
            parts: The keys of the draws that its random numbers are taken from, each with the rows that are taken.
            key: The key under which ``broken_sample`` finds the micro-batch.
        """

        def normal(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
            noise = [self._latent_noise(each, (rows.count, *shape[1:]), dtype) for each, rows in parts]
            return torch.cat([whole[rows.start : rows.stop] for whole, (_, rows) in zip(noise, parts)])

        x0 = self.encode(pixels.to(self.device), normal)
        self.finite[key] = x0.flatten(1).isfinite().all(1)  # stays on the device until a loss is not finite
        shape = tuple(x0.shape[1:])
        draws = [self._draw(each, (rows.count, *shape)).rows(rows.start, rows.stop) for each, rows in parts]
        return x0, join(draws)

    def _new_draw(self, key: tuple[int, ...], shape: tuple[int, ...]) -> Draws:
        loss = self.loss
        return draw((self.seed, NOISE, *key), shape, loss.num_timesteps, self.label_dropout, loss.density)

    def _new_noise(self, key: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator(self.seed, LATENT, *key), dtype=dtype)

    def broken_sample(self, order: Order) -> int | None:
        """Return the number of the first sample of this step whose latents are NaN or infinite, or None.

        Args:
            order: The order of this process's micro-batches.
        """
        for (micro, _, *joint), finite in self.finite.items():
            choices = order.batch(micro)
            choices = [image for choice in choices for image in choice.images] if joint else choices
            for choice, is_sample_finite in zip(choices, finite.tolist()):
                if not is_sample_finite:
                    return choice.index
        return None

    def losses(self, model, x0: torch.Tensor, draws: Draws, conditions: list[Condition], **arguments) -> Losses:
        """Return the loss on latents or pixels (B, C, [F,] h, w); ``arguments`` go to the model."""
        noise, t = draws.noise.to(self.device), draws.t.to(self.device)
        xt, times = self.loss.add_noise(x0, noise, t), self.loss.times(t, x0)
        output = self.condition.predict(model, xt, times, conditions, draws.dropped, **arguments)
        return self.loss(output, x0, noise, t)

    def encode(self, pixels: torch.Tensor, normal: Callable[[torch.Size, torch.dtype], torch.Tensor]) -> torch.Tensor:
        """Return scaled latents drawn from the VAE's posterior; the pixels themselves if the pipeline has no VAE.

        Args:
            normal: Draws numbers from the normal distribution, in a shape and a dtype.
        """
        if self.vae is None:
            return pixels
        posterior = DiagonalGaussianDistribution(pixels if self.encoded else moments(self.vae, pixels))
        noise = normal(posterior.mean.shape, posterior.mean.dtype).to(posterior.mean.device)
        return scale(self.vae, posterior.mean + posterior.std * noise)
