"""Tensors in files: read memory-mapped, so that nothing is held twice, and without running anyone's code."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skipdit_cli.errors import UsageError
from skipdit_cli.formats import parse_json, read_text
from skipdit_cli.models.variants import files_in, variant_of

STEM = "diffusion_pytorch_model"
TRANSFORMERS_INDEX = "model.safetensors.index.json"


def read_json(path) -> dict:
    """A JSON object from a file.

    Raises:
        UsageError: It is missing or is not a JSON object.
    """
    if not Path(path).is_file():
        raise UsageError(f"{path} is missing; fetch the model again.")
    data = parse_json(read_text(path), path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a {type(data).__name__} but expected an object.")
    return data


def read_tensors(path):
    """What a ``.safetensors`` or torch file holds, memory-mapped, on the CPU.

    A torch file is read with ``weights_only``: nothing but tensors, plain containers and ``argparse.Namespace`` (the
    DiT repository saves its arguments) is ever made from it.

    Raises:
        UsageError: The file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"Checkpoint {path} does not exist.")
    if path.suffix == ".gguf":
        raise UsageError(f"Checkpoint {path} is quantised (GGUF), and skip branches need plain weights; give those.")
    if _is_packed(path):
        raise UsageError(f"Checkpoint {path} is refused: it is compressed, as torch writes no file; unpack it.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols; such a file is read or refused all the same
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as cause:
        raise UsageError(
            f"Checkpoint {path} is refused: it is no plain torch file of tensors, and opening it otherwise could run "
            "code; save its state dict alone."
        ) from cause
    except Exception as cause:  # of zip, pickle and torch, by what is wrong with the file
        raise UsageError(f"Checkpoint {path} cannot be read: {_damage(path)}; fetch it again.") from cause


def _is_packed(path: Path) -> bool:
    """Whether a zip holds more than its own size: torch stores what it writes, and a few compressed kilobytes may
    unfold to all the memory there is."""
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


def weight_files(folder) -> list[Path]:
    """The files of weights of one diffusers model folder: one, or all shards; of a variant if there are no others.

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
    """The file that says which shard holds which tensor; None where there is none."""
    variant = variant_of(folder)
    names = [f"{STEM}.{suffix}.index.{variant}.json", f"{STEM}.{suffix}.{variant}.index.json"]
    names = names if variant else [f"{STEM}.{suffix}.index.json"]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _shards(folder: Path, index: Path) -> list[Path]:
    named = read_json(index).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise UsageError(f"Folder {folder} lacks {(missing or ['its shards'])[0]}, which {index.name} names.")
    return [folder / name for name in names]


def check_weights(folder: Path, floating: bool = False) -> None:
    """Look at the headers of all safetensors files of a part, of whatever library.

    Args:
        floating: Matrices of whole numbers are refused, too: no layer could compute with them as they are.
    Raises:
        UsageError: A file is damaged, cut short or missing.
    """
    files = files_in(folder, "*.safetensors")
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                slices = ((name, opened.get_slice(name)) for name in opened.keys()) if floating else ()
                whole = [name for name, tensor in slices if "I" in tensor.get_dtype() or "U" in tensor.get_dtype()
                         if len(tensor.get_shape()) > 1]  # fmt: skip
        except Exception as cause:
            raise UsageError(f"Checkpoint {file} cannot be read: {_damage(file)}; fetch it again.") from cause
        if whole:
            raise UsageError(
                f"Checkpoint {file} holds {whole[0]} in whole numbers, as quantised models do, and its config.json "
                "does not say by what; give the model without quantisation."
            )
    if any(map(partial(index_file, folder), ("safetensors", "bin"))):
        weight_files(folder)
    index = folder / TRANSFORMERS_INDEX
    if index.is_file() and not (folder / "model.safetensors").is_file():
        _shards(folder, index)


def _damage(file: Path) -> str:
    with file.open("rb") as opened:
        pointer = opened.read(40).startswith(b"version https://git-lfs")
    return "it is a pointer of Git LFS ('git lfs pull' fetches the file)" if pointer else "it is damaged or cut short"


def read_weights(folder) -> dict[str, torch.Tensor]:
    """The state dict of one diffusers model folder, memory-mapped."""
    return {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file).items()}


def assign_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], source, extra: bool = False) -> None:
    """Put tensors into a model made on the meta device, without a copy.

    Args:
        source: Where they come from, for the error.
        extra: Tensors that the model has no place for are left aside, as diffusers does.
    Raises:
        UsageError: A tensor is missing, of another shape, or (without ``extra``) left over.
    """
    own = model.state_dict()
    if extra:
        state = {name: tensor for name, tensor in state.items() if name in own}
    missing, left = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or left or wrong:
        parts = {"missing": missing, "not expected": left, "of another shape": wrong}
        said = "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in parts.items() if names)
        raise UsageError(f"{source} does not fit a {type(model).__name__} ({said}).")
    model.load_state_dict(state, assign=True)


def write_tensors(state: dict[str, torch.Tensor], path, dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file straight from (memory-mapped) tensors.

    Args:
        dtype: For floating-point tensors; None keeps theirs. A tensor under several names is written once for each.
    """
    written, seen = {}, set()
    for name, tensor in state.items():
        kept = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        repeated = (kept.data_ptr(), kept.shape) in seen  # safetensors refuses names that share memory
        seen.add((kept.data_ptr(), kept.shape))
        written[name] = kept.clone() if repeated else kept.contiguous()
    save_file(written, path, metadata={"format": "pt"})
