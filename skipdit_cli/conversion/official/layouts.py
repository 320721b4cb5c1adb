"""Official files: the DiT repository's checkpoints, SiT's, Latte's, and the released Skip-DiT ones.

A file is a state dict, or what the training scripts save: ``{model, ema, opt, args}``, ``{state_dict}``, ...
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights

from skipdit_cli.conversion.official.checks import check_plain
from skipdit_cli.conversion.official.dit_layout import read_dit
from skipdit_cli.conversion.official.t2v_layout import read_t2v
from skipdit_cli.conversion.process import DIT, SIT, as_flow, process_of
from skipdit_cli.conversion.state_dict import find_state_dict
from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES, Family
from skipdit_cli.families.dit import FAMILY as DIT_FAMILY
from skipdit_cli.families.latte import FAMILY as LATTE
from skipdit_cli.models.build import assign_weights
from skipdit_cli.models.weights import read_tensors
from skipdit_cli.skip import SkipBranches


@dataclass
class Official:
    """An official checkpoint in diffusers' terms.

    Args:
        layout: What the file is called in messages.
        config: The config of the transformer.
        state: Its state dict under diffusers' names: views of the memory-mapped file, in which the embedders of all
            blocks are one tensor.
        branches: The skip branches, of the ``replace`` merge; None in a vanilla file.
        process: Value of ``--process``, ``dit`` or ``sit``.
        process_why: Why it is that one.
        notes: Decisions that were made while reading, a sentence each.
    """

    layout: str
    config: dict
    state: dict[str, torch.Tensor]
    branches: SkipBranches | None
    process: str = DIT
    process_why: str = ""
    notes: tuple[str, ...] = ()


def read_official(
    path,
    num_attention_heads: int | None = None,
    sample_size: int | None = None,
    num_frames: int | None = None,
    process: str | None = None,
    num_classes: int | None = None,
) -> Official:
    """Read a ``.pt`` or ``.safetensors`` file in an official layout, with the architecture that its tensors show.

    Args:
        path: The file.
        num_attention_heads: Not in the file; needed for a width other than that of S, B, L and XL.
        sample_size, num_frames: Not in a text-to-video file; needed for a width other than that of XL.
        process: ``dit`` or ``sit``, where the file does not tell which.
        num_classes: Number of classes, where the file does not tell whether its last label is the null label.
    Raises:
        UsageError: The file is damaged or would run code, holds another architecture, or something is missing.
    """
    data = read_tensors(path)
    weights, arguments = find_state_dict(path, data), _arguments(data)
    rest, notes = weights.tensors, list(weights.notes)
    check_plain(path, rest)
    family = _family(rest)
    is_t2v = family is LATTE
    if any(name.startswith("transformer_blocks.") for name in rest) and not is_t2v:
        raise UsageError(f"Checkpoint {path} has diffusers' own names; give its folder, whose config.json is needed.")
    skip = {name: rest.pop(name) for name in list(rest) if name.startswith(("skip_norms.", "skip_linears."))}
    if is_t2v:
        if num_classes is not None:
            raise UsageError(f"Got --num-classes {num_classes}, but {path} is text-conditional; leave it out.")
        config, state = read_t2v(path, rest, num_attention_heads, sample_size, num_frames)
    else:
        for flag, value in (("--sample-size", sample_size), ("--num-frames", num_frames)):
            if value is not None:
                raise UsageError(f"Got {flag} {value}, but {path} tells that itself; leave it out.")
        config, state, more_notes = read_dit(path, rest, family, num_attention_heads, num_classes, arguments)
        notes += more_notes
    official = family.official
    only_dit = "" if official.flow_title else f"a {family.name} has no other"
    process, why = process_of(path, arguments, process, only_dit)
    layout = official.title_with_branches if skip else official.title
    if process == SIT:
        as_flow(path, config, state)
        layout = official.flow_title + " with skip branches" * bool(skip)
    branches = _branches(path, skip, config, family) if skip else None
    return Official(f"{layout}, {weights}", config, state, branches, process, why, tuple(notes))


def _family(state: dict[str, torch.Tensor]) -> Family:
    """The family whose official code wrote a state dict; DiT if no tensor tells another."""
    for family in FAMILIES.values():
        marker = family.official.marker if family.official is not None else ""
        if marker and any(name.startswith(marker) for name in state):
            return family
    return DIT_FAMILY


def _arguments(data) -> dict:
    """The arguments that the training script saved of its own."""
    saved = data.get("args") if isinstance(data, dict) else None
    return dict(saved if isinstance(saved, dict) else getattr(saved, "__dict__", {}))


def _branches(path, skip: dict[str, torch.Tensor], config: dict, family: Family) -> SkipBranches:
    """The skip branches of a file. The official code counts pairs from the middle, ours by source block.

    So does its class-conditional Latte at 28 blocks, its one size with branches: index (i - 14) // 2 of block i.
    At 24, 20 and 16 blocks that constant wraps round the list, below 16 it fails; read here is (i - depth/2) // 2.
    """
    depth, width = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]
    if depth % 2:
        unit = "pairs of blocks" if family.trunk.interleaved else "blocks"
        raise UsageError(
            f"Checkpoint {path} has skip branches on {depth} {unit}, but the official form needs an even number."
        )
    state = {}
    for name, tensor in skip.items():
        match = re.fullmatch(r"skip_(?:norms\.(\d+)|linears\.(\d+)\.linear)\.(weight|bias)", name)
        if match is None:
            raise UsageError(f"Checkpoint {path} is no Skip-DiT of the official layout: it holds {name}.")
        norm, linear, part = match.groups()
        pair = depth // 2 - 1 - int(norm or linear)
        state[f"{'norms' if norm else 'linears'}.{pair}.{part}"] = tensor.clone()  # else the file stays mapped
    with init_empty_weights():
        branches = SkipBranches(dim=width, num_layers=depth, merge="replace", backbone=family.name)
    assign_weights(branches, state, f"Checkpoint {path}")
    return branches
