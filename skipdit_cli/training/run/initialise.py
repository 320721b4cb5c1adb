"""A new model to train from scratch, and the pipeline around it."""

from __future__ import annotations

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES, family_of
from skipdit_cli.models import build_transformer, default_scheduler, pipeline_around
from skipdit_cli.models.bounds import in_memory
from skipdit_cli.models.build import preset_config
from skipdit_cli.presets import Preset
from skipdit_cli.skip import add_skip_branches


def new_pipeline(preset: Preset, skip_branches: bool, vae=None, seed: int = 0, drops_labels: bool = True):
    """Return an untrained pipeline of a preset's model, in float32, its weights drawn from ``seed``.

    Args:
        skip_branches: Attach skip branches.
        vae: The VAE of a latent model.
        drops_labels: Training drops labels. Otherwise the null label is never trained, and the model's config says
            that it cannot be guided by it.
    Raises:
        UsageError: diffusers refuses the model's config.
    """
    config = preset_config(preset, in_memory())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer(config)
        family_of(transformer).initialise(transformer)
    if not drops_labels:
        transformer.register_to_config(_null_class=False)
    if skip_branches:
        add_skip_branches(transformer)
    return pipeline_around(transformer, default_scheduler(config["_class_name"]), vae)


def trainable_config(preset: Preset, with_vae: bool) -> dict:
    """Return the config of a preset's model, with diffusers' default for ``in_channels``.

    Args:
        with_vae: A VAE is given.
    Raises:
        UsageError: The preset describes no model that can be trained from scratch, or a latent model without a VAE.
    """
    config = {"in_channels": 4, **(preset_config(preset, in_memory()) if preset.model else {})}
    name, trainable = config.get("_class_name", "no model"), [n for n, each in FAMILIES.items() if each.initialise]
    if name not in trainable:
        raise UsageError(f"Preset {preset.name} describes {name}, but train needs a {' or a '.join(trainable)}.")
    if config["in_channels"] not in (1, 3) and not with_vae:
        raise UsageError(
            f"Preset {preset.name} is of a latent model ({config['in_channels']} channels), and there is no VAE to "
            "make them; give --vae FOLDER_OR_HUB_ID."
        )
    return config
