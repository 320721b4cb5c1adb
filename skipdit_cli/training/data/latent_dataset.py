"""The VAE's latents of clips and images, encoded at each step or once and kept (``--cache-latents``)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn
from torch.utils.data import Dataset

from skipdit_cli.errors import NotFiniteError, SkipditError
from skipdit_cli.finite import is_finite
from skipdit_cli.media.intake import RULES
from skipdit_cli.sampling.latents import scale as scaled  # noqa: F401  its name of 0.1.0, which others import
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.pixel_dataset import Pixels
from skipdit_cli.training.data.tensor_store import Store, Tensors, fingerprint
from skipdit_cli.training.observer import SILENT, Observer

FRAMES_AT_ONCE = 16
LEAST_LOG_VARIANCE = -30.0
"""The least logarithm of the variance in diffusers' ``DiagonalGaussianDistribution``."""


@torch.no_grad()
def moments(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Return the mean and the logarithm of the variance of the VAE's posterior.

    An image VAE encodes the frames of a clip one by one.

    Args:
        pixels: (B, C, [F,] H, W) in [-1, 1].
    Returns:
        (B, 2c, [f,] h, w).
    """
    if encodes_videos(vae):
        return torch.cat([_posterior(vae, clip) for clip in pixels.split(1)])
    if pixels.ndim == 4:
        return torch.cat([_posterior(vae, images) for images in pixels.split(FRAMES_AT_ONCE)])
    frames = moments(vae, pixels.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)


def _posterior(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Return mean and log variance; a VAE without a distribution (``AutoencoderDC``) has the least."""
    encoded = vae.encode(pixels)
    if "latent_dist" in encoded:
        return encoded.latent_dist.parameters
    latents = next(iter(encoded.values()))
    return torch.cat([latents, torch.full_like(latents, LEAST_LOG_VARIANCE)], dim=1)


def encodes_videos(vae) -> bool:
    """Return whether the VAE encodes the frames of a clip together."""
    return any(isinstance(module, nn.Conv3d) for module in vae.encoder.modules())


class Latents(Dataset):
    """A data set that replaces ``Pixels`` by the ``moments`` of its centre clips and crops, kept in a store.

    An entry is found by the content of the file, the weights of the VAE and every setting that shapes the clip.

    Args:
        device: The device of the VAE.
        mirrored: Whether to keep the latents of mirrored samples, too.
    """

    def __init__(self, pixels: Pixels, vae, store: Store, device: torch.device, mirrored: bool):
        self.pixels, self.vae, self.store, self.device = pixels, vae, store, device
        self.samples = pixels.samples
        self.settings = {
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

    def encode(self, rank: int = 0, world: int = 1, observer: Observer = SILENT) -> None:
        """Encode the samples of this process's share that the store does not hold.

        Args:
            rank, world: The number of this process, and the number of processes.
        """
        choices = [Choice(i, flip) for i in range(rank, len(self), world) for flip in self.variants]
        missing = [choice for choice in choices if self.store.read(self.key(choice)) is None]
        kept = len(choices) - len(missing)
        observer.say(f"{kept:,} of {len(choices):,} latents are kept in {self.store.folder}.")
        with observer.progress("encode", len(missing)) if missing else nullcontext() as advance:
            for choice in missing:
                self.store.get(self.key(choice), lambda choice=choice: self.make(choice))
                advance()

    def key(self, choice: Choice) -> dict:
        """Return the key of a sample in the store."""
        return {**self.settings, "content": self.digests[choice.index], "mirrored": choice.mirrored}

    def make(self, choice: Choice) -> Tensors:
        """Return the entry of a sample, encoded anew.

        Raises:
            NotFiniteError: The VAE encodes it to NaN or infinity.
        """
        pixels = self.pixels[replace(choice, images=())][0]
        encoded = moments(self.vae, pixels[None].to(self.device))[0].cpu()
        if not is_finite(encoded):
            name = self.samples.name(choice.index)
            raise NotFiniteError(f"The VAE makes NaN or infinity of {name}: take that file out, or give another VAE.")
        return {"moments": encoded}

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, choice: Choice) -> tuple[torch.Tensor, Condition, torch.Tensor | None, list[Condition]]:
        """Return the item of ``Pixels`` with moments instead of pixels; images are frames of other samples' clips."""
        images = [self.frame(image) for image in choice.images]
        all_conditions = self.samples.conditions
        conditions = [all_conditions[image.index] for image in choice.images]
        return self.read(choice), all_conditions[choice.index], torch.stack(images) if images else None, conditions

    def read(self, choice: Choice) -> torch.Tensor:
        """Return the kept moments of a sample (2c, [f,] h, w).

        Raises:
            SkipditError: The store no longer holds them.
            NotFiniteError: They hold NaN or infinity.
        """
        entry = self.store.read(self.key(choice))
        if entry is None:
            raise SkipditError(f"{self.store.path(self.key(choice))} is gone or damaged; run again to make it anew.")
        if not is_finite(entry["moments"]):
            path, name = self.store.path(self.key(choice)), self.samples.name(choice.index)
            raise NotFiniteError(f"{path}, the latents of {name}, holds NaN or infinity; delete it and run again.")
        return entry["moments"]

    def frame(self, choice: Choice) -> torch.Tensor:
        """Return the moments of one frame (2c, 1, h, w)."""
        clip = self.read(choice)
        index = int(choice.start * clip.shape[1])
        return clip[:, index : index + 1]
