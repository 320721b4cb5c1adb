"""Pictures in: whatever Pillow reads becomes an upright, opaque picture of 8 bits, or is refused in a sentence.

The one reader of every picture that comes in: training images, frames in a folder or a gif, ``--image``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli import console
from skipdit_cli.errors import UsageError, reading

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

RULES = 1
"""Goes up when the same file is read as other pixels: what was made of them and kept is then made anew."""

WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
FEW_BITS = {"L;2": 85, "L;4": 17}  # grey levels that Pillow spreads over 0..255, but not the one that is transparent
MOTION = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")


@contextmanager
def opened(path: Path, kind: str = "a picture") -> Iterator[Image.Image]:
    """A file opened by Pillow, whose decoders raise a dozen unrelated exceptions where it is damaged or too large.

    Raises:
        UsageError: The file is missing, or cannot be read as what ``kind`` says.
    """
    from PIL import Image

    if not Path(path).is_file():
        raise UsageError(f"Got {path}, which is not a file; expected {kind}.")
    # Pillow refuses from 179 megapixels on, and would warn in words of its own from half of that
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    with reading(f"Got {path}, which", failed=f"cannot be read as {kind}"), Image.open(path) as image:
        yield image


def read_picture(path: Path, quick: bool = False) -> Image.Image:
    """A picture file in mode L or RGB: its EXIF rotation applied, 8 of 16 bits kept, transparency put on white.

    Args:
        quick: Only to see whether it can be read: a JPEG is decoded at an eighth of its size.
    Raises:
        UsageError: It is missing or no picture; its numbers have no known white; or all of it is transparent.
    """
    with opened(path) as image:
        if quick:
            image.draft("RGB", (1, 1))
        if image.format in MOTION and getattr(image, "is_animated", False):
            console.warn_once(
                "frames", f"{path} holds {image.n_frames} pictures: of it and its like the first one is taken."
            )
        return flat(image, path, blank=False)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of a picture as ``flat`` makes it; not decoded for this."""
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return image.size  # a TIFF is opened as it is shown; a PNG would be decoded to look for what is not there
    return image.size[::-1] if image.getexif().get(0x0112) in (5, 6, 7, 8) else image.size


def flat(image: Image.Image, path: Path, blank: bool = True) -> Image.Image:
    """The picture that ``image`` is at, as ``read_picture`` gives it.

    Args:
        path: What to call it in a sentence.
        blank: Whether it may be transparent all over, as a frame of an animation may.
    """
    import numpy as np
    from PIL import Image, ImageOps

    stored = str(image.tile[0][3]) if image.tile else ""  # the layout in the file: Pillow drops bits of some
    negative = image.format == "TIFF" and image.tag_v2.get(262) == 0  # white is zero, which Pillow heeds up to 8 bits
    declared = image.format != "TIFF"
    image.load()
    image = ImageOps.exif_transpose(image)
    alpha, key = None, image.info.get("transparency")
    if image.mode[0] in "IF":
        values = np.asarray(image)
        alpha = 255 * (values != key).astype(np.uint8) if isinstance(key, int) else None
        levels = _eight_bits(values, path, 4 if "I;12" in stored else 8, declared)
        image = Image.fromarray(255 - levels if negative else levels)
    elif image.mode in ("1", "L", "RGB"):
        alpha = _other_than(image, key, stored) if isinstance(key, tuple if image.mode == "RGB" else int) else None
    elif image.mode in WITH_ALPHA or key is not None or (image.palette and image.palette.mode == "RGBA"):
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = np.asarray(image)[..., 3]
    return _on_white(image, alpha, path, blank)


def _eight_bits(values: np.ndarray, path: Path, shift: int, declared: bool) -> np.ndarray:
    """Grey levels of more than 8 bits as uint8. What is white is never guessed from the brightest pixel.

    Args:
        shift: Of 16 bits.
        declared: The file's format says that 32-bit integers hold 16 bits (PNG, PGM).
    """
    import numpy as np

    least, most = values.min(), values.max()
    if values.dtype.kind == "f":
        if not 0 <= least <= most <= 1:  # False of NaN
            raise UsageError(
                f"Got {path}, which holds floats of {least:g} to {most:g}, but only 0 (black) to 1 (white) has one "
                "meaning; save it scaled so, or with 8 or 16 bits."
            )
        return (values * 255).round().astype(np.uint8)
    if values.dtype.itemsize > 2 and not declared and not 255 < most <= 65535 and (most or least):
        raise UsageError(
            f"Got {path}, which holds 32-bit integers of {least} to {most}, whose white cannot be told; save it with "
            "8 or 16 bits."
        )
    if least < 0:
        raise UsageError(f"Got {path}, which holds integers of {least} to {most}; save it with 8 or 16 bits.")
    return (values >> shift).astype(np.uint8)


def _other_than(image: Image.Image, key, stored: str) -> np.ndarray:
    """uint8 (H, W): 0 where a picture is of the colour that its file says is transparent, 255 elsewhere."""
    import numpy as np

    colours = np.asarray(image.convert("RGB"))
    if isinstance(key, tuple):
        key = [each >> 8 for each in key] if "16" in stored else key  # Pillow keeps 8 of 16 bits of the others alone
    else:
        key = [key * FEW_BITS.get(stored, 1)] * 3
    return 255 * (colours != np.array(key)).any(axis=-1).astype(np.uint8)


def _on_white(image: Image.Image, alpha: np.ndarray | None, path: Path, blank: bool) -> Image.Image:
    """The picture in L or RGB; where ``alpha``, uint8 (H, W), is below 255, white shines through."""
    from PIL import Image

    if alpha is None or (alpha == 255).all():
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    if not alpha.any() and not blank:
        raise UsageError(f"Got {path}, which is transparent all over: there is nothing to see on white.")
    console.warn_once("transparent", f"{path} has transparent pixels: they, and others like them, are put on white.")
    white = Image.new("RGB", image.size, "white")
    return Image.composite(image.convert("RGB"), white, Image.fromarray(alpha))
