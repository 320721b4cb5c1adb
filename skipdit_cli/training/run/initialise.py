"""The weights a DiT or a Latte starts from, and a pipeline around it."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import LabelEmbedding, PatchEmbed, TimestepEmbedding
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn

from skipdit_cli.errors import UsageError
from skipdit_cli.models import build_transformer, default_scheduler, pipeline_around
from skipdit_cli.models.bounds import in_memory
from skipdit_cli.models.build import preset_config
from skipdit_cli.presets import Preset
from skipdit_cli.skip import add_skip_branches

FROM_SCRATCH = ("DiTTransformer2DModel", "LatteClassTransformer3DModel")


@torch.no_grad()
def initialise(transformer) -> None:
    """adaLN-zero, as the DiT and Latte repositories start their models (``initialize_weights`` in models.py and in
    models/latte.py); diffusers' own defaults train badly. Draws from torch's global generator. Every block
    begins as the identity, the model as 0.
    """
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, PatchEmbed):
            nn.init.xavier_uniform_(module.proj.weight.flatten(1))
            nn.init.zeros_(module.proj.bias)
    for module in transformer.modules():
        if isinstance(module, TimestepEmbedding):
            nn.init.normal_(module.linear_1.weight, std=0.02)
            nn.init.normal_(module.linear_2.weight, std=0.02)
        elif isinstance(module, LabelEmbedding):
            nn.init.normal_(module.embedding_table.weight, std=0.02)
    gates = [module.linear for module in transformer.modules() if isinstance(module, AdaLayerNormZero)]
    for linear in (*gates, transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def new_pipeline(preset: Preset, skip_branches: bool, vae=None, seed: int = 0, drops_labels: bool = True):
    """An untrained pipeline of a preset's model, float32, its weights drawn from ``seed``.

    Args:
        drops_labels: It will be trained on dropped labels, too; otherwise its "no class" stays as it is drawn here,
            and is never to be guided by.
    Raises:
        UsageError: diffusers refuses the model's config.
    """
    config = preset_config(preset, in_memory())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer(config)
        initialise(transformer)
    if not drops_labels:
        transformer.register_to_config(_null_class=False)
    if skip_branches:
        add_skip_branches(transformer)
    return pipeline_around(transformer, default_scheduler(config["_class_name"]), vae)


def trainable_config(preset: Preset, with_vae: bool) -> dict:
    """The config of a preset's model, diffusers' defaults filled in where training asks for them.

    Raises:
        UsageError: The preset describes no model that can be trained from scratch, or one of latents without a VAE.
    """
    config = {"in_channels": 4, **(preset_config(preset, in_memory()) if preset.model else {})}
    name = config.get("_class_name", "no model")
    if name not in FROM_SCRATCH:
        raise UsageError(f"Preset {preset.name} describes {name}, but train needs a {' or a '.join(FROM_SCRATCH)}.")
    if config["in_channels"] not in (1, 3) and not with_vae:
        raise UsageError(
            f"Preset {preset.name} is of a latent model ({config['in_channels']} channels), and there is no VAE to "
            "make them; give --vae FOLDER_OR_HUB_ID."
        )
    return config
