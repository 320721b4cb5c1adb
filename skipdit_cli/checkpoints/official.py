"""The layouts of the official code: the DiT repository's checkpoints, and the released Skip-DiT ones.

Names and shapes: ``DiT`` in models.py of facebookresearch/DiT, ``DiT_skip`` in class-to-image/models.py of
OpenSparseLLMs/Skip-DiT. A file is a state dict, or ``{model, ema, opt, args}`` as their train.py saves it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights

from skipdit_cli.checkpoints.weights import assign_weights, read_tensors
from skipdit_cli.errors import UsageError
from skipdit_cli.skip import SkipBranches

STANDARD_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # DiT-S, B, L, XL

WHOLE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
EMBEDDERS = {
    "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "class_embedder.embedding_table.weight",
}


@dataclass
class Official:
    """An official checkpoint in diffusers' terms.

    Args:
        layout: What it is, in words.
        config: Of diffusers' class.
        state: Under diffusers' names: views of the memory-mapped file, embedders of all blocks one tensor.
        branches: Of the ``replace`` merge, None in a vanilla file.
    """

    layout: str
    config: dict
    state: dict[str, torch.Tensor]
    branches: SkipBranches | None


def read_official(path, num_attention_heads: int | None = None) -> Official:
    """Read a ``.pt`` or ``.safetensors`` in an official layout; the architecture comes from the tensors.

    Args:
        num_attention_heads: What no tensor tells; needed for a width other than that of DiT-S, B, L and XL.
    Raises:
        UsageError: The file is damaged or would run code, holds another architecture, or the head count is missing.
    """
    rest, which = _state_dict(path, read_tensors(path))
    config = _architecture(path, rest, num_attention_heads)
    depth, width = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]
    branches = _branches(path, rest, depth, width)
    _check_positions(path, rest.pop("pos_embed"), config)
    state, missing = _renamed(rest, depth)
    if missing or rest:
        lacks = f"it lacks {', '.join(missing[:3])}" if missing else ""
        holds = f"it holds {', '.join(list(rest)[:3])}, which a DiT has not" if rest else ""
        raise UsageError(
            f"Checkpoint {path} is no DiT of the official layout: {'; '.join(filter(None, (lacks, holds)))}."
        )
    kind = "DiT repository checkpoint" if branches is None else "Skip-DiT checkpoint"
    return Official(f"{kind}, {which}", config, state, branches)


def _state_dict(path, data) -> tuple[dict[str, torch.Tensor], str]:
    """The weights in a file, and which they are."""
    which = "bare state dict"
    for key in ("ema", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data, which = data[key], f"'{key}' weights"
            break
    if (
        not isinstance(data, dict)
        or not data
        or not all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in data.items())
    ):
        raise UsageError(
            f"Checkpoint {path} holds no state dict; expected tensors by name, or 'ema' or 'model' of them."
        )
    if any(name.startswith("transformer_blocks.") for name in data):
        raise UsageError(f"Checkpoint {path} has diffusers' own names; give its folder, whose config.json is needed.")
    return {name.removeprefix("module."): value for name, value in data.items()}, which


def _architecture(path, state: dict[str, torch.Tensor], num_attention_heads: int | None) -> dict:
    needed = {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "y_embedder.embedding_table.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    for name, rank in needed.items():
        if name not in state or state[name].dim() != rank:
            what = "lacks" if name not in state else "has another shape of"
            raise UsageError(f"Checkpoint {path} is no DiT of the official layout: it {what} {name}.")
    width, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = num_attention_heads or STANDARD_HEADS.get(width)
    if heads is None:
        raise UsageError(
            f"Checkpoint {path} is {width} wide, no standard DiT size, and does not say how many attention heads it "
            "has; give --num-attention-heads."
        )
    if heads < 1 or width % heads:
        raise UsageError(f"Got --num-attention-heads {heads}, which does not divide the width {width} of {path}.")
    config = {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": state["final_layer.linear.weight"].shape[0] // patch**2,
        "num_layers": len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)}),
        "sample_size": math.isqrt(state["pos_embed"].shape[1]) * patch,
        "patch_size": patch,
        "num_embeds_ada_norm": state["y_embedder.embedding_table.weight"].shape[0] - 1,  # the last row is "no class"
        "norm_eps": 1e-6,
    }
    ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    return config if ratio == 4.0 else {**config, "mlp_ratio": ratio}


def _check_positions(path, table: torch.Tensor, config: dict) -> None:
    """diffusers computes the frozen position table from the size; make sure it is this one.

    Args:
        table: (1, tokens, D).
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    side = config["sample_size"] // config["patch_size"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if side**2 != table.shape[1] or width != table.shape[2] or width % 4:
        raise UsageError(f"Checkpoint {path} has a position table of shape {tuple(table.shape)}, of no square image.")
    expected = get_2d_sincos_pos_embed(width, side, base_size=side, output_type="pt")
    tolerance = 1e-4 if table.dtype == torch.float32 else 1e-2
    if not torch.allclose(table[0].float(), expected.float(), atol=tolerance, rtol=0):
        raise UsageError(f"Checkpoint {path} has a position table of its own, but diffusers' DiT has the sin-cos one.")


def _renamed(rest: dict[str, torch.Tensor], depth: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Take what a DiT has out of ``rest``, under diffusers' names; also returns the names that were missing."""
    state, missing = {}, []

    def take(name: str) -> torch.Tensor | None:
        if name not in rest:
            missing.append(name)
        return rest.pop(name, None)

    def move(names: dict[str, str], source: str = "", target: str = "") -> None:
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                state[f"{target}{theirs}.{part}"] = take(f"{source}{ours}.{part}")

    move(WHOLE)
    embedders = {theirs: take(ours) for ours, theirs in EMBEDDERS.items()}
    for block in range(depth):
        source, target = f"blocks.{block}.", f"transformer_blocks.{block}."
        move(BLOCK, source, target)
        for part in ("weight", "bias"):
            joined = take(f"{source}attn.qkv.{part}")
            if joined is not None:
                for name, piece in zip(("to_q", "to_k", "to_v"), joined.chunk(3)):
                    state[f"{target}attn1.{name}.{part}"] = piece
        state.update({f"{target}norm1.emb.{name}": tensor for name, tensor in embedders.items()})
    return state, missing


def _branches(path, rest: dict[str, torch.Tensor], depth: int, width: int) -> SkipBranches | None:
    """Take the skip branches out of ``rest``. The official code counts pairs from the middle, ours by source block."""
    named = {name: rest.pop(name) for name in list(rest) if name.startswith(("skip_norms.", "skip_linears."))}
    if not named:
        return None
    if depth % 2:
        raise UsageError(
            f"Checkpoint {path} has skip branches on {depth} blocks, but the official form needs an even number."
        )
    state = {}
    for name, tensor in named.items():
        found = re.fullmatch(r"skip_(?:norms\.(\d+)|linears\.(\d+)\.linear)\.(weight|bias)", name)
        if found is None:
            raise UsageError(f"Checkpoint {path} is no Skip-DiT of the official layout: it holds {name}.")
        norm, linear, part = found.groups()
        pair = depth // 2 - 1 - int(norm or linear)
        state[f"{'norms' if norm else 'linears'}.{pair}.{part}"] = tensor.clone()  # else the file stays mapped
    with init_empty_weights():
        branches = SkipBranches(dim=width, num_layers=depth, merge="replace")
    assign_weights(branches, state, f"Checkpoint {path}")
    return branches
