"""Labelled images: where they come from, and how one becomes a tensor of the model's size."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from skipdit_cli import console
from skipdit_cli.errors import SkipditError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
UNREADABLE_SHARE = 0.01


@dataclass(frozen=True)
class ImageSet:
    """What reading a source found.

    Args:
        labels: One class id an image.
        read: Image number to a picture of mode L or RGB, of any size.
        skipped: How many could not be decoded and were left out.
    """

    labels: list[int]
    read: Callable[[int], Image.Image]
    skipped: int = 0

    def __str__(self) -> str:
        return f"{len(self.labels):,} images, {len(set(self.labels))} classes, {self.skipped:,} skipped"

    def check_labels(self, num_classes: int) -> None:
        """
        Raises:
            UsageError: A label the model has no class for.
        """
        for label in (min(self.labels), max(self.labels)):
            if not 0 <= label < num_classes:
                raise UsageError(f"The data has label {label} but the model has classes 0..{num_classes - 1}.")


def read_images(source: str) -> ImageSet:
    """Find and try all images of a source.

    Args:
        source: ``digits``; or a folder with ``metadata.jsonl`` or ``metadata.csv`` (keys ``file_name``, ``label``); or
            a folder of class directories. Directories named by numbers alone are the labels they say; others are
            numbered in sorted order.
    Raises:
        UsageError: There is nothing to read, a line is malformed, or above 1 % of the images cannot be decoded.
    """
    if source == "digits":
        return _digits()
    folder = Path(source)
    if not folder.is_dir():
        raise UsageError(f"Got --data {source}, which is not a folder; expected one, or 'digits'.")
    listed = next((path for name in ("jsonl", "csv") if (path := folder / f"metadata.{name}").is_file()), None)
    items = _from_metadata(listed) if listed else _from_directories(folder)
    if not items:
        hint = f"{listed.name} lists none" if listed else "expected class directories, or metadata.jsonl"
        raise UsageError(f"Got --data {source}, in which there is no image: {hint}.")
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(_fault, [path for path, _ in items]))
    bad = [(path, fault) for (path, _), fault in zip(items, faults) if fault]
    for path, fault in bad:
        console.warn(f"unreadable image {path}: {fault}")
    if len(bad) > UNREADABLE_SHARE * len(items):
        raise UsageError(
            f"{len(bad)} of {len(items)} images in {source} cannot be read (above 1 %): repair or remove."
        )
    good = [item for item, fault in zip(items, faults) if not fault]
    return ImageSet([label for _, label in good], partial(_read_file, [path for path, _ in good]), len(bad))


def _digits() -> ImageSet:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    return ImageSet(digits.target.tolist(), partial(_read_array, pixels))


def _read_array(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(pixels[index])


def _read_file(paths: list[Path], index: int) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(paths[index]))
    except (OSError, SyntaxError, ValueError) as cause:
        raise SkipditError(f"The image {paths[index]} was readable and now is not: {cause}.") from cause


def _fault(path: Path) -> str:
    """Why an image cannot be decoded; empty if it can. JPEGs are decoded at an eighth, which is enough to tell."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as cause:  # PIL's decoders raise a dozen unrelated kinds on damaged files
        return str(cause).splitlines()[0] if str(cause) else type(cause).__name__
    return ""


def _from_metadata(path: Path) -> list[tuple[Path, int]]:
    items = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file if line.strip())
        try:
            for row in rows:
                items.append((path.parent / row["file_name"], _label(row["label"])))
        except (ValueError, KeyError, TypeError) as cause:
            wanted = '{"file_name": "a.png", "label": 3}'
            raise UsageError(f"{path} entry {len(items) + 1} is not of the kind {wanted}: {cause}.") from cause
    return items


def _label(value) -> int:
    if isinstance(value, bool) or int(value) != (float(value) if isinstance(value, float) else int(value)):
        raise ValueError(f"label {value} is no whole number")
    return int(value)


def _from_directories(folder: Path) -> list[tuple[Path, int]]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    numbered = all(name.isdecimal() for name in names)
    return [
        (path, int(name) if numbered else label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]


class Pixels(Dataset):
    """Images as tensors: index (i, mirrored) gives ((C, size, size) float32 in [-1, 1], label).

    Args:
        size: Height and width; images are centre-cropped to a square and resized.
        channels: 1 (grey) or 3.
    """

    def __init__(self, images: ImageSet, size: int, channels: int):
        self.images, self.size, self.mode = images, size, {1: "L", 3: "RGB"}[channels]

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, at: tuple[int, bool]) -> tuple[torch.Tensor, int]:
        index, mirrored = at
        image = centre_crop(self.images.read(index).convert(self.mode), self.size)
        pixels = torch.from_numpy(np.array(ImageOps.mirror(image) if mirrored else image))
        pixels = pixels.view(self.size, self.size, -1).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, self.images.labels[index]


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """A square of ``size`` from the middle; halved while twice too large, then bicubic (ADM's image_datasets.py)."""
    if image.size == (size, size):
        return image
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
