"""The samples of a data folder, each with its label, its caption, or neither."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from skipdit_cli import media
from skipdit_cli.errors import UsageError
from skipdit_cli.training.data.class_folders import Classes, check_splits, first_split, read_classes
from skipdit_cli.training.data.data_folder import Bounds, FileSet, find_images, find_videos, summary_of, walk
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.metadata import NAMES, Condition, read_rows
from skipdit_cli.training.observer import SILENT, Observer

UNREADABLE_SHARE = 0.01
OTHER_NAMES = (
    *NAMES,  # these names in capitals, too
    *("metadata.json", "metadata.ndjson", "metadata.tsv", "metadata.parquet", "metadata.arrow", "metadata.xlsx"),
)
"""Names of files that may list samples but are not read, in lower case."""


@dataclass(frozen=True)
class Listing:
    """The samples of a data folder.

    Args:
        classes: The labels of the class folders; None if there are none.
        left_out: A summary of the files that are no samples; empty if there are none.
    """

    samples: list[tuple[Path, Condition]]
    classes: Classes | None = None
    left_out: str = ""

    def fingerprint(self, root: Path) -> str:
        """Return a hash of the names of the files below ``root`` and of their labels or captions."""
        digest = hashlib.sha256()
        for path, condition in self.samples:
            name = path.relative_to(root) if path.is_relative_to(root) else path
            digest.update(f"{name.as_posix()}\0{condition!r}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


class Probed(NamedTuple):
    """What opening a sample showed.

    Args:
        length: The number of frames that a clip can be cut from.
        fps: Frames per second, if known.
        frames: The numbers of the frames in the file; None for 0, 1, 2, ...
    """

    length: int
    fps: float | None = None
    frames: np.ndarray | None = None


def list_samples(root: Path, demand: Demand, allow_outside: bool = False, observer: Observer = SILENT) -> Listing:
    """Return the samples of a data folder in sorted order, or in the order of its metadata file.

    Without a metadata file, samples are the files in class folders for a class-conditional model (see
    ``read_classes``) and the files anywhere for an unconditional model.

    Raises:
        UsageError: There is no sample, the folder has another layout, or a line is malformed.
    """
    bounds = Bounds(root, allow_outside, observer)
    metadata = [root / name for name in NAMES if (root / name).is_file()]
    if len(metadata) > 1:
        raise UsageError(f"Got --data {root} with {' and '.join(NAMES)}; keep one of the two.")
    folders = list(walk(root, None if metadata else bounds))  # the files that metadata lists are checked by line
    file_set = (find_images if demand.video_length is None else find_videos)(folders)
    if metadata:
        listing = _listed(root, metadata[0], file_set, read_rows(metadata[0], demand, bounds, observer))
    else:
        listing = _unlisted(root, folders, file_set, demand, observer)
    if not listing.samples:
        hint = f"{metadata[0].name} lists none" if metadata else "expected class directories, or metadata.jsonl"
        left_out = f" ({listing.left_out})" if listing.left_out else ""
        raise UsageError(f"Got --data {root}, in which there is no {demand.kind[:-1]}{left_out}: {hint}.")
    return listing


def _listed(root: Path, metadata: Path, file_set: FileSet, samples: list[tuple[Path, Condition]]) -> Listing:
    listed = {path for path, _ in samples}
    others = [path for path in file_set.samples if path not in listed and path != root]
    left_out = f"{len(others):,} left out that {metadata.name} does not list ({summary_of(others, root)})"
    return Listing(samples, left_out=left_out if others else "")


def _unlisted(
    root: Path, folders: list[tuple[Path, list[Path]]], file_set: FileSet, demand: Demand, observer: Observer
) -> Listing:
    """Return all samples, or for a class-conditional model those in class folders."""
    _check_metadata(root, folders, file_set, demand)
    subfolders = defaultdict(list)
    for folder, _ in folders:
        if folder != root:  # "." and "/" are their own parents
            subfolders[folder.parent].append(folder)
    if demand.num_classes is None:
        for siblings in subfolders.values():
            check_splits(root, siblings, demand)
        if root in file_set.samples:
            raise _frames_at(root)
        listing, left_out = Listing([(path, None) for path in file_set.samples]), file_set.left_out
    else:
        check_splits(root, subfolders[root], demand)
        in_classes = _in_class_folders(root, file_set)
        classes = read_classes(root, subfolders[root], in_classes, demand, observer)
        samples = [(path, classes.of(path.relative_to(root).parts[0])) for path in in_classes.samples]
        listing, left_out = Listing(samples, classes), in_classes.left_out
    summary = f"{len(left_out):,} left out ({summary_of(left_out, root)})" if left_out else ""
    return replace(listing, left_out=summary)


def _in_class_folders(root: Path, file_set: FileSet) -> FileSet:
    """Leave out the samples that lie directly in the data folder."""
    samples, left_out = [], list(file_set.left_out)
    for path in file_set.samples:
        if path == root:
            left_out += media.frame_files(root)
        elif path.parent != root:
            samples.append(path)
        elif path.is_dir():
            raise _frames_at(path)
        else:
            left_out.append(path)
    return FileSet(samples, left_out)


def _frames_at(folder: Path) -> UsageError:
    return UsageError(
        f"Got {folder} with pictures in it, where videos were expected; the frames of a video lie in a folder of "
        "their own, one level deeper."
    )


def _check_metadata(root: Path, folders: list[tuple[Path, list[Path]]], file_set: FileSet, demand: Demand) -> None:
    """Refuse a metadata file that lies deeper or has another name, and a text-conditional model without one."""
    deeper = [file for folder, files in folders if folder != root for file in files if file.name in NAMES]
    if deeper and (demand.captions or demand.num_classes is not None):
        file = first_split(deeper, lambda file: file.parent.name)
        raise UsageError(f"Got --data {root}, but {file.name} lies in {file.parent}; give --data {file.parent}.")
    others = [file for file in file_set.left_out if file.parent == root and file.name.casefold() in OTHER_NAMES]
    if others and (demand.captions or demand.num_classes is not None):
        raise UsageError(f"Got --data {root} with {others[0].name}, which is not read; expected {' or '.join(NAMES)}.")
    if demand.captions:
        text_files = [file for file in file_set.left_out if file.suffix.lower() == ".txt"]
        hint = f" Texts beside the {demand.kind}, such as {text_files[0].name}, are not read." if text_files else ""
        example = '{"file_name": "a.mp4", "text": "a cat"}'
        raise UsageError(
            f"Got --data {root} for a text-conditional model, but it has no metadata.jsonl with lines {example}.{hint}"
        )


def readable(
    samples: list[tuple[Path, Condition]],
    probe: Callable[[Path], Probed],
    kind: str,
    folder: str,
    observer: Observer = SILENT,
) -> list[tuple[Path, Condition, Probed]]:
    """Return the samples that can be read, each with the result of ``probe``, and warn about the others.

    Args:
        probe: Opens a file; raises ``UsageError`` if it cannot be used.
        kind: ``images`` or ``videos``.
    Raises:
        UsageError: More than 1 % cannot be read.
    """

    def attempt(path: Path) -> Probed | UsageError:
        try:
            return probe(path)
        except UsageError as fault:
            return fault

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(attempt, [path for path, _ in samples]))
    faults = [result for result in results if isinstance(result, UsageError)]
    for fault in faults:
        observer.warn(f"unreadable {kind[:-1]}: {fault}")
    if len(faults) > UNREADABLE_SHARE * len(samples):
        raise UsageError(
            f"{len(faults)} of {len(samples)} {kind} in {folder} cannot be read (above 1 %): repair or remove."
        )
    return [(*sample, result) for sample, result in zip(samples, results) if not isinstance(result, UsageError)]
