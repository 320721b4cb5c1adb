"""Pictures that are stored as bytes, in the rows of a table or the members of an archive, as a ``SampleSet``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from skipdit_cli import media
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.training.data.class_folders import Classes
from skipdit_cli.training.data.listing import Probed, readable
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.observer import SILENT, Observer

MAX_PICTURE_BYTES = 1 << 28
"""The size of an encoded picture above which it is refused: 256 MiB."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns of images, captions and class labels; None for those that are found by type."""

    image: str | None = None
    caption: str | None = None
    label: str | None = None


class Container(Protocol):
    """A table or a set of archives that holds encoded pictures; ``place`` says where one of them lies."""

    def load(self, place: Any) -> bytes:
        """Return the bytes of a picture."""

    def name(self, place: Any) -> str:
        """Return the name of a picture for messages."""


@dataclass(frozen=True)
class PackedPictures:
    """The pictures of a container as the functions that a ``SampleSet`` calls.

    Args:
        places: Where each sample lies in the container.
    """

    container: Container
    places: Sequence[Any] = field(default_factory=list)

    def probe(self, place: Any) -> Probed:
        """Check that a picture can be read.

        Raises:
            UsageError: It cannot.
        """
        self._decode(place, quick=True)
        return Probed(1)

    def read(self, index: int, frames: Sequence[int]) -> list[Image.Image]:
        """Return the picture of a sample, as a list of one frame.

        Raises:
            SkipditError: It can no longer be read.
        """
        try:
            return [self._decode(self.places[index])]
        except (OSError, UsageError) as cause:
            raise SkipditError(f"{self.name(index)} was readable and now is not: {str(cause).rstrip('.')}.") from cause

    def digest(self, index: int) -> str:
        """Return the SHA-256 of the encoded picture of a sample."""
        return hashlib.sha256(self.container.load(self.places[index])).hexdigest()

    def name(self, index: int) -> str:
        """Return the name of a sample for messages."""
        return self.container.name(self.places[index])

    def _decode(self, place: Any, quick: bool = False) -> Image.Image:
        encoded = self.container.load(place)
        if len(encoded) > MAX_PICTURE_BYTES:
            raise UsageError(f"Got {self.container.name(place)} of {len(encoded) >> 20:,} MiB; expected at most 256.")
        return media.decode_picture(encoded, self.container.name(place), quick)


def sample_set(
    container: Container,
    samples: list[tuple[Any, Condition]],
    source: str,
    classes: Classes | None = None,
    left_out: str = "",
    observer: Observer = SILENT,
) -> SampleSet:
    """Open each picture of a container once and return those that can be read.

    Args:
        samples: The place of each picture, and its class label or caption.
        source: The name of the source for messages.
    Raises:
        UsageError: There is no picture, or more than 1 % of them cannot be read.
    """
    if not samples:
        raise UsageError(f"Got --data {source}, in which there is no image{f' ({left_out})' if left_out else ''}.")
    usable = readable(samples, PackedPictures(container).probe, "images", source, observer)
    pictures = PackedPictures(container, [place for place, _, _ in usable])
    conditions = [condition for _, condition, _ in usable]
    digest = hashlib.sha256()
    for place, condition in samples:
        digest.update(f"{container.name(place)}\0{condition!r}\n".encode(errors="surrogateescape"))
    return SampleSet(
        "images",
        conditions,
        [1] * len(conditions),
        pictures.read,
        pictures.digest,
        len(samples) - len(usable),
        classes,
        left_out,
        digest.hexdigest()[:16],
        name=pictures.name,
    )
