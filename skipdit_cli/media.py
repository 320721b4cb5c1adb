"""Pictures in and out, with how they were made written into them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

METADATA_KEY = "skipdit"


def check_target(path: Path, overwrite: bool = False) -> None:
    """Whether a file or folder may be written here; nothing is.

    Raises:
        UsageError: It exists and ``overwrite`` is off, or no folder above it can be written to.
    """
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"Output {path} exists; give another one, or --overwrite to replace it.")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"Cannot write to {path}: {parent} is not a writable folder; give another --output.")


def to_uint8(images) -> np.ndarray:
    """Tensor (N, C, H, W) in [-1, 1], C 1 or 3, to uint8 (N, H, W, 3), as the DiT repository rounds it
    (clamp(127.5 x + 128), sample_ddp.py)."""
    pixels = (127.5 * images.float() + 128).clamp(0, 255).byte().cpu()
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).contiguous().numpy()


def grid(images: np.ndarray, columns: int | None = None, scale: int = 1, smooth: bool = False) -> Image.Image:
    """One picture of many, row by row, with a thin gap; ``scale`` enlarges each pixel to a square.

    Args:
        images: uint8 (N, H, W, 3).
        columns: Pictures in a row; the square root of N, rounded up, if not given.
        smooth: Enlarge by interpolation instead, which makes tiny pictures easier to recognise.
    """
    import numpy as np
    from PIL import Image

    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = max(1, height * scale // 64) if count > 1 else 0
    height, width = height * scale, width * scale
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for at, image in enumerate(images):
        top, left = at // columns * (height + gap), at % columns * (width + gap)
        if smooth:
            larger = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        else:
            larger = image.repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + height, left : left + width] = larger
    return Image.fromarray(canvas)


def save_png(image: Image.Image, path: Path, metadata: dict) -> None:
    """Write a PNG with ``metadata`` as JSON in its text chunk ``skipdit``; under a temporary name, then renamed."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata))
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        image.save(part, format="PNG", pnginfo=info)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_metadata(path: Path) -> dict:
    """What ``save_png`` wrote into a picture.

    Raises:
        UsageError: The file is missing, no picture, or not one of ours.
    """
    text = _open(path).info.get(METADATA_KEY, "null")
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("settings", {}), dict):
        raise UsageError(f"Got {path}, which does not say how it was made; expected a PNG written by skipdit.")
    return metadata


def _open(path: Path) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise UsageError(f"Got {path}, which is not a file; expected a picture.")
    try:
        image = Image.open(path)
        image.load()
        return image
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as cause:
        raise UsageError(f"Got {path}, which cannot be read as a picture: {cause}.") from cause


def save_npz(images: np.ndarray, path: Path) -> None:
    """Write uint8 (N, H, W, 3) under ``arr_0``, the layout ADM's evaluator reads."""
    import numpy as np

    part = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, arr_0=images)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
