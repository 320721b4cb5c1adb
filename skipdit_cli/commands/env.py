"""``skipdit env``: the facts about the machine that a bug report needs."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from skipdit_cli import console
from skipdit_cli.commands.options import Debug, Json
from skipdit_cli.version import __version__

PACKAGES = (
    "torch", "diffusers", "accelerate", "transformers", "safetensors", "huggingface_hub", "peft", "typer", "rich",
    "numpy", "pillow", "imageio", "imageio-ffmpeg", "decord", "scikit-learn", "matplotlib", "tensorboard", "gradio",
)  # fmt: skip
GIB = 2**30


def env(json: Json = False, debug: Debug = False) -> None:
    """Show versions, devices, memory and disk, for a bug report."""
    facts: dict[str, Any] = {
        "skipdit": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        **_machine(),
        **_hub(),
    }
    rows = {**facts, **facts["versions"], "devices": ", ".join(facts["devices"])}
    del rows["versions"]
    shown = [[name, "-" if value is None else value] for name, value in rows.items()]
    console.table(["what", "here"], shown)
    console.emit(facts)


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, object]:
    import psutil
    import torch

    cuda = [f"cuda:{at} {torch.cuda.get_device_name(at)}" for at in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    memory = psutil.virtual_memory()
    return {
        "devices": ["cpu", *cuda, *mps],
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory.total / GIB, 1),
        "memory_free_gib": round(memory.available / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
    }


def _hub() -> dict[str, object]:
    from huggingface_hub import constants

    home = Path(constants.HF_HOME)
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    return {
        "hf_home": str(home),
        "hf_home_free_gib": round(shutil.disk_usage(existing).free / GIB, 1),
        "hf_hub_offline": constants.HF_HUB_OFFLINE,
    }
