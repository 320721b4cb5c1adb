"""The VAE's latents of clips and images, encoded at each step or once and kept (``--cache-latents``)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial

import torch
from torch import nn
from torch.utils.data import Dataset

from skipdit_cli.errors import NotFiniteError, SkipditError
from skipdit_cli.finite import is_finite
from skipdit_cli.media.intake import RULES
from skipdit_cli.processes import Team
from skipdit_cli.sampling.latents import scale as scaled  # noqa: F401  its name of 0.1.0, which others import
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.pixel_dataset import Pixels
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.encoded.section import Section, Work
from skipdit_cli.training.encoded.tensor_shard import ADVICE, Tensors
from skipdit_cli.training.encoded.tensor_store import Store
from skipdit_cli.training.fingerprints import fingerprint

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
        team: The processes that read and encode the samples together.
    """

    def __init__(self, pixels: Pixels, vae, store: Store, device: torch.device, mirrored: bool, team: Team = Team()):
        self.pixels, self.vae, self.device, self.team = pixels, vae, device, team
        self.samples = pixels.samples
        settings = {
            "vae": fingerprint(vae, vae.config),
            "size": pixels.size,
            "mode": pixels.mode,
            "num_frames": pixels.num_frames,
            "frame_stride": pixels.frame_stride,
            "fps_target": pixels.samples.fps_target,
            "reader": RULES,
        }
        self.section = Section(store, "latents", settings)
        self.digests = _digests(pixels.samples, team)
        self.variants = (False, True) if mirrored else (False,)

    def plan(self, thorough: bool = False) -> Work:
        """Return which latents are to be encoded, the same in every process.

        Args:
            thorough: Compare the checksums of all shards, also of those that were compared before.
        """
        self.choices = {
            self.name(choice): choice for i in range(len(self)) for choice in map(partial(Choice, i), self.variants)
        }
        return self.section.plan(self.choices, lambda: 4 * self.shape.numel(), self.team, thorough)

    def encode(self, work: Work | None = None, load: Loader | None = None) -> None:
        """Encode the latents that the store does not hold, each process its share.

        Args:
            work: The result of ``plan``, which is made if it is None.
            load: Yields the items of ``pixels`` for a list of choices; None reads them in this process.
        """
        work = self.plan() if work is None else work
        self.section.fill(work, partial(self._entries, load or self._load), self.team)
        self.choices = {}  # which the processes of a data loader need not have

    @cached_property
    def shape(self) -> torch.Size:
        """The shape of a sample's moments, from a forward of the VAE without weights."""
        pixels = self.pixels
        frames = [] if pixels.num_frames is None else [pixels.num_frames]
        with torch.device("meta"):
            outline = type(self.vae).from_config(self.vae.config)
            images = torch.empty(1, {"L": 1, "RGB": 3}[pixels.mode], *frames, *pixels.size)
        return moments(outline, images).shape[1:]

    def _entries(self, load: Loader, names: list[str]) -> Iterator[tuple[str, Tensors]]:
        choices = [self.choices[name] for name in names]
        for name, choice, item in zip(names, choices, load(choices)):
            yield name, self.make(choice, item[0])

    def _load(self, choices: list[Choice]) -> Iterator[tuple]:
        return (self.pixels[choice] for choice in choices)

    def name(self, choice: Choice) -> str:
        """Return the name of a sample's entry in the store."""
        digest = hashlib.sha256(self.digests[choice.index].encode()).hexdigest()[:32]
        return f"{digest}-mirrored" if choice.mirrored else digest

    def make(self, choice: Choice, pixels: torch.Tensor) -> Tensors:
        """Return the entry of a sample, encoded anew.

        Args:
            pixels: (C, [F,] H, W).
        Raises:
            NotFiniteError: The VAE encodes it to NaN or infinity.
        """
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
            SkipditError: Their shard is gone, damaged, or of other latents.
            NotFiniteError: They hold NaN or infinity.
        """
        name = self.name(choice)
        encoded = self.section.read(name).get("moments")
        if encoded is None or encoded.shape != self.shape or encoded.dtype != torch.float32:
            raise SkipditError(f"{self.section.path(name)} holds other latents than this VAE makes; {ADVICE}.")
        if not is_finite(encoded):
            path, sample = self.section.path(name), self.samples.name(choice.index)
            raise NotFiniteError(f"{path}, the latents of {sample}, holds NaN or infinity; delete it and run again.")
        return encoded

    def frame(self, choice: Choice) -> torch.Tensor:
        """Return the moments of one frame (2c, 1, h, w)."""
        clip = self.read(choice)
        index = int(choice.start * clip.shape[1])
        return clip[:, index : index + 1]


Loader = Callable[[list[Choice]], Iterator[tuple]]
"""A function that yields the items of ``Pixels`` for a list of choices."""


def _digests(samples: SampleSet, team: Team) -> list[str]:
    """Return the hash of each sample's content; each process reads its share of the files."""
    with ThreadPoolExecutor() as pool:
        share = list(pool.map(samples.digest, team.share(range(len(samples)))))
    shares = team.broadcast(team.gather(share))
    return [shares[i % team.count][i // team.count] for i in range(len(samples))]
