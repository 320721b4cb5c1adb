"""Latents of clips and images: encoded at each step, or once and kept (``--cache-latents``)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import Dataset

from skipdit_cli import console
from skipdit_cli.errors import NotFiniteError, SkipditError
from skipdit_cli.finite import is_finite
from skipdit_cli.media.intake import RULES
from skipdit_cli.sampling.latents import scale as scaled  # noqa: F401  its name of 0.1.0, which others import
from skipdit_cli.training.data.crops import Pixels
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.store import Store, Tensors, fingerprint

FRAMES_AT_ONCE = 16
LEAST = -30.0
"""The least logarithm of a variance that diffusers' Gaussian has."""


@torch.no_grad()
def moments(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and logarithm of the variance of the VAE's posterior; frame by frame, if it is a VAE of images.

    Args:
        pixels: (B, C, [F,] H, W) in [-1, 1].
    Returns:
        (B, 2c, [f,] h, w).
    """
    if encodes_videos(vae):
        return torch.cat([_posterior(vae, one) for one in pixels.split(1)])
    if pixels.ndim == 4:
        return torch.cat([_posterior(vae, some) for some in pixels.split(FRAMES_AT_ONCE)])
    frames = moments(vae, pixels.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)


def _posterior(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and logarithm of the variance; of a VAE that encodes to latents without a spread, of the least there is."""
    encoded = vae.encode(pixels)
    if "latent_dist" in encoded:
        return encoded.latent_dist.parameters
    latents = next(iter(encoded.values()))
    return torch.cat([latents, torch.full_like(latents, LEAST)], dim=1)


def encodes_videos(vae) -> bool:
    """Whether frames are encoded together."""
    return any(isinstance(module, nn.Conv3d) for module in vae.encoder.modules())


class Latents(Dataset):
    """In the place of ``Pixels``: what ``moments`` makes of its middle clips and middle squares, kept in a store.

    An entry depends on the content of the file, the weights of the VAE, and every setting that shapes the clip; it is
    made where one of them is new.

    Args:
        device: Where the VAE is.
    """

    def __init__(self, pixels: Pixels, vae, store: Store, device: torch.device, mirrored: bool):
        self.pixels, self.vae, self.store, self.device = pixels, vae, store, device
        self.samples = pixels.samples
        self.made = {
            "vae": fingerprint(vae, vae.config),
            "size": pixels.size,
            "mode": pixels.mode,
            "num_frames": pixels.num_frames,
            "frame_stride": pixels.frame_stride,
            "fps_target": pixels.samples.fps_target,
            "reader": RULES,
        }
        with ThreadPoolExecutor() as pool:
            self.digests = list(pool.map(pixels.samples.digest, range(len(pixels))))
        self.variants = (False, True) if mirrored else (False,)

    def encode(self, rank: int = 0, world: int = 1) -> None:
        """Make what is missing of this process's share."""
        mine = [Choice(i, flip) for i in range(rank, len(self), world) for flip in self.variants]
        missing = [choice for choice in mine if self.store.read(self.key(choice)) is None]
        if rank == 0:
            console.say(f"{len(mine) - len(missing):,} of {len(mine):,} latents are kept in {self.store.folder}.")
        with console.progress("encode", len(missing)) if missing else nullcontext() as advance:
            for choice in missing:
                self.store.get(self.key(choice), lambda choice=choice: self.make(choice))
                advance()

    def key(self, choice: Choice) -> dict:
        return {**self.made, "content": self.digests[choice.index], "mirrored": choice.mirrored}

    def make(self, choice: Choice) -> Tensors:
        pixels = self.pixels[replace(choice, images=())][0]
        made = moments(self.vae, pixels[None].to(self.device))[0].cpu()
        if not is_finite(made):
            name = self.samples.name(choice.index)
            raise NotFiniteError(f"The VAE makes NaN or infinity of {name}: take that file out, or give another VAE.")
        return {"moments": made}

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, choice: Choice) -> tuple[torch.Tensor, Condition, torch.Tensor | None, list[Condition]]:
        """As ``Pixels``, moments instead of pixels; images beside a clip are frames of other samples' clips."""
        extra = [self.frame(image) for image in choice.images]
        conditions = self.pixels.samples.conditions
        others = [conditions[image.index] for image in choice.images]
        return self.held(choice), conditions[choice.index], torch.stack(extra) if extra else None, others

    def held(self, choice: Choice) -> torch.Tensor:
        entry = self.store.read(self.key(choice))
        if entry is None:
            raise SkipditError(f"{self.store.path(self.key(choice))} is gone or damaged; run again to make it anew.")
        if not is_finite(entry["moments"]):
            path, name = self.store.path(self.key(choice)), self.samples.name(choice.index)
            raise NotFiniteError(f"{path}, the latents of {name}, holds NaN or infinity; delete it and run again.")
        return entry["moments"]

    def frame(self, choice: Choice) -> torch.Tensor:
        """(2c, 1, h, w)."""
        clip = self.held(choice)
        at = int(choice.start * clip.shape[1])
        return clip[:, at : at + 1]
