"""Optional packages that the parts of a pipeline need to be read: tokenizers, processors, quantised weights."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from skipdit_cli.errors import UsageError, install_extra
from skipdit_cli.models.weights import read_json

QUANTISATION = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "gguf": "gguf",
    "modelopt": "nvidia-modelopt",
    "auto-round": "auto-round",
}
"""The package that reads weights of a ``quant_method`` of diffusers."""


def importable(name: str) -> bool:
    """Return whether a module can be imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


def is_installed(package: str) -> bool:
    """Return whether a package is installed, by its name on the package index."""
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def check_packages(path, folder: Path, index: dict) -> None:
    """Check that the packages are installed that a pipeline's text encoders, tokenizers and processors need.

    Args:
        path: The model, as the user named it.
        folder: The pipeline folder.
        index: The content of its ``model_index.json``.
    Raises:
        UsageError: A class of transformers needs another package (FLUX.2's processor: torchvision), or a tokenizer is
            in SentencePiece's format alone and SentencePiece is missing.
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
        slow = part.startswith("tokenizer") and not (folder / part / "tokenizer.json").is_file()
        is_sentencepiece = slow and any((folder / part).glob("*.model"))
        if is_sentencepiece and not all(map(importable, ("sentencepiece", "google.protobuf"))):
            raise UsageError(
                f"Model {path} has a tokenizer of SentencePiece, which needs two more packages; run "
                f"{install_extra('text')}."
            )


def _missing_for(class_name: str) -> list[str]:
    """Return the missing packages without which transformers has only a placeholder for a class."""
    import transformers

    required = getattr(getattr(transformers, class_name, None), "_backends", [])
    return [name for name in map(str, required) if not importable(name)]


def is_quantised(folder: Path) -> bool:
    """Return whether the ``config.json`` of a part says that its weights are quantised."""
    return bool(read_json(folder / "config.json").get("quantization_config"))


def check_quantised(name, folder: Path, library: str) -> None:
    """Check that the package is installed that reads the weights of a part, if they are quantised.

    Args:
        name: The model, as the user named it.
        folder: The part's folder.
        library: The library of the part's class, as ``model_index.json`` names it.
    Raises:
        UsageError: The package is missing, or diffusers does not know the method.
    """
    config = read_json(folder / "config.json").get("quantization_config")
    if not config:
        return
    method = config.get("quant_method") if isinstance(config, dict) else config
    package = QUANTISATION.get(method) if isinstance(method, str) else None
    if package is None and library != "diffusers":  # transformers has more methods, and says what they need
        return
    if package is None:
        known = f"; known are {', '.join(QUANTISATION)}"
        raise UsageError(f"Model {name} has a {folder.name} quantised by '{method}', which is not read here{known}.")
    if not is_installed(package):
        raise UsageError(
            f"Model {name} has a {folder.name} quantised by {method}, which needs one more package; run pip install "
            f"{package}, or give the model without quantisation."
        )


def check_plain(folder: Path) -> None:
    """Check that a transformer is not quantised: skip branches are made for, and trained on, plain weights.

    Raises:
        UsageError: It is quantised.
    """
    if is_quantised(folder):
        config = read_json(folder / "config.json")["quantization_config"]
        method = config.get("quant_method", "some way") if isinstance(config, dict) else config
        raise UsageError(
            f"Folder {folder} is quantised ({method}), and skip branches need plain weights; give the model without "
            "quantisation (quantised ones can be sampled as they are)."
        )
