"""Write images with their metadata, and arrange arrays of pixels in a grid."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.files import replacing
from skipdit_cli.formats import to_json

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

METADATA_KEY = "skipdit"
LOSSY = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The format of each suffix that is written with loss."""
QUALITY = 95
"""Of a JPEG or WebP, from 1 to 100."""
EXIF_IFD, EXIF_COMMENT, EXIF_CHARSET = 0x8769, 0x9286, b"ASCII\0\0\0"
"""Where EXIF 2.3 keeps a UserComment, and how one begins."""
MOST_EXIF = 60_000
"""Bytes of a comment; a segment of a JPEG has 65,533, of which the rest of the EXIF data takes some."""

logger = logging.getLogger(__name__)


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
        columns: Images per row; if not given the square root of N, rounded up, or one more where that leaves no gaps.
        scale: Factor by which each image is enlarged.
        smooth: Enlarge with bicubic interpolation instead of repeating pixels.
        gap: Pixels between two images; a 64th of their height if not given.
    """
    import numpy as np
    from PIL import Image

    count, height, width, _ = images.shape
    root = math.ceil(math.sqrt(count))
    columns = columns or next((each for each in (root, root + 1) if count % each == 0), root)
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


def save_picture(image: Image.Image, path: Path, metadata: dict) -> None:
    """Write a PNG, JPEG or WebP, by the suffix of the path, with ``metadata`` as JSON in it.

    A PNG holds the metadata in its text chunk ``skipdit``, a JPEG or WebP in the comment of its EXIF data. What is too
    long for EXIF (64 kB) is left out.
    """
    if path.suffix.lower() not in LOSSY:
        save_png(image, path, metadata)
        return
    from PIL.Image import Exif

    exif, comment = Exif(), EXIF_CHARSET + json.dumps({METADATA_KEY: metadata}, allow_nan=False).encode("ascii")
    if len(comment) <= MOST_EXIF:
        exif.get_ifd(EXIF_IFD)[EXIF_COMMENT] = comment
    else:
        logger.warning("How %s was made is too long to be kept in it, so --from cannot read it; a PNG keeps it.", path)
    with replacing(path, durable=False) as part:
        image.save(part, format=LOSSY[path.suffix.lower()], quality=QUALITY, exif=exif)


def read_comment(image: Image.Image) -> str:
    """Return the JSON that ``save_picture`` put into the EXIF data of an image, or an empty text."""
    comment = image.getexif().get_ifd(EXIF_IFD).get(EXIF_COMMENT, b"")
    is_ours = isinstance(comment, bytes) and comment.startswith(EXIF_CHARSET)
    return comment[len(EXIF_CHARSET) :].decode("ascii", errors="replace") if is_ours else ""


def save_png(image: Image.Image, path: Path, metadata: dict) -> None:
    """Write a PNG, with ``metadata`` as JSON in its text chunk ``skipdit``."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(METADATA_KEY, to_json(metadata))
    with replacing(path, durable=False) as part:
        image.save(part, format="PNG", pnginfo=info)
