"""Writing models: pipeline folders with their ``skip/``, each written beside its place and then renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from skipdit_cli.checkpoints.index import INDEX, TRANSFORMERS, transformer_config
from skipdit_cli.checkpoints.variants import plain_name, variant_of
from skipdit_cli.checkpoints.weights import read_json
from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.media.files import check_writable
from skipdit_cli.skip import SkipBranches, skip_folder


@contextmanager
def replace_folder(
    target, overwrite: bool = False, needed_bytes: int = 0, marks: Sequence[str] = ()
) -> Iterator[Path]:
    """A new folder to fill, which takes ``target``'s place once the block ends well.

    The folder is ``<target>.tmp-<pid>``, beside the target. At the end it is flushed to disk and renamed; on any
    exception it is removed and the target is as it was.

    Args:
        needed_bytes: Free disk to ask for before anything is written.
        marks: As for ``check_target``.
    Raises:
        UsageError: The target exists and ``overwrite`` is off, or cannot be made, or the disk has too little room.
        SkipditError: Writing failed on the way.
    """
    check_target(target, overwrite, needed_bytes, marks)
    target = Path(os.path.realpath(target))  # a link stays, and what it leads to is replaced
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    former = target.with_name(f"{target.name}.old-{os.getpid()}")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
    except OSError as cause:
        raise UsageError(f"Cannot write to {target}: {cause.strerror}; give another --output.") from cause
    try:
        yield temporary
        _flush(temporary)
        if target.exists():
            target.rename(former)
        temporary.rename(target)
        _sync(target.parent)
    except (OSError, SafetensorError) as cause:
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise SkipditError(f"Writing {target} failed: {reason}; nothing was kept.") from cause
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not target.exists():
            former.rename(target)
        shutil.rmtree(former, ignore_errors=True)
        if not target.exists():
            with suppress(OSError):  # not empty: someone else's by now
                for parent in made:
                    parent.rmdir()


def check_target(target, overwrite: bool = False, needed_bytes: int = 0, marks: Sequence[str] = ()) -> None:
    """Whether a folder may be written at ``target``; nothing is.

    Args:
        marks: A folder that is not empty is replaced only if it holds one of these: nobody's photographs are.
    Raises:
        UsageError: See ``replace_folder``.
    """
    target = Path(target)
    if os.path.lexists(target) and not overwrite:
        raise UsageError(f"Output {target} exists; give another --output, or --overwrite to replace it.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"Output {target} is a file, but a folder is written; give another --output.")
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held and marks and not set(marks) & set(held):
        raise UsageError(
            f"Output {target} holds {held[0]} and no {' or '.join(marks)}, so it is not ours to replace; give another "
            "--output."
        )
    parent = check_writable(target)
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise UsageError(
            f"Output {target} needs {needed_bytes / 1e9:.2f} GB but {parent} has {free / 1e9:.2f} GB free; "
            "give another --output."
        )


def check_apart(output, *models) -> None:
    """Whether writing to ``output`` leaves models alone that are read.

    Args:
        models: Paths, hub ids, or None.
    Raises:
        UsageError: It is one of them, lies in one, or would take its place together with what lies around it.
    """
    place = Path(output).resolve()
    for model in models:
        read = Path(model).expanduser() if model is not None else None
        if read is None or not os.path.exists(read):
            continue
        if place == read.resolve():
            raise UsageError(f"Output {output} is the model itself; give another --output.")
        if place in read.resolve().parents:
            raise UsageError(f"Output {output} is a folder that {model} lies in; give another --output.")
        if read.is_dir() and read.resolve() in place.parents:
            raise UsageError(f"Output {output} lies inside the model {model}; give another --output.")


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush for a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    for file in sorted(part.iterdir()) if variant is not None else ():
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
