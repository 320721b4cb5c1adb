"""The first weights of a model with adaLN-zero blocks (arXiv 2212.09748, section 3.2)."""

from __future__ import annotations

from typing import Any


def initialise(transformer) -> None:
    """Draw the weights of a DiT or a class-conditional Latte in place, from torch's global generator.

    Every block with gates begins as the identity, and the model's output as 0. The DiT and Latte repositories start
    their models so (``initialize_weights`` in models.py and in models/latte.py); diffusers' default weights train
    badly.
    """
    import torch
    from diffusers.models.embeddings import LabelEmbedding, PatchEmbed, TimestepEmbedding
    from diffusers.models.normalization import AdaLayerNormZero
    from torch import nn

    with torch.no_grad():
        for module in transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, PatchEmbed):
                projection: Any = module.proj
                nn.init.xavier_uniform_(projection.weight.flatten(1))
                nn.init.zeros_(projection.bias)
        for module in transformer.modules():
            if isinstance(module, TimestepEmbedding):
                nn.init.normal_(module.linear_1.weight, std=0.02)
                nn.init.normal_(module.linear_2.weight, std=0.02)
            elif isinstance(module, LabelEmbedding):
                nn.init.normal_(module.embedding_table.weight, std=0.02)
        gates = [module.linear for module in transformer.modules() if isinstance(module, AdaLayerNormZero)]
        last = [linear for linear in (transformer.proj_out_1, transformer.proj_out_2) if linear is not None]
        for linear in (*gates, *last):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
