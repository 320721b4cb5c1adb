"""Write the folder of a model: a pipeline with its ``skip/`` and its licence, and no path of this machine."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.models.index import INDEX, transformer_config
from skipdit_cli.models.weights import files_in, plain_name, read_json, variant_of
from skipdit_cli.sampling.pipelines import standalone_pipeline
from skipdit_cli.skip import SkipBranches, skip_folder
from skipdit_cli.skip.base_weights import record_base

PIPELINE_CODE = "pipeline.py"
"""The file of a model folder from which diffusers loads a custom pipeline."""


def save_branches(
    branches: SkipBranches, folder, part: str = "transformer", base: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write skip branches to ``folder/skip/`` (``skip_2/`` for the second transformer).

    That is all that stage 1 of training changes, and small enough to share like an adapter.

    Args:
        base: The state dict of the transformer that they belong to, which their config records a few values of.
    """
    if base is not None:
        record_base(branches, base)
    branches.save_pretrained(Path(folder) / skip_folder(part), safe_serialization=True)
    drop_paths(Path(folder) / skip_folder(part))


def save_pipeline(pipe, folder) -> None:
    """Write a vanilla diffusers pipeline folder, and ``skip/`` beside it if branches are attached (``SavedApart``).

    It does what ``pipe.save_pretrained`` does, which would warn about the missing VAE of a pixel-space model.
    ``model_index.json`` does not list ``skip``, so that plain diffusers loads the vanilla pipeline silently.
    """
    folder = Path(folder)
    for name, component in pipe.components.items():
        if component is not None:
            component.save_pretrained(folder / name)
    pipe.save_config(folder)
    drop_paths(folder)
    name_as_now(folder)
    add_pipeline_code(folder)


def add_pipeline_code(folder: Path) -> None:
    """Put ``pipeline.py`` into the folder of a DiT or SiT, with which plain diffusers samples it.

    ``DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)`` loads it.
    """
    if (folder / INDEX).is_file() and read_json(folder / INDEX).get("_class_name") in ("DiTPipeline", "SiTPipeline"):
        shutil.copyfile(standalone_pipeline.__file__, folder / PIPELINE_CODE)


def drop_paths(folder: Path) -> None:
    """Remove this machine's paths from the configs in a folder, which may be shared.

    diffusers records under ``_name_or_path`` where a part was loaded from. A path in the hub's cache becomes the hub
    id.
    """
    for file in [*folder.rglob("*config.json"), *folder.glob("model_index.json")]:
        if file.name.startswith("."):
            continue
        config = read_json(file)
        path = str(config.get("_name_or_path", ""))
        if Path(path).is_absolute():
            del config["_name_or_path"]
            cached = re.search(r"models--(\w[\w.-]*?)--([\w.-]+)", path)
            config |= {"_name_or_path": f"{cached[1]}/{cached[2]}"} if cached else {}
            write_config(file, config)


def name_as_now(folder: Path) -> None:
    """Give the classes of a folder's transformers the names that diffusers has for them now, in configs and index."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    renamed = dict(index or {})
    for part in [folder] if index is None else [folder / name for name in TRANSFORMERS]:
        if not (part / "config.json").is_file():
            continue
        config = transformer_config(part, index)
        if config != read_json(part / "config.json"):
            write_config(part / "config.json", config)
        if part.name in renamed:
            renamed[part.name] = [renamed[part.name][0], config["_class_name"]]
    if index is not None and renamed != index:
        write_config(folder / INDEX, renamed)


def drop_variant(part: Path) -> None:
    """Remove the variant from the names of a part's weight files, so that diffusers finds them unasked."""
    variant = variant_of(part)
    if variant is None:
        return
    for file in files_in(part):
        if file.name.endswith(".json") and "weight_map" in (index := read_json(file)):
            weight_map = {tensor: plain_name(name, variant) for tensor, name in index["weight_map"].items()}
            write_config(file, {**index, "weight_map": weight_map})
        file.rename(file.with_name(plain_name(file.name, variant)))


def write_config(file: Path, config: dict) -> None:
    """Write a config or index as diffusers writes it."""
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_legal(name: str) -> bool:
    """Return whether a file of this name states the licence of a model; it is copied wherever the weights are."""
    return name.lower().startswith(("license", "licence", "notice"))


def copy_legal(source: Path, folder: Path) -> None:
    """Copy the licence files of a pipeline folder."""
    for file in source.iterdir():
        if file.is_file() and is_legal(file.name):
            shutil.copyfile(file, folder / file.name)
