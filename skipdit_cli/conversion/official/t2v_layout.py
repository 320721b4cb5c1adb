"""The layout of text-to-video Latte: ``LatteT2V`` of Vchitect/Latte and ``LatteT2V_skip`` in
text-to-video/models/latte_t2v_skip.py of OpenSparseLLMs/Skip-DiT. Its names are diffusers' already; its position
tables, and so latent size and number of frames, are not in the file.
"""

from __future__ import annotations

import re

import torch

from skipdit_cli.conversion.official.checks import check_needed, head_count
from skipdit_cli.errors import UsageError
from skipdit_cli.families.latte import FAMILY

UNUSED = ("caption_projection.y_embedding",)
"""Tensors of training with dropped captions."""
STANDARD = {"sample_size": 64, "video_length": 16}
"""Sizes of the released model, which is 1152 wide."""


def read_t2v(
    path, rest: dict[str, torch.Tensor], num_attention_heads: int | None, sample_size: int | None, frames: int | None
) -> tuple[dict, dict]:
    """Return config and state dict of a ``LatteTransformer3DModel``.

    Args:
        path: The checkpoint, for errors.
        rest: Its state dict without skip branches.
        num_attention_heads, sample_size, frames: Not in the file; needed for a width other than 1152.
    Raises:
        UsageError: The file holds another architecture, or one of the three is missing.
    """
    needed = {
        "pos_embed.proj.weight": 4,
        "caption_projection.linear_1.weight": 2,
        "transformer_blocks.0.attn2.to_k.weight": 2,
        "transformer_blocks.0.ff.net.0.proj.weight": 2,
        "proj_out.weight": 2,
    }
    check_needed(path, rest, needed, FAMILY.official.kind)
    width, in_channels, patch, _ = rest["pos_embed.proj.weight"].shape
    heads = head_count(path, width, num_attention_heads)
    size = {"sample_size": sample_size, "video_length": frames}
    for key, flag in (("sample_size", "--sample-size"), ("video_length", "--num-frames")):
        size[key] = size[key] or (STANDARD[key] if width == 1152 else None)
        if size[key] is None:
            raise UsageError(f"Checkpoint {path} does not hold its position tables; give {flag}.")
    if size["sample_size"] % patch:
        raise UsageError(f"Got --sample-size {size['sample_size']}, which patches of {patch} do not divide.")
    wide = rest["transformer_blocks.0.ff.net.0.proj.weight"].shape[0] == 8 * width
    config = {
        "_class_name": FAMILY.name,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": rest["proj_out.weight"].shape[0] // patch**2,
        "num_layers": len({name.split(".")[1] for name in rest if re.match(r"transformer_blocks\.\d+\.", name)}),
        "cross_attention_dim": rest["transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_bias": "transformer_blocks.0.attn1.to_q.bias" in rest,
        "patch_size": patch,
        "activation_fn": "geglu" if wide else "gelu-approximate",
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "caption_channels": rest["caption_projection.linear_1.weight"].shape[1],
        **size,
    }
    return config, {name: tensor for name, tensor in rest.items() if name not in UNUSED}
