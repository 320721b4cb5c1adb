"""The sampler of class-conditional and unconditional models: a denoising loop with classifier-free guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import null_label
from skipdit_cli.families.protocols import Transformer
from skipdit_cli.sampling.pixels import is_video
from skipdit_cli.sampling.schedulers import predicts_sigma


@dataclass(frozen=True)
class ByClass:
    """Denoise batches of latents under class labels, guided in one doubled batch whose first half is conditional.

    Args:
        transformer: Predicts noise or velocity (B, C or 2C, [F,] h, w) from latents (B, C, [F,] h, w).
        scheduler: The diffusers scheduler to step with.
        guidance_scale: Classifier-free guidance, off at 1 and for an unconditional model.
        guided_channels: The number of channels, out of C, that guidance changes; the rest stay conditional.
        num_inference_steps: Denoising steps; not used with latents given to ``run``.
        shape: (C, [F,] h, w) of one sample's latents; not used with latents given to ``run``.
        advance: Called after each denoising step.
    """

    transformer: Transformer
    scheduler: Any
    guidance_scale: float = 1.0
    guided_channels: int = 3
    num_inference_steps: int = 50
    shape: tuple[int, ...] = ()
    advance: Callable[[], None] | None = None

    @torch.no_grad()
    def run(
        self,
        labels: Sequence[int | None] | torch.Tensor | None,
        generators: Sequence[torch.Generator] | None,
        latents: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None, list]:
        """Sample one batch.

        Args:
            labels: One class label per sample; None, or one None per sample, for an unconditional model.
            generators: One per sample, for the initial latents and for schedulers that add noise.
            latents: (B, C, [F,] h, w) at the scale of the first timestep that ``scheduler`` is set to already; drawn
                from ``generators`` if None.
        Returns:
            The denoised latents (B, C, [F,] h, w), float32; and no images and no sounds (see ``ByText.run``).
        """
        transformer, scheduler = self.transformer, self.scheduler
        latents = (self.initial_latents(generators or ()) if latents is None else latents).float()
        class_labels: Any = None
        if labels is not None and labels[0] is not None:
            class_labels = torch.as_tensor(labels, device=latents.device)
        guided, channels = self.guidance_scale > 1 and class_labels is not None, latents.shape[1]
        if guided:
            null_labels: Any = torch.full_like(class_labels, null_label(transformer.config))
            class_labels = torch.cat([class_labels, null_labels])
        takes_sigma = scheduler.config.get("variance_type") in ("learned", "learned_range")
        takes_sigma = takes_sigma and predicts_sigma(transformer)
        noise = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        for t, t_device in zip(scheduler.timesteps, scheduler.timesteps.to(latents.device)):
            x = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
            x = (torch.cat([x, x]) if guided else x).to(transformer.dtype)
            output = transformer(
                hidden_states=x, timestep=t_device.expand(len(x)), class_labels=class_labels, return_dict=False
            )[0].float()
            output = self._guide(output) if guided else output
            output = output if takes_sigma else output[:, :channels]
            latents = scheduler.step(output, t, latents, return_dict=False, **noise)[0]
            if self.advance is not None:
                self.advance()
        return latents, None, []

    def initial_latents(self, generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Set the scheduler's timesteps, and return noise (B, C, [F,] h, w), float32, at the scale of the first."""
        self.scheduler.set_timesteps(self.num_inference_steps)
        noise = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])
        return (noise * getattr(self.scheduler, "init_noise_sigma", 1.0)).to(self.transformer.device)

    def _guide(self, output: torch.Tensor) -> torch.Tensor:
        """Extrapolate from the unconditional to the conditional half of the output (arXiv 2207.12598, eq. 6)."""
        conditional, unconditional = output.chunk(2)
        guided, rest = conditional.split([self.guided_channels, output.shape[1] - self.guided_channels], dim=1)
        base = unconditional[:, : self.guided_channels]
        return torch.cat([base + self.guidance_scale * (guided - base), rest], dim=1)


def denoise(
    transformer,
    scheduler,
    latents: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    guidance_scale: float = 1.0,
    guided_channels: int = 3,
    generators: Sequence[torch.Generator] | None = None,
    advance: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Denoise latents over the timesteps that ``scheduler`` is set to, and return them as float32.

    Args:
        latents: (B, C, [F,] h, w) noise at the scale of the first timestep.
        labels: (B,) int64 class labels; None for an unconditional model.
        guidance_scale, guided_channels, generators, advance: See ``ByClass``.
    """
    sampler = ByClass(transformer, scheduler, guidance_scale, guided_channels, advance=advance)
    return sampler.run(labels, generators, latents)[0]


def sample_shape(pipe, num_frames: int | None) -> tuple[int, ...]:
    """Return the shape of one sample's latents: (C, h, w), or (C, F, h, w) for a video model.

    Raises:
        UsageError: A number of frames is given for an image model, or exceeds the positions of a video model.
    """
    config = pipe.transformer.config
    size = (config.sample_size, config.sample_size)
    if not is_video(pipe):
        if num_frames is not None:
            raise UsageError(f"Got --num-frames {num_frames}, but this model makes images; leave the flag out.")
        return config.in_channels, *size
    frames = config.video_length if num_frames is None else num_frames
    if not 1 <= frames <= config.video_length:
        raise UsageError(f"Got --num-frames {frames} but the model has positions for 1..{config.video_length}.")
    return config.in_channels, frames, *size
