"""Packages that the parts of a text pipeline need to be read, and that not everyone has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from skipdit_cli.errors import UsageError


def check_packages(path, folder: Path, index: dict) -> None:
    """
    Args:
        path: The model as it was asked for.
        folder: Where it lies.
        index: Its ``model_index.json``.
    Raises:
        UsageError: A part is of a class that transformers has not without another package (FLUX.2's processor:
            torchvision), or a tokenizer lies in SentencePiece's format alone and nothing here can read that.
    """
    for part, value in index.items():
        if not isinstance(value, list):
            continue
        missing = _missing_for(value[1]) if value[0] == "transformers" else []
        if missing:
            raise UsageError(
                f"Model {path} has a {value[1]}, which needs {' and '.join(missing)}; "
                f"run pip install {' '.join(missing)}."
            )
        alone = part.startswith("tokenizer") and not (folder / part / "tokenizer.json").is_file()
        if alone and any((folder / part).glob("*.model")):
            if not all(map(importable, ("sentencepiece", "google.protobuf"))):
                raise UsageError(
                    f"Model {path} has a tokenizer of SentencePiece, which needs two more packages; run "
                    "pip install 'skipdit-cli[text]'."
                )


def _missing_for(kind: str) -> list[str]:
    """Packages without which transformers has a stand-in for a class that says so whatever is asked of it."""
    import transformers

    wanted = getattr(getattr(transformers, kind, None), "_backends", [])
    return [name for name in map(str, wanted) if not importable(name)]


def importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False
