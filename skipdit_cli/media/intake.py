"""Read images: every file that Pillow opens becomes an upright, opaque image of 8 bits, or is refused.

Training images, frames in a folder or a GIF, and ``--image`` are all read here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.formats import UntrustedFile

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

RULES = 1
"""Version of these rules, raised when a file yields other pixels: latents cached before are then recomputed."""

MAX_PIXELS = 1 << 26
"""The pixels of an image or a frame above which it is refused: 8192x8192, which takes up to 1.8 GB to make opaque."""
MANY_PIXELS = 1 << 23
"""The pixels above which images are decoded one at a time, however many threads there are."""

ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
LEVEL_SCALES = {
    "L;2": 85,
    "L;4": 17,
}  # Pillow scales grey levels of 2 or 4 bits to 0..255, but not the transparent one
ANIMATED_FORMATS = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")

_decoding = Lock()

logger = logging.getLogger(__name__)


@contextmanager
def open_image(path: Path, kind: str = "a picture") -> Iterator[Image.Image]:
    """Open a file with Pillow; whatever its decoders raise for a damaged or too large file becomes a UsageError.

    Args:
        kind: Noun for the expected file, used in messages.
    Raises:
        UsageError: The file is missing, or cannot be read.
    """
    from PIL import Image

    if not Path(path).is_file():
        raise UsageError(f"Got {path}, which is not a file; expected {kind}.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is less
    with (
        reading(f"Got {path}, which", failed=f"cannot be read as {kind}"),
        UntrustedFile(path) as file,
        Image.open(file) as image,
    ):
        _check_size(image, path)
        yield image


def read_picture(path: Path, quick: bool = False) -> Image.Image:
    """Read an image in mode L or RGB: EXIF rotation applied, 16 bits reduced to 8, transparency blended with white.

    Args:
        quick: Decode a JPEG at an eighth of its size, which suffices to check that it is readable.
    Raises:
        UsageError: The file is missing or no image, has an unknown white level, or is fully transparent.
    """
    with open_image(path) as image:
        return _first_picture(image, path, quick)


def decode_picture(encoded: bytes, name: str, quick: bool = False) -> Image.Image:
    """Decode an image that is held in memory, under the rules of ``read_picture``.

    Args:
        encoded: The content of an image file.
        name: Its name for messages.
        quick: As for ``read_picture``.
    Raises:
        UsageError: It is no image, has an unknown white level, or is fully transparent.
    """
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    with reading(f"Got {name}, which", failed="cannot be read as a picture"), Image.open(BytesIO(encoded)) as image:
        _check_size(image, name)
        return _first_picture(image, name, quick)


def _check_size(image: Image.Image, name: Path | str) -> None:
    """Refuse an image that is too large, by its header."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"Got {name} of {width}x{height} pixels but expected at most {MAX_PIXELS:,}; make it smaller."
        )


def _first_picture(image: Any, name: Path | str, quick: bool) -> Image.Image:
    if quick:
        image.draft("RGB", (1, 1))
    if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
        message = "%s holds %d pictures: of it and its like the first one is taken."
        logger.warning(message, name, image.n_frames, extra={"topic": "frames"})
    with _decoding if image.width * image.height > MANY_PIXELS else nullcontext():
        return flatten(image, name, allow_transparent=False)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) that ``flatten`` gives an image, without decoding it."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return image.size  # Pillow opens a TIFF upright; getexif() would decode a PNG without EXIF
    return image.size[::-1] if image.getexif().get(0x0112) in (5, 6, 7, 8) else image.size


def flatten(image: Any, path: Path | str, allow_transparent: bool = True) -> Image.Image:
    """Convert the current frame of an open image to mode L or RGB, as ``read_picture`` does.

    Args:
        path: File name for messages.
        allow_transparent: Whether it may be fully transparent, as a frame of an animation may.
    """
    import numpy as np
    from PIL import Image, ImageOps

    stored = str(image.tile[0][3]) if image.tile else ""  # the pixel layout in the file: Pillow drops bits of some
    white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0  # Pillow handles it up to 8 bits only
    is_16_bit = image.format != "TIFF"
    image.load()
    image = ImageOps.exif_transpose(image)
    alpha, key = None, image.info.get("transparency")
    if image.mode[0] in "IF":
        values = np.asarray(image)
        alpha = 255 * (values != key).astype(np.uint8) if isinstance(key, int) else None
        levels = _eight_bits(values, path, 4 if "I;12" in stored else 8, is_16_bit)
        image = Image.fromarray(255 - levels if white_is_zero else levels)
    elif image.mode in ("1", "L", "RGB"):
        alpha = (
            _alpha_of_colour(image, key, stored) if isinstance(key, tuple if image.mode == "RGB" else int) else None
        )
    elif image.mode in ALPHA_MODES or key is not None or (image.palette and image.palette.mode == "RGBA"):
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = np.asarray(image)[..., 3]
    return _on_white(image, alpha, path, allow_transparent)


def _eight_bits(values: np.ndarray, path: Path | str, shift: int, is_16_bit: bool) -> np.ndarray:
    """Convert grey levels of more than 8 bits to uint8, without guessing the white level from the brightest pixel.

    Args:
        shift: Number of low bits to drop from 16.
        is_16_bit: Whether the format guarantees 16 bits in Pillow's 32-bit integers (PNG, PGM).
    """
    import numpy as np

    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not 0 <= low <= high <= 1:  # not true for NaN
            raise UsageError(
                f"Got {path}, which holds floats of {low:g} to {high:g}, but only 0 (black) to 1 (white) has one "
                "meaning; save it scaled so, or with 8 or 16 bits."
            )
        return (values * 255).round().astype(np.uint8)
    if values.dtype.itemsize > 2 and not is_16_bit and not 255 < high <= 65535 and (high or low):
        raise UsageError(
            f"Got {path}, which holds 32-bit integers of {low} to {high}, whose white cannot be told; save it with "
            "8 or 16 bits."
        )
    if low < 0:
        raise UsageError(f"Got {path}, which holds integers of {low} to {high}; save it with 8 or 16 bits.")
    return (values >> shift).astype(np.uint8)


def _alpha_of_colour(image: Image.Image, key, stored: str) -> np.ndarray:
    """Return the alpha channel, uint8 (H, W), of an image whose file declares one colour as transparent."""
    import numpy as np

    colours = np.asarray(image.convert("RGB"))
    if isinstance(key, tuple):
        key = (
            [level >> 8 for level in key] if "16" in stored else key
        )  # Pillow reduces the pixels to 8 bits, not the key
    else:
        key = [key * LEVEL_SCALES.get(stored, 1)] * 3
    return 255 * (colours != np.array(key)).any(axis=-1).astype(np.uint8)


def _on_white(image: Image.Image, alpha: np.ndarray | None, path: Path | str, allow_transparent: bool) -> Image.Image:
    """Blend an image with white by ``alpha``, uint8 (H, W)."""
    from PIL import Image

    if alpha is None or (alpha == 255).all():
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    if not alpha.any() and not allow_transparent:
        raise UsageError(f"Got {path}, which is transparent all over: there is nothing to see on white.")
    message = "%s has transparent pixels: they, and others like them, are put on white."
    logger.warning(message, path, extra={"topic": "transparent"})
    white = Image.new("RGB", image.size, "white")
    return Image.composite(image.convert("RGB"), white, Image.fromarray(alpha))
