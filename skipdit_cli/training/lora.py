"""A LoRA below the branches that are trained: loaded, and left as it is."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch

from skipdit_cli.errors import UsageError

WEIGHTS = "pytorch_lora_weights.safetensors"


def lora_file(path: str) -> Path:
    """The file of a LoRA: the one given, or the one in a folder.

    Raises:
        UsageError: There is none, or peft, which it takes, is not installed.
    """
    given = Path(path).expanduser()
    found = given / WEIGHTS if given.is_dir() else given
    if not found.is_file() or found.suffix != ".safetensors":
        raise UsageError(f"Got --lora {path} but expected a .safetensors file, or a folder that holds {WEIGHTS}.")
    if importlib.util.find_spec("peft") is None:
        raise UsageError("Got --lora, which takes one more package; run pip install peft.")
    return found


def load_lora(pipe, file: Path) -> None:
    """Put a LoRA into a pipeline, through the pipeline's own loader where it has one.

    Raises:
        UsageError: It cannot be read, or is of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
        if hasattr(pipe, "load_lora_weights"):
            pipe.load_lora_weights(dict(tensors))
        else:
            pipe.transformer.load_lora_adapter(dict(tensors))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as cause:
        why = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise UsageError(f"Got --lora {file}, which cannot be loaded into a {type(pipe).__name__}: {why}.") from cause
    if not getattr(pipe.transformer, "peft_config", None):
        raise UsageError(f"Got --lora {file}, which holds nothing for the transformer of a {type(pipe).__name__}.")


def adapters(transformer) -> str | None:
    """A hash of the adapters that are loaded into a transformer, which a resumed run has to have; None without."""
    digest, names = hashlib.sha256(), 0
    for name, tensor in sorted(transformer.state_dict().items()):
        if ".lora_" in name:
            names += 1
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest() if names else None
