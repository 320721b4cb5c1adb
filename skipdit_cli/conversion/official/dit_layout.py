"""The layout of the DiT repository, and of class-conditional Latte, whose blocks are the same.

Names and shapes: ``DiT`` in models.py of facebookresearch/DiT, ``Latte`` in models/latte.py of Vchitect/Latte; with
skip branches ``DiT_skip`` and ``Latte_skip`` in class-to-image/models.py and class-to-video/models/latte.py of
OpenSparseLLMs/Skip-DiT. Even blocks of a Latte are spatial, odd ones temporal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType

import torch

from skipdit_cli.conversion.label_table import TABLE, read_classes
from skipdit_cli.conversion.official.checks import check_frames, check_needed, check_positions, head_count
from skipdit_cli.errors import UsageError

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
}
LABELS = {TABLE: "class_embedder.embedding_table.weight"}


def read_dit(
    path,
    rest: dict[str, torch.Tensor],
    num_attention_heads: int | None,
    num_classes: int | None = None,
    arguments: Mapping = MappingProxyType({}),
) -> tuple[dict, dict, list[str]]:
    """Config and state in diffusers' terms of a DiT, or of a Latte if there is a ``temp_embed``.

    Args:
        rest: The state dict of the file without skip branches; it is emptied.
        num_attention_heads: Needed for a width other than that of S, B, L and XL.
        num_classes: Of the label table, where ``arguments`` does not say it.
        arguments: What the training script saved of its own.
    Returns:
        And what to tell the user about it, a sentence each.
    Raises:
        UsageError: It holds another architecture, or the head count is missing.
    """
    is_latte = "temp_embed" in rest
    kind = "Latte" if is_latte else "DiT"
    config = _architecture(path, rest, kind, num_attention_heads)
    classes = read_classes(path, rest, arguments, num_classes, needs_table=not is_latte)
    config |= classes.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    notes = [f"Classes: {classes}."]
    notes += check_positions(path, rest.pop("pos_embed"), config["sample_size"] // config["patch_size"], width)
    if is_latte:
        notes += check_frames(path, rest.pop("temp_embed"), width)
    state, missing = _renamed(rest, config)
    if missing or rest:
        lacks = f"it lacks {', '.join(missing[:3])}" if missing else ""
        holds = f"it holds {', '.join(list(rest)[:3])}, which a {kind} has not" if rest else ""
        raise UsageError(
            f"Checkpoint {path} is no {kind} of the official layout: {'; '.join(filter(None, (lacks, holds)))}."
        )
    return config, state, notes


def _architecture(path, state: dict[str, torch.Tensor], kind: str, num_attention_heads: int | None) -> dict:
    needed = {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    needed |= {"temp_embed": 3} if kind == "Latte" else {}
    needed |= dict.fromkeys(LABELS.keys() & state.keys(), 2)
    check_needed(path, state, needed, kind)
    width, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = head_count(path, width, num_attention_heads)
    depth = len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)})
    ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    config = {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": state["final_layer.linear.weight"].shape[0] // patch**2,
        "sample_size": math.isqrt(state["pos_embed"].shape[1]) * patch,
        "patch_size": patch,
    }
    if kind == "DiT":
        config |= {"_class_name": "DiTTransformer2DModel", "num_layers": depth, "norm_eps": 1e-6}
        return config if ratio == 4.0 else {**config, "mlp_ratio": ratio}
    if depth % 2:
        raise UsageError(f"Checkpoint {path} has {depth} blocks, but a Latte has pairs: one spatial, one temporal.")
    frames = state["temp_embed"].shape[1]
    name = "LatteClassTransformer3DModel"
    return {**config, "_class_name": name, "num_layers": depth // 2, "mlp_ratio": ratio, "video_length": frames}


def _renamed(rest: dict[str, torch.Tensor], config: dict) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Take what the model has out of ``rest``, under diffusers' names; also returns the names that were missing."""
    state, missing = {}, []
    is_latte = "video_length" in config

    def take(name: str) -> torch.Tensor | None:
        if name not in rest:
            missing.append(name)
        return rest.pop(name, None)

    def move(names: dict[str, str], source: str = "", target: str = "") -> None:
        for ours, theirs in names.items():
            for part in ("weight", "bias"):
                state[f"{target}{theirs}.{part}"] = take(f"{source}{ours}.{part}")

    move(WHOLE)
    wanted = EMBEDDERS if config["num_embeds_ada_norm"] is None else {**EMBEDDERS, **LABELS}
    embedders = {theirs: take(ours) for ours, theirs in wanted.items()}
    if is_latte:
        state.update(embedders)
    for block in range(config["num_layers"] * (2 if is_latte else 1)):
        source, target = f"blocks.{block}.", f"transformer_blocks.{block}."
        if is_latte:
            target = f"{'temporal_' if block % 2 else ''}transformer_blocks.{block // 2}."
        move(BLOCK, source, target)
        for part in ("weight", "bias"):
            joined = take(f"{source}attn.qkv.{part}")
            if joined is not None:
                for name, piece in zip(("to_q", "to_k", "to_v"), joined.chunk(3)):
                    state[f"{target}attn1.{name}.{part}"] = piece
        if not is_latte:  # diffusers' DiT has embedders in every block
            state.update({f"{target}norm1.emb.{name}": tensor for name, tensor in embedders.items()})
    return state, missing
