"""Weight files of one part of a pipeline: their names and variants, and tensors read memory-mapped and safely."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.formats import MAX_BYTES, UntrustedFile, parse_json, read_text

TOKENIZER = "tokenizer.json"
MAX_CONFIG = 1 << 23
"""Bytes of a config or index; the largest, of a tokenizer with thousands of special tokens, have an eighth of that."""
STEM = "diffusion_pytorch_model"
TRANSFORMERS_INDEX = "model.safetensors.index.json"
"""The index of shards as the library ``transformers`` names it."""
WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<variant>[\w-]+?))?(-\d{5}-of-\d{5})?(\.(?P<former>[\w-]+))?"
    r"\.(safetensors|bin)"
)
"""The name of a weight file or shard of diffusers or transformers; the variant once stood where ``former`` is."""


def read_json(path) -> dict:
    """Read a JSON object from a file.

    Raises:
        UsageError: The file is missing or holds no JSON object.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path} is missing; fetch the model again.")
    data = parse_json(read_text(path, MAX_BYTES if Path(path).name == TOKENIZER else MAX_CONFIG), path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__} but expected an object.")
    return data


def files_in(folder: Path, pattern: str = "*") -> list[Path]:
    """List the files of a part, without hidden ones such as macOS's ``._config.json``."""
    return sorted(file for file in folder.glob(pattern) if file.is_file() and not file.name.startswith("."))


def variant_of(folder: Path) -> str | None:
    """Return the variant in which the weights of a part lie (``fp16``), where they do not lie there without one.

    diffusers reads a variant only if it is asked for by name, and then in every part that has it.

    Raises:
        UsageError: As ``variant_among``.
    """
    try:
        return variant_among(file.name for file in folder.iterdir()) if folder.is_dir() else None
    except UsageError as cause:
        raise UsageError(f"Folder {folder}: {cause}") from cause


def variant_among(names: Iterable[str]) -> str | None:
    """Return the variant of weight files by their names; None if some have none, or none is a weight file.

    Raises:
        UsageError: There are several variants, and nothing says which is meant.
    """
    matches = filter(None, map(WEIGHTS.fullmatch, names))
    variants = {match["variant"] or match["former"] for match in matches}
    if None in variants or not variants:
        return None
    if len(variants) > 1:
        raise UsageError(
            f"Got weights in the variants {', '.join(sorted(variants))} and none without; keep one of them."
        )
    return variants.pop()


def variants_in(folder: Path) -> set[str | None]:
    """Return the variants of the weight files in a part; None stands for files without one."""
    matches = filter(None, (WEIGHTS.fullmatch(file.name) for file in files_in(folder)))
    return {match["variant"] or match["former"] for match in matches}


def check_variant(pipeline: Path, variant: str | None, alone: bool = False) -> None:
    """Refuse a variant that the transformers of a pipeline do not have.

    Args:
        alone: Refuse files without a variant beside it, too, which would be read in its place.
    Raises:
        UsageError: Their folders have no such files; the sentence names those that exist.
    """
    if variant is None:
        return
    found = set().union(*(variants_in(pipeline / part) for part in TRANSFORMERS if (pipeline / part).is_dir()))
    if variant not in found:
        names = ", ".join(sorted(name for name in found if name is not None)) or "none"
        without = "; leave --variant out for the files without one" if None in found else ""
        raise UsageError(f"Got --variant {variant}, but {pipeline} has weights in the variants: {names}{without}.")
    if alone and None in found:
        raise UsageError(
            f"Got --variant {variant}, but {pipeline} has weights without a variant as well, which are read here; "
            "leave it out, or give a copy of the folder without those."
        )


def plain_name(name: str, variant: str) -> str:
    """Return the name of a weight file, or of an index of shards, without its variant."""
    return re.sub(rf"\.{re.escape(variant)}(?=[.-])", "", name)


def weight_files(folder) -> list[Path]:
    """List the weight files of one diffusers model: one, or all shards; those of a variant if there are no others.

    Raises:
        UsageError: There are none, or a shard is missing.
    """
    folder, variant = Path(folder), variant_of(Path(folder))
    dot = f".{variant}" if variant else ""
    for suffix in ("safetensors", "bin"):
        whole, index = folder / f"{STEM}{dot}.{suffix}", index_file(folder, suffix)
        if whole.is_file():
            return [whole]
        if index is not None:
            return _shards(folder, index)
    raise UsageError(f"Folder {folder} holds no weights; expected {STEM}{dot}.safetensors.")


def index_file(folder: Path, suffix: str = "safetensors") -> Path | None:
    """Return the file that says which shard holds which tensor; None if the weights are not sharded."""
    variant = variant_of(folder)
    names = [f"{STEM}.{suffix}.index.{variant}.json", f"{STEM}.{suffix}.{variant}.index.json"]
    names = names if variant else [f"{STEM}.{suffix}.index.json"]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _shards(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise UsageError(f"Folder {folder} lacks {(missing or ['its shards'])[0]}, which {index.name} names.")
    return [folder / name for name in names]


def check_weights(folder: Path, floating: bool = False) -> None:
    """Check that all safetensors files of a part have a readable header, and that no shard is missing.

    Args:
        folder: The part, of diffusers or transformers.
        floating: Refuse matrices of integers, too: a layer cannot compute with them as they are.
    Raises:
        UsageError: A file is damaged, cut short or missing, or holds such a matrix.
    """
    for file in files_in(folder, "*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                integers = _integer_matrices(opened) if floating else []
        except Exception as cause:
            raise UsageError(f"Checkpoint {file} cannot be read: {_damage(file)}; fetch it again.") from cause
        if integers:
            raise UsageError(
                f"Checkpoint {file} holds {integers[0]} in whole numbers, as quantised models do, and its config.json "
                "does not say by what; give the model without quantisation."
            )
    if index_file(folder, "safetensors") or index_file(folder, "bin"):
        weight_files(folder)
    index = folder / TRANSFORMERS_INDEX
    if index.is_file() and not (folder / "model.safetensors").is_file():
        _shards(folder, index)


def _integer_matrices(opened) -> list[str]:
    """Return the names of the tensors of integers with two dimensions or more in an open safetensors file."""
    headers = {name: opened.get_slice(name) for name in opened.keys()}
    return [
        name
        for name, header in headers.items()
        if ("I" in header.get_dtype() or "U" in header.get_dtype()) and len(header.get_shape()) > 1
    ]


def read_tensors(path):
    """Read a ``.safetensors`` or torch file, memory-mapped, on the CPU.

    A torch file is read with ``weights_only``: nothing but tensors, plain containers and ``argparse.Namespace`` (the
    DiT repository saves its arguments) is ever made from it.

    Returns:
        A state dict; of a torch file whatever containers it holds.
    Raises:
        UsageError: The file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"Checkpoint {path} does not exist.")
    if path.suffix == ".gguf":
        raise UsageError(f"Checkpoint {path} is quantised (GGUF), and skip branches need plain weights; give those.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; such a file is read or refused all the same
            return load_torch(path)
    except UsageError:
        raise
    except pickle.UnpicklingError as cause:
        raise UsageError(
            f"Checkpoint {path} is refused: it is no plain torch file of tensors, and opening it otherwise could run "
            "code; save its state dict alone."
        ) from cause
    except Exception as cause:  # zip, pickle and torch each raise their own
        raise UsageError(f"Checkpoint {path} cannot be read: {_damage(path)}; fetch it again.") from cause


def load_torch(path: Path):
    """Load a file of ``torch.save`` on the CPU with ``weights_only``, memory-mapped unless it is of an old format.

    Raises:
        UsageError: It is compressed.
        Exception: Whatever torch raises for a damaged file, or one that holds anything but tensors and plain data.
    """
    if _is_compressed(path):
        raise UsageError(f"Checkpoint {path} is refused: it is compressed, as torch writes no file; unpack it.")
    if _is_zip(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with UntrustedFile(path) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _is_compressed(path: Path) -> bool:
    """Return whether a zip holds more than its own size.

    torch stores tensors uncompressed, and a few compressed kilobytes may unfold to all the memory there is.
    """
    if not _is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as opened:
            return sum(entry.file_size for entry in opened.infolist()) > path.stat().st_size
    except zipfile.BadZipFile:
        return False  # torch says so


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _damage(file: Path) -> str:
    with file.open("rb") as opened:
        pointer = opened.read(40).startswith(b"version https://git-lfs")
    return "it is a pointer of Git LFS ('git lfs pull' fetches the file)" if pointer else "it is damaged or cut short"


def read_weights(folder) -> dict[str, torch.Tensor]:
    """Read the state dict of one diffusers model folder, memory-mapped.

    Raises:
        UsageError: As ``weight_files`` and ``read_tensors``.
    """
    return {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file).items()}


def write_tensors(state: dict[str, torch.Tensor], path, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file straight from (memory-mapped) tensors.

    A tensor under several names is written once for each.

    Args:
        dtype: The dtype of the floating-point tensors written; None keeps theirs.
    """
    written, addresses = {}, set()
    for name, tensor in state.items():
        tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        address = (tensor.data_ptr(), tensor.shape)
        written[name] = tensor.clone() if address in addresses else tensor.contiguous()  # no names may share memory
        addresses.add(address)
    save_file(written, path, metadata={"format": "pt"})
