"""What the folder of a model holds: a pipeline with its ``skip/``, its licence, and no path of this machine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.models.index import INDEX, transformer_config
from skipdit_cli.models.weights import files_in, plain_name, read_json, variant_of
from skipdit_cli.skip import SkipBranches, skip_folder


def save_branches(branches: SkipBranches, folder, part: str = "transformer") -> None:
    """Write ``folder/skip/``: what stage 1 of training changes, small enough to share like an adapter."""
    branches.save_pretrained(Path(folder) / skip_folder(part), safe_serialization=True)
    drop_paths(Path(folder) / skip_folder(part))


def save_pipeline(pipe, folder) -> None:
    """Write a vanilla diffusers pipeline folder, and ``skip/`` beside it if branches are attached (``SavedApart``).

    As ``pipe.save_pretrained`` does, which warns of a VAE that a pixel-space model has not. ``model_index.json`` does
    not list ``skip``, so that plain diffusers loads the vanilla pipeline silently.
    """
    folder = Path(folder)
    for name, component in pipe.components.items():
        if component is not None:
            component.save_pretrained(folder / name)
    pipe.save_config(folder)
    drop_paths(folder)
    name_as_now(folder)


def drop_paths(folder: Path) -> None:
    """Take this machine's paths out of the configs in a folder, which may be shared.

    diffusers notes under ``_name_or_path`` where a part was loaded from. Of a path in the hub's cache the id is kept.
    """
    for file in [*folder.rglob("*config.json"), *folder.glob("model_index.json")]:
        if file.name.startswith("."):
            continue
        config = read_json(file)
        place = str(config.get("_name_or_path", ""))
        if Path(place).is_absolute():
            del config["_name_or_path"]
            on_hub = re.search(r"models--(\w[\w.-]*?)--([\w.-]+)", place)
            config |= {"_name_or_path": f"{on_hub[1]}/{on_hub[2]}"} if on_hub else {}
            write_config(file, config)


def name_as_now(folder: Path) -> None:
    """Name the classes of a folder's transformers as diffusers does now, in their configs and in the index."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    named = dict(index or {})
    for place in [folder] if index is None else [folder / part for part in TRANSFORMERS]:
        if not (place / "config.json").is_file():
            continue
        config = transformer_config(place, index)
        if config != read_json(place / "config.json"):
            write_config(place / "config.json", config)
        if place.name in named:
            named[place.name] = [named[place.name][0], config["_class_name"]]
    if index is not None and named != index:
        write_config(folder / INDEX, named)


def drop_variant(part: Path) -> None:
    """Name the weights of a part as those of no variant, so that diffusers finds them without asking for it."""
    variant = variant_of(part)
    for file in files_in(part) if variant is not None else ():
        if file.name.endswith(".json") and "weight_map" in (index := read_json(file)):
            named = {tensor: plain_name(name, variant) for tensor, name in index["weight_map"].items()}
            write_config(file, {**index, "weight_map": named})
        file.rename(file.with_name(plain_name(file.name, variant)))


def write_config(file: Path, config: dict) -> None:
    """As diffusers writes it."""
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def is_legal(name: str) -> bool:
    """Whether a file of this name says on what terms a model may be used: it goes where the weights go."""
    return name.lower().startswith(("license", "licence", "notice"))


def copy_legal(source: Path, folder: Path) -> None:
    """Copy the files of a pipeline folder that ``is_legal`` names."""
    for file in source.iterdir():
        if file.is_file() and is_legal(file.name):
            shutil.copyfile(file, folder / file.name)
