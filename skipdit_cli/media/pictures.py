"""Write images with their metadata, and arrange arrays of pixels in a grid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.files import replacing
from skipdit_cli.formats import to_json

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

METADATA_KEY = "skipdit"


def to_uint8(images) -> np.ndarray:
    """Convert a tensor (N, C, [F,] H, W) in [-1, 1], C being 1 or 3, to an array uint8 (N, [F,] H, W, 3).

    Values are rounded as in the official DiT repository: clamp(127.5 x + 128), sample_ddp.py.
    """
    pixels = (127.5 * images.float() + 128).clamp(0, 255).byte().cpu()
    return pixels.expand(-1, 3, *pixels.shape[2:]).movedim(1, -1).contiguous().numpy()


def grid(
    images: np.ndarray,
    columns: int | None = None,
    scale: int = 1,
    smooth: bool = False,
    gap: int | None = None,
) -> Image.Image:
    """Arrange images in one image, row by row, on white.

    Args:
        images: uint8 (N, H, W, 3).
        columns: Images per row; the square root of N, rounded up, if not given.
        scale: Factor by which each image is enlarged.
        smooth: Enlarge with bicubic interpolation instead of repeating pixels.
        gap: Pixels between two images; a 64th of their height if not given.
    """
    import numpy as np
    from PIL import Image

    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    gap = 0 if count == 1 else gap or max(1, height * scale // 64)
    height, width = height * scale, width * scale
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        if smooth:
            larger = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        else:
            larger = image.repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + height, left : left + width] = larger
    return Image.fromarray(canvas)


def save_png(image: Image.Image, path: Path, metadata: dict) -> None:
    """Write a PNG, with ``metadata`` as JSON in its text chunk ``skipdit``."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(METADATA_KEY, to_json(metadata))
    with replacing(path) as part:
        image.save(part, format="PNG", pnginfo=info)


def save_npz(images: np.ndarray, path: Path) -> None:
    """Write images, uint8 (N, [F,] H, W, 3), as ``arr_0`` of an .npz file, which the evaluator of ADM reads."""
    import numpy as np

    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, arr_0=images)
