"""The weights a DiT starts from, and a pipeline around it."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding, PatchEmbed, TimestepEmbedding
from torch import nn

from skipdit_cli.checkpoints import build_transformer, default_scheduler
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import Preset
from skipdit_cli.skip import add_skip_branches


@torch.no_grad()
def initialise_dit(transformer: DiTTransformer2DModel) -> None:
    """adaLN-zero, as the DiT repository starts its models (``initialize_weights`` in models.py); diffusers' own
    defaults train badly. Draws from torch's global generator. Every block begins as the identity, the model as 0.
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
    gates = [block.norm1.linear for block in transformer.transformer_blocks]
    for linear in (*gates, transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def new_pipeline(preset: Preset, skip_branches: bool, vae=None, seed: int = 0) -> DiTPipeline:
    """An untrained pipeline of a preset's model, float32, its weights drawn from ``seed``.

    Raises:
        UsageError: The preset describes no model that can be trained from scratch, or one diffusers refuses.
    """
    config = {"_class_name": preset.model["class"], **preset.model["config"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer(config)
        initialise_dit(transformer)
    if skip_branches:
        add_skip_branches(transformer)
    return DiTPipeline(transformer=transformer, vae=vae, scheduler=default_scheduler())


def num_classes(preset: Preset) -> int:
    """
    Raises:
        UsageError: The preset describes no model that can be trained from scratch.
    """
    name = preset.model.get("class", "no model")
    if name != "DiTTransformer2DModel":
        raise UsageError(f"Preset {preset.name} describes {name}, but train needs a DiTTransformer2DModel.")
    return preset.model["config"].get("num_embeds_ada_norm", 1000)


def load_vae(path: str | None):
    """The VAE that ``--vae`` names, float32; None without one.

    Raises:
        UsageError: It cannot be read.
    """
    if path is None:
        return None
    try:
        return AutoencoderKL.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as cause:
        raise UsageError(f"Got --vae {path}, which cannot be read: {str(cause).splitlines()[0]}.") from cause
