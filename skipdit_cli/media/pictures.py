"""Pictures out, with how they were made written into them; arrays of pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.console import to_json
from skipdit_cli.files import replacing

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

METADATA_KEY = "skipdit"


def to_uint8(images) -> np.ndarray:
    """Tensor (N, C, [F,] H, W) in [-1, 1], C 1 or 3, to uint8 (N, [F,] H, W, 3), as the DiT repository rounds it
    (clamp(127.5 x + 128), sample_ddp.py)."""
    pixels = (127.5 * images.float() + 128).clamp(0, 255).byte().cpu()
    return pixels.expand(-1, 3, *pixels.shape[2:]).movedim(1, -1).contiguous().numpy()


def grid(
    images: np.ndarray,
    columns: int | None = None,
    scale: int = 1,
    smooth: bool = False,
    gap: int | None = None,
) -> Image.Image:
    """One picture of many, row by row, with a thin gap; ``scale`` enlarges each pixel to a square.

    Args:
        images: uint8 (N, H, W, 3).
        columns: Pictures in a row; the square root of N, rounded up, if not given.
        smooth: Enlarge by interpolation instead, which makes tiny pictures easier to recognise.
        gap: Pixels between two pictures; a 64th of their height if not given.
    """
    import numpy as np
    from PIL import Image

    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = 0 if count == 1 else gap or max(1, height * scale // 64)
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
    info.add_itxt(METADATA_KEY, to_json(metadata))
    with replacing(path) as part:
        image.save(part, format="PNG", pnginfo=info)


def save_npz(images: np.ndarray, path: Path) -> None:
    """Write uint8 (N, [F,] H, W, 3) under ``arr_0``, the layout ADM's evaluator reads."""
    import numpy as np

    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, arr_0=images)
