"""The layout of the DiT repository, and of class-conditional Latte, whose blocks are the same.

``OfficialFiles`` in the family's file holds the names of its tensors.
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
from skipdit_cli.families import Family
from skipdit_cli.families.dit import MLP_RATIO


def read_dit(
    path,
    rest: dict[str, torch.Tensor],
    family: Family,
    num_attention_heads: int | None,
    num_classes: int | None = None,
    arguments: Mapping = MappingProxyType({}),
) -> tuple[dict, dict, list[str]]:
    """Read a DiT or a class-conditional Latte.

    Args:
        path: The checkpoint, for errors.
        rest: Its state dict without skip branches, which is emptied.
        family: The one that the file holds.
        num_attention_heads: Needed for a width other than that of S, B, L and XL.
        num_classes: Number of classes, where ``arguments`` does not say it.
        arguments: Arguments that the training script saved.
    Returns:
        Config and state dict in diffusers' terms, and sentences about them for the user.
    Raises:
        UsageError: The file holds another architecture, or the head count is missing.
    """
    official = family.official
    config = _architecture(path, rest, family, num_attention_heads)
    classes = read_classes(path, rest, arguments, num_classes, needs_table=official.needs_labels)
    config |= classes.config
    width = config["num_attention_heads"] * config["attention_head_dim"]
    notes = [f"Classes: {classes}."]
    notes += check_positions(path, rest.pop("pos_embed"), config["sample_size"] // config["patch_size"], width)
    if official.frame_table:
        notes += check_frames(path, rest.pop(official.frame_table), width)
    state, missing = _renamed(rest, config, family)
    if missing or rest:
        lacks = f"it lacks {', '.join(missing[:3])}" if missing else ""
        holds = f"it holds {', '.join(list(rest)[:3])}, which a {official.kind} has not" if rest else ""
        raise UsageError(
            f"Checkpoint {path} is no {official.kind} of the official layout: "
            f"{'; '.join(filter(None, (lacks, holds)))}."
        )
    return config, state, notes


def _architecture(path, state: dict[str, torch.Tensor], family: Family, num_attention_heads: int | None) -> dict:
    """The config of a state dict, without its classes."""
    official, per_unit = family.official, len(family.trunk.lists)
    needed = {
        "x_embedder.proj.weight": 4,
        "pos_embed": 3,
        "blocks.0.mlp.fc1.weight": 2,
        "final_layer.linear.weight": 2,
    }
    needed |= {official.frame_table: 3} if official.frame_table else {}
    needed |= {TABLE: 2} if TABLE in state else {}
    check_needed(path, state, needed, official.kind)
    width, in_channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = head_count(path, width, num_attention_heads)
    depth = len({name.split(".")[1] for name in state if re.match(r"blocks\.\d+\.", name)})
    ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    if depth % per_unit:
        raise UsageError(
            f"Checkpoint {path} has {depth} blocks, but a {official.kind} has pairs: one spatial, one temporal."
        )
    config = {
        "_class_name": family.name,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": in_channels,
        "out_channels": state["final_layer.linear.weight"].shape[0] // patch**2,
        "sample_size": math.isqrt(state["pos_embed"].shape[1]) * patch,
        "patch_size": patch,
        "num_layers": depth // per_unit,
        **official.config,
    }
    config |= {"video_length": state[official.frame_table].shape[1]} if official.frame_table else {}
    standard = "mlp_ratio" in family.own_keys and ratio == MLP_RATIO  # which diffusers' class has without being told
    return config if standard else {**config, "mlp_ratio": ratio}


def _renamed(rest: dict[str, torch.Tensor], config: dict, family: Family) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Take the model's tensors out of ``rest``, under diffusers' names; also return the names that are missing."""
    state, missing = {}, []
    official, lists = family.official, family.trunk.lists

    def take(name: str) -> torch.Tensor | None:
        if name not in rest:
            missing.append(name)
        return rest.pop(name, None)

    def move(names: Mapping[str, str], source: str = "", target: str = "") -> None:
        for official_name, name in names.items():
            for part in ("weight", "bias"):
                state[f"{target}{name}.{part}"] = take(f"{source}{official_name}.{part}")

    move(official.modules)
    tensors = dict(official.tensors)
    tensors |= {} if config["num_embeds_ada_norm"] is None else dict([official.label_table])
    embedders = {name: take(official_name) for official_name, name in tensors.items()}
    if not official.embedders_in:
        state.update(embedders)
    for block in range(config["num_layers"] * len(lists)):
        source, target = f"blocks.{block}.", f"{lists[block % len(lists)].name}.{block // len(lists)}."
        move(official.block_modules, source, target)
        for part in ("weight", "bias"):
            joined = take(f"{source}attn.qkv.{part}")
            if joined is not None:
                for name, piece in zip(("to_q", "to_k", "to_v"), joined.chunk(3)):
                    state[f"{target}attn1.{name}.{part}"] = piece
        if official.embedders_in:
            state.update({f"{target}{official.embedders_in}{name}": tensor for name, tensor in embedders.items()})
    return state, missing
