"""A model made from its config, the parts around it, and what a DiT's weights need beyond diffusers' config."""

from __future__ import annotations

import inspect

from torch import nn

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.families import BACKBONES, class_name
from skipdit_cli.families.latte_class_model import LatteClassTransformer3DModel
from skipdit_cli.models.bounds import UNKNOWN, Room
from skipdit_cli.models.claims import check_model
from skipdit_cli.presets import Preset
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.pipelines.dit_pipeline import DiTPipeline
from skipdit_cli.sampling.pipelines.latte_class_pipeline import LatteClassPipeline
from skipdit_cli.sampling.pipelines.sit_pipeline import SiTPipeline
from skipdit_cli.sampling.schedulers import follows_flow
from skipdit_cli.skip.time_embedding import NUM_TIMESTEPS

OFFICIAL = ("DiTTransformer2DModel", "LatteTransformer3DModel", "LatteClassTransformer3DModel")
"""The classes that a pipeline can be made around here, those of the official files."""


def build_transformer(config: dict):
    """A transformer of diffusers, or our Latte, with random weights (no weights, under ``torch.device("meta")`` or
    accelerate's ``init_empty_weights``).

    diffusers' DiT fixes the hidden width of its MLPs to 4·D. A model with another ratio carries ``mlp_ratio`` in its
    config, and gets diffusers' own ``FeedForward`` in that width; plain diffusers refuses such weights by their shape.

    Args:
        config: ``_class_name`` (DiTTransformer2DModel if it has none) and the arguments of that class.
    Raises:
        UsageError: diffusers has no such class, or does not take these arguments.
    """
    config = as_named_now({"_class_name": "DiTTransformer2DModel", **config})
    with reading(f"Got a transformer config for {config['_class_name']}", failed="that diffusers cannot build"):
        with quiet(errors_only=True):  # of keys that it does not know, each time; loading says it once
            return _build(config).eval()


def _build(config: dict):
    config = dict(config)
    ratio = config.pop("mlp_ratio") if has_own_mlp(config) else 4.0
    transformer = class_named(config["_class_name"]).from_config(config)
    if ratio != 4.0:
        for block in transformer.transformer_blocks:
            block.ff = _feed_forward(transformer, ratio)
        transformer.register_to_config(mlp_ratio=ratio)
    return transformer


def check_transformer(config: dict, where: str, shapes=None, room: Room = UNKNOWN, file: str = "config.json") -> None:
    """Whether a config can be built, as ``check_model`` sees it, before ``build_transformer`` does.

    Raises:
        UsageError: It cannot, or diffusers has no such class.
    """
    name = config["_class_name"]
    if not is_transformer(name):
        raise UsageError(f"{where} has a model of class {name}, which is no transformer of diffusers.")
    check_model(class_named(name), config, where, shapes, room, _build, file)


def as_named_now(config: dict) -> dict:
    """A transformer's config with its class under the name that diffusers has for it now, and without what the class
    of the former name alone took; so diffusers reads it, too."""
    name = class_name(config["_class_name"], config)
    if name == config["_class_name"]:
        return dict(config)
    known = {*inspect.signature(class_named(name).__init__).parameters, "mlp_ratio"}
    return {key: value for key, value in config.items() if key in known or key.startswith("_")} | {"_class_name": name}


def preset_config(preset: Preset, room: Room = UNKNOWN) -> dict:
    """The config of the transformer that a preset names.

    Raises:
        UsageError: diffusers cannot build it, or it has no room.
    """
    config = as_named_now({"_class_name": preset.model["class"], **preset.model["config"]})
    check_transformer(config, f"Preset {preset.name}", room=room, file="model")
    return config


def class_named(name: str):
    """A class of diffusers, or our Latte.

    Raises:
        AttributeError: There is no such class.
    """
    import diffusers

    return LatteClassTransformer3DModel if name == "LatteClassTransformer3DModel" else getattr(diffusers, name)


def is_transformer(name) -> bool:
    """Whether diffusers has a transformer of this name (or it is our Latte)."""
    try:
        kind = class_named(str(name))
    except (AttributeError, RuntimeError):
        return False
    return str(name) in OFFICIAL or getattr(kind, "__module__", "").startswith("diffusers.models.transformers.")


def has_own_time(name: str) -> bool:
    """Whether a class has one spacing of timestep frequencies only."""
    return name not in BACKBONES or BACKBONES[name].official_time


def has_own_mlp(config: dict) -> bool:
    """Whether a DiT's config has an ``mlp_ratio``, which diffusers' class does not know."""
    return "mlp_ratio" in config and config.get("_class_name", "DiTTransformer2DModel") == "DiTTransformer2DModel"


def _feed_forward(transformer, ratio: float) -> nn.Module:
    from diffusers.models.attention import FeedForward

    width = transformer.inner_dim
    config = transformer.config
    return FeedForward(
        width, dropout=config.dropout, activation_fn=config.activation_fn, inner_dim=round(ratio * width)
    )


def default_scheduler(class_name: str = "DiTTransformer2DModel", flow: bool = False):
    """The noise schedule of DiT and Latte, 1000 linear betas 1e-4..0.02, for a transformer of a class.

    Timesteps are spaced evenly with both ends; for text-to-video Latte evenly from 0, as its pipeline does.

    Args:
        flow: That of SiT instead, the straight path from noise to data.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if flow:
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TIMESTEPS)
    return DDIMScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="leading" if class_name == "LatteTransformer3DModel" else "linspace",
    )


def pipeline_around(transformer, scheduler, vae=None):
    """The pipeline that a transformer belongs in: ``DiTPipeline``, ``LattePipeline`` (without its text parts) or our
    ``LatteClassPipeline`` or, where the scheduler is one of flow matching, ``SiTPipeline``.

    Raises:
        UsageError: Its pipeline needs more than it.
    """
    import diffusers

    name = class_name(type(transformer).__name__, transformer.config)
    if name not in OFFICIAL:
        raise UsageError(
            f"Got {name} alone, but its pipeline has more parts; give the folder or hub id of a whole one."
        )
    if name == "LatteTransformer3DModel":
        return diffusers.LattePipeline(None, None, vae, transformer, scheduler)
    of_images = SiTPipeline if follows_flow(scheduler) else DiTPipeline
    kind = LatteClassPipeline if name == "LatteClassTransformer3DModel" else of_images
    return kind(transformer=transformer, vae=vae, scheduler=scheduler)
