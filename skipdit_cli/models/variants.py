"""Variants of weights, ``diffusion_pytorch_model.fp16.safetensors`` say: told by name, read where nothing else is.

diffusers looks for one only if it is asked for by name, and then in every part that has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from skipdit_cli.errors import UsageError

WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?(\.(?P<former>[\w-]+))?"
    r"\.(safetensors|bin)"
)
"""A file of weights of diffusers or transformers, or a shard of them, whose variant once stood where ``former`` is."""


def variant_among(names: Iterable[str]) -> str | None:
    """The variant that files of weights have by their names; None where some have none, or there are no such files.

    Raises:
        UsageError: There are several variants, and nothing says which is meant.
    """
    found = filter(None, map(WEIGHTS.fullmatch, names))
    variants = {each["variant"] or each["former"] for each in found}
    if None in variants or not variants:
        return None
    if len(variants) > 1:
        raise UsageError(
            f"Got weights in the variants {', '.join(sorted(variants))} and none without; keep one of them."
        )
    return variants.pop()


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """The files of a part, without those that systems put beside them (``._config.json`` of macOS)."""
    return sorted(file for file in folder.glob(pattern) if file.is_file() and not file.name.startswith("."))


def variant_of(folder: Path) -> str | None:
    """That of the weights of one part of a pipeline.

    Raises:
        UsageError: As ``variant_among``.
    """
    try:
        return variant_among(file.name for file in folder.iterdir()) if folder.is_dir() else None
    except UsageError as cause:
        raise UsageError(f"Folder {folder}: {cause}") from cause


def plain_name(name: str, variant: str) -> str:
    """The name of a file of weights, or of their index, without its variant."""
    return re.sub(rf"\.{re.escape(variant)}(?=[.-])", "", name)
