"""Tensors that are computed once and kept, in a folder, by the content of what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from skipdit_cli import console
from skipdit_cli.errors import SkipditError, UsageError, reading
from skipdit_cli.files import replacing

CHECKSUM = "sha256"
"""Under which the metadata of an entry's file holds the checksum of its tensors."""

Tensors = dict[str, torch.Tensor]


class Store:
    """``FOLDER/ab/abcdef....safetensors``, an entry each: tensors by name. Two runs may use one folder at the same
    time."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: dict) -> Path:
        """Where the entry of a key (anything JSON can hold) is."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def read(self, key: dict) -> Tensors | None:
        """The entry, or None where there is none, or a damaged one, which is said: a header that cannot be read, or
        tensors of which a bit is no longer what it was."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with reading(str(path)), safe_open(path, "pt") as opened:
                entry = {name: opened.get_tensor(name) for name in opened.keys()}
                kept = (opened.metadata() or {}).get(CHECKSUM)
        except UsageError:
            entry = kept = None
        if entry is None or kept != checksum(entry):
            console.warn_once(str(path), f"{path} is damaged, or of an older skipdit, and is made anew.")
            return None
        return entry

    def get(self, key: dict, make: Callable[[], Tensors]) -> Tensors:
        """The entry; made and kept if it is not there.

        Raises:
            SkipditError: It could not be written.
        """
        held = self.read(key)
        if held is not None:
            return held
        made, path = {name: tensor.contiguous() for name, tensor in make().items()}, self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file(made, part, {CHECKSUM: checksum(made)})
        except (OSError, SafetensorError) as cause:
            raise SkipditError(f"Cannot keep {path}: {cause}; give another --cache-latents.") from cause
        return made


def checksum(tensors: Tensors) -> str:
    """A hash of tensors, their names, types and shapes."""
    digest = hashlib.sha256()
    _add_tensors(digest, tensors)
    return digest.hexdigest()


def fingerprint(module, config: dict) -> str:
    """A hash of the bytes of a model's weights and of what else shapes what it makes."""
    own = {key: value for key, value in config.items() if not key.startswith("_")}  # no paths, no versions
    digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
    _add_tensors(digest, module.state_dict())
    return digest.hexdigest()


def fingerprint_of_adapters(transformer) -> str | None:
    """A hash of the LoRA that is loaded into a transformer, which a resumed run has to have; None without."""
    adapters = {name: tensor for name, tensor in transformer.state_dict().items() if ".lora_" in name}
    return checksum(adapters) if adapters else None


def _add_tensors(digest, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def of_model(encoder) -> dict:
    """What of a text encoder's config shapes what it makes."""
    left = ("dtype", "torch_dtype", "transformers_version")
    return {name: value for name, value in encoder.config.to_dict().items() if name not in left}


def fingerprint_of_tokenizer(tokenizer) -> str | None:
    """A hash of how a tokenizer reads texts."""
    if tokenizer is None:
        return None
    own = {"kind": type(tokenizer).__name__, "longest": tokenizer.model_max_length, "words": tokenizer.get_vocab()}
    own |= {"special": tokenizer.special_tokens_map, "side": tokenizer.padding_side}
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        own["rules"] = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
