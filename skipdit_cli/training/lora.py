"""A LoRA below the branches that are trained: loaded, and left as it is."""

from __future__ import annotations

import hashlib

import torch


def adapters(transformer) -> str | None:
    """A hash of the adapters that are loaded into a transformer, which a resumed run has to have; None without."""
    digest, names = hashlib.sha256(), 0
    for name, tensor in sorted(transformer.state_dict().items()):
        if ".lora_" in name:
            names += 1
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest() if names else None
