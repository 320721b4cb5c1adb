"""Which samples a folder holds, and what each comes with: a label, a caption, or nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skipdit_cli import console, media
from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.class_folders import Classes, check_splits, first_split, read_classes
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.metadata import NAMES, Condition, read_rows
from skipdit_cli.training.data.tree import Bounds, Found, counted, find_images, find_videos, walk

UNREADABLE_SHARE = 0.01
OTHER_NAMES = (
    *NAMES,  # in capitals
    *("metadata.json", "metadata.ndjson", "metadata.tsv", "metadata.parquet", "metadata.arrow", "metadata.xlsx"),
)
"""What may be a list of samples but is not read, in lower case."""


@dataclass(frozen=True)
class Listing:
    """
    Args:
        classes: What the class directories mean; None without such.
        left_out: In a few words, the files that are no samples; empty for none.
    """

    samples: list[tuple[Path, Condition]]
    classes: Classes | None = None
    left_out: str = ""

    def fingerprint(self, root: Path) -> str:
        """A hash of which files there are, by their names below ``root``, and what each comes with."""
        digest = hashlib.sha256()
        for path, condition in self.samples:
            name = path.relative_to(root) if path.is_relative_to(root) else path
            digest.update(f"{name.as_posix()}\0{condition!r}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


class Probed(NamedTuple):
    """What trying a sample told: the frames a clip can be of, and how many are shown in a second, if that is known.
    ``frames`` are their numbers in the file, None where those are 0, 1, 2, ..."""

    length: int
    fps: float | None = None
    frames: np.ndarray | None = None


def list_samples(root: Path, demand: Demand, allow_outside: bool = False) -> Listing:
    """The samples that ``metadata.jsonl`` or ``metadata.csv`` lists; or without it those of class directories for a
    model of classes (see ``read_classes``), and those anywhere for a model of nothing.

    Raises:
        UsageError: There is none, the folder is laid out otherwise, or a line is malformed.
    """
    bounds = Bounds(root, allow_outside)
    held = [root / name for name in NAMES if (root / name).is_file()]
    if len(held) > 1:
        raise UsageError(f"Got --data {root} with {' and '.join(NAMES)}; keep one of the two.")
    folders = list(walk(root, None if held else bounds))  # what is listed is looked at line by line
    found = (find_images if demand.video_length is None else find_videos)(folders)
    if held:
        listing = _listed(root, held[0], found, read_rows(held[0], demand, bounds))
    else:
        listing = _found(root, folders, found, demand)
    if not listing.samples:
        hint = f"{held[0].name} lists none" if held else "expected class directories, or metadata.jsonl"
        left_out = f" ({listing.left_out})" if listing.left_out else ""
        raise UsageError(f"Got --data {root}, in which there is no {demand.kind[:-1]}{left_out}: {hint}.")
    return listing


def _listed(root: Path, metadata: Path, found: Found, samples: list[tuple[Path, Condition]]) -> Listing:
    known = {path for path, _ in samples}
    others = [path for path in found.samples if path not in known and path != root]
    left_out = f"{len(others):,} left out that {metadata.name} does not list ({counted(others, root)})"
    return Listing(samples, left_out=left_out if others else "")


def _found(root: Path, folders: list[tuple[Path, list[Path]]], found: Found, demand: Demand) -> Listing:
    """All that lies there; of a model of classes, all in its directories."""
    _check_metadata(root, folders, found, demand)
    below = defaultdict(list)
    for folder, _ in folders:
        if folder != root:  # which is its own parent where it is "." or "/"
            below[folder.parent].append(folder)
    directories = below[root]
    samples, left_out = [], list(found.left_out)
    if demand.num_classes is None:
        for siblings in below.values():
            check_splits(root, siblings, demand)
        if root in found.samples:
            raise _frames_here(root)
        listing = Listing([(path, None) for path in found.samples])
    else:
        check_splits(root, directories, demand)
        for path in found.samples:
            if path == root:
                left_out += media.frame_files(root)
            elif path.parent != root:
                samples.append(path)
            elif path.is_dir():
                raise _frames_here(path)
            else:
                left_out.append(path)
        classes = read_classes(root, directories, Found(samples, left_out), demand)
        listing = Listing([(path, classes.of(path.relative_to(root).parts[0])) for path in samples], classes)
    return replace(listing, left_out=f"{len(left_out):,} left out ({counted(left_out, root)})" if left_out else "")


def _frames_here(folder: Path) -> UsageError:
    return UsageError(
        f"Got {folder} with pictures in it, where videos were expected; the frames of a video lie in a folder of "
        "their own, one level deeper."
    )


def _check_metadata(root: Path, folders: list[tuple[Path, list[Path]]], found: Found, demand: Demand) -> None:
    """Refuse a list of samples that lies deeper or has another name, and captions without one."""
    deeper = [file for folder, files in folders if folder != root for file in files if file.name in NAMES]
    if deeper and (demand.captions or demand.num_classes is not None):
        file = first_split(deeper, lambda file: file.parent.name)
        raise UsageError(f"Got --data {root}, but {file.name} lies in {file.parent}; give --data {file.parent}.")
    others = [file for file in found.left_out if file.parent == root and file.name.casefold() in OTHER_NAMES]
    if others and (demand.captions or demand.num_classes is not None):
        raise UsageError(f"Got --data {root} with {others[0].name}, which is not read; expected {' or '.join(NAMES)}.")
    if demand.captions:
        texts = [file for file in found.left_out if file.suffix.lower() == ".txt"]
        hint = f" Texts beside the {demand.kind}, such as {texts[0].name}, are not read." if texts else ""
        wanted = '{"file_name": "a.mp4", "text": "a cat"}'
        raise UsageError(
            f"Got --data {root} for a model of texts, but it has no metadata.jsonl with lines {wanted}.{hint}"
        )


def readable(
    samples: list[tuple[Path, Condition]], probe: Callable[[Path], Probed], kind: str, folder: str
) -> list[tuple[Path, Condition, Probed]]:
    """The samples that can be used, each with what trying it told; the others are named.

    Args:
        probe: Raises ``UsageError`` that says why a file cannot be used.
    Raises:
        UsageError: Above 1 % cannot.
    """

    def tried(path: Path) -> Probed | UsageError:
        try:
            return probe(path)
        except UsageError as fault:
            return fault

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(tried, [path for path, _ in samples]))
    faults = [result for result in found if isinstance(result, UsageError)]
    for fault in faults:
        console.warn(f"unreadable {kind[:-1]}: {fault}")
    if len(faults) > UNREADABLE_SHARE * len(samples):
        raise UsageError(
            f"{len(faults)} of {len(samples)} {kind} in {folder} cannot be read (above 1 %): repair or remove."
        )
    return [(*sample, probed) for sample, probed in zip(samples, found) if not isinstance(probed, UsageError)]
