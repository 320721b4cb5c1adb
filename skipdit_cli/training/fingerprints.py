"""Fingerprints of what encodes training data, by which kept latents and texts are found again."""

from __future__ import annotations

import hashlib
import json

import torch


def checksum(tensors: dict[str, torch.Tensor]) -> str:
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
