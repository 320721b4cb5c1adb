"""Scaling of latents between a VAE and a transformer, for every VAE of diffusers.

Each class of VAE has its own convention, which its pipelines hold and not the class itself; ``CONVENTIONS`` lists them
by class name. Other classes are refused, because wrongly scaled latents still decode to images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from skipdit_cli.errors import UsageError

CHANNELS = ("latent_channels", "z_dim", "z_channels", "decoder_input_channels", "vocoder_input_dim", "latent_dim")
"""Keys of a VAE's config for the channels of its latents; the first that is present counts."""
WIDTHS = ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels")
"""Keys of a VAE's config for the channels of its stages, between which the resolution halves."""


@dataclass(frozen=True)
class Convention:
    """The scaling by the pipelines of a VAE: ``(z - mean) / std * scaling_factor``, or a part of it.

    Args:
        factor: The VAE has a ``scaling_factor``.
        shift: Its ``shift_factor``, if any, is the mean.
        statistics: The place of the mean and standard deviation per channel: the ``config``, ``buffers``, or the
            running statistics of a ``batch norm`` over patches of 2 x 2 latents; None if there are none.
        optional: The config may lack the statistics.
    """

    factor: bool = True
    shift: bool = False
    statistics: str | None = None
    optional: bool = False


_FACTOR, _INSIDE = Convention(), Convention(factor=False)
_CONFIG, _BUFFERS = Convention(factor=False, statistics="config"), Convention(statistics="buffers")
CONVENTIONS = {
    **dict.fromkeys(("AsymmetricAutoencoderKL", "AutoencoderDC", "AutoencoderKLAllegro"), _FACTOR),
    **dict.fromkeys(("AutoencoderKLCogVideoX", "AutoencoderKLMagvit", "AutoencoderKLTemporalDecoder"), _FACTOR),
    **dict.fromkeys(("AutoencoderKLHunyuanImage", "AutoencoderKLHunyuanImageRefiner"), _FACTOR),
    **dict.fromkeys(("AutoencoderKLHunyuanVideo", "AutoencoderKLHunyuanVideo15", "Kandinsky6SRVAE"), _FACTOR),
    **dict.fromkeys(("ConsistencyDecoderVAE", "MMAudioVAE", "VQModel"), _FACTOR),
    "AutoencoderKL": Convention(shift=True, statistics="config", optional=True),
    "AutoencoderTiny": Convention(shift=True),
    "AutoencoderKLMochi": Convention(statistics="config", optional=True),
    "AutoencoderKLCosmos": Convention(factor=False, statistics="config", optional=True),
    **dict.fromkeys(("AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"), _CONFIG),
    **dict.fromkeys(("AutoencoderKLMiniMaxH3", "AutoencoderKLMiniMaxH3Audio"), _CONFIG),
    **dict.fromkeys(("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video", "LTX2VideoDiffusionDecoderModel"), _BUFFERS),
    "AutoencoderKLLTX2Audio": Convention(factor=False, statistics="buffers"),
    "AutoencoderKLFlux2": Convention(factor=False, statistics="batch norm"),
    # These scale within ``encode`` and ``decode``, or not at all.
    **dict.fromkeys(("AutoencoderRAE", "AutoencoderOobleck", "AutoencoderSAME"), _INSIDE),
    **dict.fromkeys(("LongCatAudioDiTVae", "Cosmos3AVAEAudioTokenizer"), _INSIDE),
}


def scale(vae, latents: torch.Tensor) -> torch.Tensor:
    """Scale latents from the VAE's encoder for the transformer, before pipelines pack them.

    The ``sigma_data`` of a scheduler (Cosmos, Sana Sprint) is not included.

    Args:
        latents: (B, c, ...), from the VAE's encoder.
    Raises:
        UsageError: The scaling is unknown (see ``check_scaling``), or the statistics have another shape.
    """
    mean, factor = _mean_and_factor(vae, latents)
    return (latents - mean) * factor


def unscale(vae, latents: torch.Tensor) -> torch.Tensor:
    """Scale latents from the transformer for the VAE's decoder: the inverse of ``scale``.

    Raises:
        UsageError: See ``scale``.
    """
    mean, factor = _mean_and_factor(vae, latents)
    return 1 / factor * latents + mean


def check_scaling(vae) -> None:
    """Refuse a VAE whose scaling is unknown.

    Raises:
        UsageError: The class of the VAE is not in ``CONVENTIONS``, or its config lacks a number of the convention.
    """
    convention = convention_of(vae)
    if convention.factor:
        _factor(vae)
    if convention.statistics == "config":
        _statistics(vae, convention)


def convention_of(vae) -> Convention:
    """Return the convention of a VAE's class.

    Raises:
        UsageError: The class is not in ``CONVENTIONS``.
    """
    known = (CONVENTIONS[kind.__name__] for kind in type(vae).__mro__ if kind.__name__ in CONVENTIONS)
    convention = next(known, None)
    if convention is None:
        kind = type(vae).__name__
        raise UsageError(
            f"Got a {kind} as the VAE, and it is not known how its latents are scaled; give one of another class, "
            "such as AutoencoderKL."
        )
    return convention


def latent_channels(config: Mapping) -> int | None:
    """Return the channels of a VAE's latents, or None if its config does not hold them."""
    hidden = config.get("encoder_hidden_size") if config.get("encoder_type") else None  # a representation encoder
    return next((config[name] for name in CHANNELS if config.get(name) is not None), hidden)


def spatial_compression(vae) -> int:
    """Return the pixels per latent along a side.

    Raises:
        UsageError: The VAE does not hold it.
    """
    ratio = vae.config.get("scale_factor_spatial") or getattr(vae, "spatial_compression_ratio", None)
    if ratio:
        return ratio
    widths = next((vae.config[name] for name in WIDTHS if name in vae.config), None)
    if widths is None:
        raise UsageError(f"Got a {type(vae).__name__} as the VAE, which does not say how far it shrinks a picture.")
    return 2 ** (len(widths) - 1)


def _mean_and_factor(vae, latents: torch.Tensor) -> tuple[float | torch.Tensor, float | torch.Tensor]:
    """Return mean and factor of ``(z - mean) * factor``: numbers, or tensors that broadcast with the latents."""
    convention = convention_of(vae)
    mean: Any = 0.0
    factor = _factor(vae) if convention.factor else 1.0
    if convention.shift:
        mean = vae.config.get("shift_factor") or 0.0
    if convention.statistics is None or (statistics := _statistics(vae, convention)) is None:
        return mean, factor
    reshape = _reshape_patches if convention.statistics == "batch norm" else _reshape_channels
    mean, deviation = (reshape(vae, values, latents) for values in statistics)
    return mean, factor / deviation


def _factor(vae) -> float:
    factor = vae.config.get("scaling_factor")
    if not isinstance(factor, (int, float)) or not factor or factor - factor != 0:
        raise UsageError(f"Got a {type(vae).__name__} with scaling_factor {factor} in its config, expected a number.")
    return factor


def _statistics(vae, convention: Convention) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the mean and standard deviation per channel, or None if the config may lack them and does."""
    kind = type(vae).__name__
    if convention.statistics == "batch norm":
        return vae.bn.running_mean, torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    if convention.statistics == "buffers":
        return vae.latents_mean, vae.latents_std
    statistics = {name: vae.config.get(name) for name in ("latents_mean", "latents_std")}
    absent = [name for name, values in statistics.items() if values is None]
    if len(absent) == 2 and convention.optional:
        return None
    if absent:
        raise UsageError(f"Got a {kind} whose config has no {absent[0]}, by which its latents are scaled.")
    if convention.shift and vae.config.get("shift_factor"):
        raise UsageError(
            f"Got a {kind} with latents_mean and shift_factor in its config, of which pipelines use one or the other; "
            "take one out."
        )
    mean, deviation = (torch.tensor(values, dtype=torch.float32) for values in statistics.values())
    if mean.shape != deviation.shape or not (mean.isfinite() & deviation.isfinite() & (deviation > 0)).all():
        raise UsageError(f"Got a {kind} with latents_mean and latents_std that are not as many numbers, or no spread.")
    return mean, deviation


def _reshape_channels(vae, values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Broadcast one value per channel (c), or per channel and latent frame (Cosmos) or band (the sound of LTX-2)."""
    kind, channels = type(vae).__name__, latents.shape[1]
    each, left = divmod(values.numel(), channels)
    if not left and each == 1:
        return values.reshape(1, channels, *[1] * (latents.ndim - 2)).to(latents)
    if not left and kind == "AutoencoderKLLTX2Audio" and latents.shape[3:] == (each,):
        return values.reshape(1, channels, 1, each).to(latents)
    if not left and latents.ndim == 5 and latents.shape[2] <= each:
        return values.reshape(1, channels, each, 1, 1)[:, :, : latents.shape[2]].to(latents)
    raise UsageError(
        f"Got latents of the shape {tuple(latents.shape)}, but the {kind} has {values.numel()} values to scale by."
    )


def _reshape_patches(vae, values: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Lay one value per channel of 2 x 2 patches (4c) over the latents."""
    _, channels, *frames, height, width = latents.shape
    if values.numel() != 4 * channels:
        raise UsageError(
            f"Got latents of {channels} channels, but the {type(vae).__name__} has statistics of {values.numel()} "
            "channels of patches of 2 x 2."
        )
    tiled = values.reshape(1, channels, 2, 2).repeat(1, 1, (height + 1) // 2, (width + 1) // 2)
    return tiled[..., :height, :width].reshape(1, channels, *[1 for _ in frames], height, width).to(latents)
