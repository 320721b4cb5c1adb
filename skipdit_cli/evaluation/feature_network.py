"""Feature networks: TorchScript files of this machine, and the digits network that the package brings."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from skipdit_cli.errors import UsageError, first_line
from skipdit_cli.files import checksum
from skipdit_cli.presets import embedded_folder

DIGITS = "digits"
"""The name of the network of handwritten digits."""
RANGES = {"uint8": (1.0, 0.0), "0:1": (1 / 255, 0.0), "-1:1": (1 / 127.5, -1.0)}
"""What a network takes pixels as: the scale and the offset from 0..255."""
LAYOUTS = ("NCHW", "NTCHW", "NCTHW")
"""Orders of a network's input: images, videos frame by frame, videos channel by channel."""
RESIZE_FILTER = "bicubic, antialiased"
PROBE_SIZE = 64
PROBE_FRAMES = 16
MOST_SPATIAL = 2048
"""Spatial features of an image; sFID takes the first channels whose maps fit, 7 of 17x17 as in ADM's evaluator."""


@dataclass(frozen=True)
class FeatureBatch:
    """What a feature network returns of N images or videos, in float32.

    Attributes:
        features: (N, D).
        spatial: (N, S), the flattened maps of the first channels of a layer; None if the network returns none.
        logits: (N, classes); None if the network returns none.
    """

    features: np.ndarray
    spatial: np.ndarray | None = None
    logits: np.ndarray | None = None


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network and how images are prepared for it; ``network(images)`` returns a ``FeatureBatch``.

    Attributes:
        name: ``digits``, or the name of its file.
        checksum: SHA-256 of its file.
        module: The TorchScript module.
        image_size: Height and width to which images are resized; None leaves them as they are.
        value_range: A key of ``RANGES``.
        layout: One of ``LAYOUTS``.
        num_frames: The frames of a video that the network takes; None for all of them.
    """

    name: str
    checksum: str
    module: Any
    image_size: int | None = None
    value_range: str = "uint8"
    layout: str = "NCHW"
    num_frames: int | None = None

    @property
    def takes_videos(self) -> bool:
        """Whether one feature vector is that of a video, not of an image."""
        return self.layout != "NCHW"

    def settings(self) -> dict[str, object]:
        """Return what the features depend on beside the pixels, as plain data."""
        return {
            "network": self.name,
            "checksum": self.checksum,
            "image_size": self.image_size,
            "resize_filter": RESIZE_FILTER if self.image_size is not None else None,
            "value_range": self.value_range,
            "layout": self.layout,
            "num_frames": self.num_frames,
        }

    def __call__(self, images: np.ndarray) -> FeatureBatch:
        """Return the features of images or videos.

        Args:
            images: uint8 (N, H, W) or (N, H, W, C) with C of 1 or 3, or videos (N, T, H, W, C). An image network
                takes each frame of a video as one image.

        Raises:
            UsageError: The array has another shape or type, or the network cannot take it.
        """
        device = next((weight.device for weight in self.module.parameters()), torch.device("cpu"))
        pixels = self._prepare(_as_channels_first(images, self.takes_videos)).to(device)
        try:
            with torch.inference_mode():
                output = self.module(pixels, **self._switches())
                has_classes = "no_output_bias" in self._arguments()
                probabilities = self.module(pixels, no_output_bias=True) if has_classes else None
        except (RuntimeError, TypeError) as cause:
            if type(cause).__name__ == "OutOfMemoryError":
                raise
            raise self._refusal(pixels, cause) from cause
        batch = _parse_output(output, len(pixels), self.name)
        return batch if probabilities is None else replace(batch, logits=_array(probabilities.clamp(min=1e-30).log()))

    def _arguments(self) -> set[str]:
        """Return the names of the arguments of forward."""
        schema = getattr(self.module.forward, "schema", None)
        return set() if schema is None else {argument.name for argument in schema.arguments}

    def _switches(self) -> dict[str, bool]:
        """Return the keyword arguments that the networks of StyleGAN's and StyleGAN-V's metrics are called with: they
        return features then, and scale and resize uint8 themselves. Inception's ``no_output_bias`` gives the class
        probabilities of the Inception Score."""
        names = ("return_features", "rescale", "resize") if self.value_range == "uint8" else ("return_features",)
        return dict.fromkeys([name for name in names if name in self._arguments()], True)

    def _prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return uint8 (N, [T,] 3, H, W) at the size, range and layout of the network."""
        if self.num_frames is not None and self.takes_videos:
            if pixels.shape[1] < self.num_frames:
                raise UsageError(
                    f"Got videos of {pixels.shape[1]} frames, but {self.name} takes {self.num_frames}; give longer "
                    "videos, or --feature-frames."
                )
            pixels = pixels[:, : self.num_frames]
        pixels = resize(pixels, self.image_size)
        if self.layout == "NCTHW":
            pixels = pixels.transpose(1, 2)
        if self.value_range == "uint8":
            return pixels
        scale, offset = RANGES[self.value_range]
        return pixels.float() * scale + offset

    def _refusal(self, pixels: torch.Tensor, cause: Exception) -> UsageError:
        lines = [line for line in str(cause).splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "Error:" in line), first_line(cause)).strip().rstrip(".")
        given = f"{str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
        return UsageError(
            f"Got feature network {self.name}, which cannot take {given}: {reason[:200]}; give --feature-range, "
            "--feature-size or --feature-layout as it was trained."
        )


def load_features(
    name_or_path: str | Path,
    image_size: int | None = None,
    value_range: str | None = None,
    layout: str | None = None,
    num_frames: int | None = None,
    device: str | torch.device = "cpu",
) -> FeatureNetwork:
    """Load a feature network from this machine; nothing is downloaded.

    A TorchScript module may declare ``image_size``, ``value_range``, ``layout`` and ``num_frames`` as attributes of
    those names; an argument here comes first. Its forward takes images and returns features (N, D), or a tuple of
    them, spatial features (N, C, h, w) and logits (N, classes), or a dictionary with the keys ``features``,
    ``spatial`` and ``logits``.

    Args:
        name_or_path: ``digits``, or a TorchScript file.
        image_size: Height and width to which images are resized; 0 leaves them as they are.
        value_range: ``uint8``, ``0:1`` or ``-1:1``.
        layout: ``NCHW`` for images, ``NTCHW`` or ``NCTHW`` for videos.
        num_frames: The frames of a video that the network takes.

    Raises:
        UsageError: There is no such file, it is no TorchScript, or it cannot take images as declared.
    """
    path = embedded_folder() / "digits-features.pt" if str(name_or_path) == DIGITS else Path(name_or_path)
    name = DIGITS if str(name_or_path) == DIGITS else path.name
    module = _load_module(path, name_or_path).eval().to(device)
    network = FeatureNetwork(
        name,
        checksum(path),
        module,
        _declared(module, "image_size", image_size, int) or None,
        _choice("range", _declared(module, "value_range", value_range, str) or "uint8", tuple(RANGES)),
        _choice("layout", _declared(module, "layout", layout, str) or "NCHW", LAYOUTS),
        _declared(module, "num_frames", num_frames, int) or None,
    )
    size = network.image_size or PROBE_SIZE
    frames = (network.num_frames or PROBE_FRAMES,) if network.takes_videos else ()
    network(np.random.default_rng(0).integers(0, 256, (2, *frames, size, size, 3), dtype=np.uint8))
    return network


def _load_module(path: Path, name: object) -> Any:
    if not path.is_file():
        raise UsageError(
            f"Got --features {name}, which is no file; expected {DIGITS} or a TorchScript file (torch.jit.save)."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(str(path), map_location="cpu")
    except Exception as cause:  # torch raises many types for files of another kind
        raise UsageError(
            f"Got --features {path}, which is no TorchScript; save the network with torch.jit.save, or give {DIGITS}."
        ) from cause


def _declared(module: Any, name: str, argument: Any, kind: type) -> Any:
    """Return an argument, or the attribute of that name where it is None."""
    value = argument if argument is not None else getattr(module, name, None)
    return value if isinstance(value, kind) else None


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"Got --feature-{name} '{value}' but expected one of {', '.join(choices)}.")
    return value


def _as_channels_first(images: np.ndarray, as_videos: bool) -> torch.Tensor:
    """Return uint8 (N, 3, H, W), or (N, T, 3, H, W) of videos for a network of videos."""
    shape = images.shape
    is_shaped = images.ndim == 3 or (images.ndim in (4, 5) and shape[-1] in (1, 3))
    if images.dtype != np.uint8 or not is_shaped:
        raise UsageError(
            f"Got images as {images.dtype} {shape} but expected uint8 (N, H, W, C), or (N, T, H, W, C) of videos, "
            "with C of 1 or 3."
        )
    if as_videos and images.ndim != 5:
        raise UsageError("Got images for a feature network of videos; give videos, or a network of images.")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 5 and not as_videos:
        images = images.reshape(-1, *images.shape[2:])
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).movedim(-1, -3)
    return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])


def resize(pixels: torch.Tensor, size: int | None) -> torch.Tensor:
    """Return uint8 images (..., C, H, W) at ``size`` x ``size``, by an antialiased bicubic filter as of Pillow."""
    if size is None or pixels.shape[-2:] == (size, size):
        return pixels.contiguous()
    flat = pixels.reshape(-1, *pixels.shape[-3:]).float()
    scaled = F.interpolate(flat, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return scaled.round().clamp(0, 255).to(torch.uint8).reshape(*pixels.shape[:-2], size, size)


def _parse_output(output: Any, count: int, name: str) -> FeatureBatch:
    """Return what a network returned: a tensor, a tuple or a dictionary."""
    if isinstance(output, dict):
        parts = [output.get(key) for key in ("features", "spatial", "logits")]
    else:
        values = list(output) if isinstance(output, (tuple, list)) else [output]
        parts = [
            values[0] if values else None,
            next((value for value in values[1:] if isinstance(value, torch.Tensor) and value.ndim > 2), None),
            next((value for value in values[1:] if isinstance(value, torch.Tensor) and value.ndim == 2), None),
        ]
    features, spatial, logits = parts
    if any(isinstance(part, torch.Tensor) and part.is_complex() for part in parts):
        raise UsageError(f"Got feature network {name}, which returns complex numbers but expected real ones.")
    if not isinstance(features, torch.Tensor) or features.ndim < 2 or features.numel() != count * features.shape[1]:
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise UsageError(f"Got feature network {name}, which returns {shape} but expected features ({count}, D).")
    if not torch.isfinite(features).all():
        raise UsageError(f"Got feature network {name}, which returns NaN or infinity; give its --feature-range.")
    return FeatureBatch(_array(features), _array(_first_channels(spatial)), _array(logits))


def _first_channels(spatial: torch.Tensor | None) -> torch.Tensor | None:
    if spatial is None or spatial.ndim < 3:
        return spatial
    return spatial[:, : max(1, MOST_SPATIAL // spatial[0, 0].numel())]


def _array(values: torch.Tensor | None) -> Any:
    return None if values is None else values.float().flatten(1).cpu().numpy()
