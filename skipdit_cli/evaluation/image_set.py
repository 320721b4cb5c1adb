"""The images or videos to score: a folder, the array of an .npz file, or the digits of the package."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipdit_cli import files, media
from skipdit_cli.errors import UsageError, reading
from skipdit_cli.evaluation.evaluate_settings import is_digits
from skipdit_cli.evaluation.feature_network import resize
from skipdit_cli.evaluation.npz_file import npz_names, read_arrays, read_header
from skipdit_cli.training.data.data_folder import find_images, find_videos, walk
from skipdit_cli.training.data.moving_digits import numbers, scans
from skipdit_cli.training.data_source import parse_data

MOST_PIXELS = 1 << 28
"""Bytes of one image or video of an array."""


@dataclass(frozen=True)
class ImageSet:
    """Images or videos, read batch by batch.

    Attributes:
        name: The path as given, or ``digits[:SPLIT]``.
        kind: ``images`` or ``videos``.
        count: Their number.
        digest: A hash of the names, sizes and dates of the files.
        read: ``read(batches)`` iterates over the samples of ascending slices, uint8 (N, [T,] H, W, C).
        files: One path per sample; none for an array.
        labels: The class labels that an array comes with.
        is_ragged: Whether each sample is a batch of its own, as videos of any number of frames are.
    """

    name: str
    kind: str
    count: int
    digest: str
    read: Callable[[Iterable[slice]], Iterator[np.ndarray]]
    files: tuple[Path, ...] = ()
    labels: tuple[int, ...] | None = None
    is_ragged: bool = False

    def batches(self, start: int, batch_size: int) -> list[slice]:
        """Return the batches from a sample on, as slices of the samples."""
        size = 1 if self.is_ragged else batch_size
        return [slice(at, min(at + size, self.count)) for at in range(start, self.count, size)]

    def class_labels(self) -> list[int] | None:
        """Return the class label of each sample, from the records of the files or from the array; None if one of them
        has none."""
        if self.labels is not None:
            return list(self.labels)
        labels = self._recorded("class_labels", lambda value: isinstance(value, str) and value.isdecimal())
        return None if labels is None else list(map(int, labels))

    def prompts(self) -> list[str] | None:
        """Return the prompt of each sample from the records of the files; None if one of them has none."""
        prompts = self._recorded("prompt", lambda value: isinstance(value, list) and len(value) == 1)
        return None if prompts is None else [str(prompt) for (prompt,) in prompts]

    def _recorded(self, name: str, is_valid: Callable[[object], bool]) -> list[Any] | None:
        """Return a setting from the record of each file; None as soon as one has none."""
        values = []
        for path in self.files:
            values.append(_record_of(path).get(name))
            if not is_valid(values[-1]):
                return None
        return values or None


def open_image_set(name: str, flag: str, size: int | None, num_frames: int | None, limit: int | None) -> ImageSet:
    """Return the images or videos of a folder or a file, without reading their pixels.

    Args:
        name: A folder, an .npz file with ``arr_0``, or ``digits[:SPLIT]``.
        flag: What names it in messages.
        size: The height and width to which images of files are resized; None reads them as they are.
        num_frames: The frames that are read of each video; None reads all.
        limit: The first samples to use; None uses all.

    Raises:
        UsageError: There is no such file or folder, or it holds neither images nor videos.
    """
    if is_digits(name):
        image_set = _open_digits(name, flag)
    elif Path(name).is_dir():
        image_set = _open_folder(Path(name), flag, size, num_frames)
    elif Path(name).suffix == ".npz" and Path(name).is_file():
        image_set = _open_array(Path(name), flag)
    else:
        what = "is neither a folder nor an .npz file" if Path(name).exists() else "is not there"
        raise UsageError(
            f"Got {flag} {name}, which {what}; expected a folder of images or videos, an .npz file, or digits[:SPLIT]."
        )
    return image_set if limit is None or limit >= image_set.count else _first(image_set, limit)


def _open_digits(name: str, flag: str) -> ImageSet:
    """Return the digits of the package, or those of one split."""
    source = parse_data(name, flag)
    images, labels = scans()
    chosen = numbers(len(images), source.split)
    read, split_labels = _slices(images[chosen][..., None]), tuple(map(int, labels[chosen]))
    return ImageSet(name, "images", len(chosen), name, read, labels=split_labels)


def _first(images: ImageSet, limit: int) -> ImageSet:
    labels = None if images.labels is None else images.labels[:limit]
    digest = f"{images.digest}-{limit}"
    return replace(images, count=limit, digest=digest, files=images.files[:limit], labels=labels)


def _open_folder(folder: Path, flag: str, size: int | None, num_frames: int | None) -> ImageSet:
    folders = list(walk(folder, None))
    grids = {place / f"grid{suffix}" for place, _ in folders for suffix in _grid_suffixes(place)}
    videos = [path for path in find_videos(folders).samples if path.is_file() and path.suffix.lower() != ".gif"]
    stills = find_images(folders).samples
    if all(path.suffix.lower() == ".gif" for path in stills):
        videos, stills = videos or stills, []
    samples = tuple(path for path in videos or stills if path not in grids)
    if not samples:
        raise UsageError(f"Got {flag} {folder}, which holds neither images nor videos; give the folder of a sample.")

    def read(batches: Iterable[slice]) -> Iterator[np.ndarray]:
        load = partial(_pixels, is_video=bool(videos), size=size, num_frames=num_frames)
        with ThreadPoolExecutor() as pool:
            for batch in batches:
                yield _stack(list(pool.map(load, samples[batch])), folder)

    kind = "videos" if videos else "images"
    is_ragged = bool(videos) and num_frames is None
    return ImageSet(str(folder), kind, len(samples), _digest(samples, folder), read, samples, is_ragged=is_ragged)


def _grid_suffixes(folder: Path) -> tuple[str, ...]:
    """Return the suffixes of the grid that ``skipdit sample`` writes beside its samples; none in another folder."""
    is_sample = (files.read_marker(folder) or {}).get("kind") == files.SAMPLE
    return (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4") if is_sample else ()


def _pixels(path: Path, is_video: bool, size: int | None, num_frames: int | None) -> np.ndarray:
    """Return the pixels of a file, uint8 ([T,] H, W, 3), resized."""
    if is_video:
        frames = media.probe_video(path).frames
        pixels = media.read_video(path, range(min(frames, num_frames or frames)))
    else:
        pixels = np.asarray(media.read_picture(path).convert("RGB"))
    if size is None or pixels.shape[-3:-1] == (size, size):
        return pixels
    return resize(torch.from_numpy(pixels.copy()).movedim(-1, -3), size).movedim(-3, -1).numpy()


def _stack(samples: list[np.ndarray], folder: Path) -> np.ndarray:
    shapes = sorted({sample.shape for sample in samples})
    if len(shapes) == 1:
        return np.stack(samples)
    if len({shape[-3:] for shape in shapes}) > 1:
        sizes = [f"{shape[-2]}x{shape[-3]}" for shape in shapes]
        raise UsageError(f"Got images of {sizes[0]} and {sizes[-1]} in {folder}; give --feature-size to resize them.")
    raise UsageError(
        f"Got videos of {shapes[0][0]} and {shapes[-1][0]} frames in {folder}; give --feature-frames {shapes[0][0]}."
    )


def _digest(paths: tuple[Path, ...], root: Path) -> str:
    facts = [(path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([str(root.resolve()), facts]).encode()).hexdigest()


def _record_of(path: Path) -> dict:
    """Return the settings in the record of a file, or nothing."""
    try:
        return media.read_metadata(path).get("settings") or {}
    except UsageError:
        return {}


def _open_array(path: Path, flag: str) -> ImageSet:
    if "arr_0" not in npz_names(path):
        raise UsageError(f"Got {flag} {path} without arr_0; expected images, uint8 (N, H, W, C), under that name.")
    with reading(f"Got {path}, which"), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        shape, is_fortran, dtype = read_header(file)
    is_valid = dtype == np.uint8 and len(shape) in (4, 5) and shape[-1] in (1, 3) and not is_fortran
    if not is_valid or min(shape) < 1 or np.prod(shape[1:], dtype=float) > MOST_PIXELS:
        raise UsageError(f"Got {flag} {path} with arr_0 of {dtype} {shape}; expected images, uint8 (N, H, W, C).")

    def read(batches: Iterable[slice]) -> Iterator[np.ndarray]:
        size, at = int(np.prod(shape[1:])), 0
        with reading(f"Got {path}, which"), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            read_header(file)
            for batch in batches:
                file.seek((batch.start - at) * size, 1)
                at, number = batch.stop, batch.stop - batch.start
                yield np.frombuffer(file.read(number * size), np.uint8).reshape(number, *shape[1:])

    kind = "videos" if len(shape) == 5 else "images"
    return ImageSet(str(path), kind, shape[0], _digest((path,), path.parent), read, labels=_labels(path, shape[0]))


def _labels(path: Path, count: int) -> tuple[int, ...] | None:
    """Return ``arr_1`` of an .npz file, where ADM's and DiT's samplers keep the labels."""
    if "arr_1" not in npz_names(path):
        return None
    labels = read_arrays(path, ["arr_1"])["arr_1"]
    return tuple(map(int, labels)) if labels.shape == (count,) and labels.dtype.kind in "iu" else None


def _slices(images: np.ndarray) -> Callable[[Iterable[slice]], Iterator[np.ndarray]]:
    return lambda batches: (images[batch] for batch in batches)
