"""A folder that keeps computed tensors, found again by the content of what they were computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skipdit_cli.errors import SkipditError, UsageError, reading
from skipdit_cli.files import replacing
from skipdit_cli.training.observer import SILENT, Observer

CHECKSUM = "sha256"
"""The key of the checksum in the metadata of an entry's file."""

Tensors = dict[str, torch.Tensor]


class Store:
    """Keeps tensors by name, one entry per file: ``FOLDER/ab/abcdef....safetensors``.

    Two runs may use one folder at the same time.

    Args:
        observer: Receives a warning about every damaged entry.
    """

    def __init__(self, folder: Path, observer: Observer = SILENT):
        self.folder, self.observer = folder, observer

    def path(self, key: dict) -> Path:
        """Return the file of an entry.

        Args:
            key: Anything that JSON can hold.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, key: dict) -> Tensors | None:
        """Return an entry, or None if there is none or its file is damaged in its header or in any tensor."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with reading(str(path)), safe_open(path, "pt") as opened:
                entry = {name: opened.get_tensor(name) for name in opened.keys()}
                recorded = (opened.metadata() or {}).get(CHECKSUM)
        except UsageError:
            entry = recorded = None
        if entry is None or recorded != checksum(entry):
            self.observer.warn(f"{path} is damaged, or of an older skipdit, and is made anew.", str(path))
            return None
        return entry

    def get(self, key: dict, compute: Callable[[], Tensors]) -> Tensors:
        """Return an entry, which is computed and kept if there is none.

        Raises:
            SkipditError: It could not be written.
        """
        entry = self.read(key)
        if entry is not None:
            return entry
        entry, path = {name: tensor.contiguous() for name, tensor in compute().items()}, self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file(entry, part, {CHECKSUM: checksum(entry)})
        except (OSError, SafetensorError) as cause:
            raise SkipditError(f"Cannot keep {path}: {cause}; give another --cache-latents.") from cause
        return entry


def checksum(tensors: Tensors) -> str:
    """Return a hash of tensors with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    _add_tensors(digest, tensors)
    return digest.hexdigest()


def fingerprint(module, config: dict) -> str:
    """Return a hash of a model's weights and of its config, without the paths and versions that the config holds."""
    shaping = {key: value for key, value in config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode())
    _add_tensors(digest, module.state_dict())
    return digest.hexdigest()


def fingerprint_of_adapters(transformer) -> str | None:
    """Return a hash of the LoRA that is loaded into a transformer, or None if there is none."""
    adapters = {name: tensor for name, tensor in transformer.state_dict().items() if ".lora_" in name}
    return checksum(adapters) if adapters else None


def _add_tensors(digest, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def fingerprint_of_encoder(encoder) -> str:
    """Return a hash of a text encoder's weights and of its config, without dtypes and versions."""
    ignored = ("dtype", "torch_dtype", "transformers_version")
    return fingerprint(encoder, {k: value for k, value in encoder.config.to_dict().items() if k not in ignored})


def fingerprint_of_tokenizer(tokenizer) -> str | None:
    """Return a hash of a tokenizer's vocabulary and rules, or None for a tokenizer that is missing."""
    if tokenizer is None:
        return None
    content = {"kind": type(tokenizer).__name__, "longest": tokenizer.model_max_length, "words": tokenizer.get_vocab()}
    content |= {"special": tokenizer.special_tokens_map, "side": tokenizer.padding_side}
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        content["rules"] = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
