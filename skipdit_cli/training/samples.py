"""The samples of a run: images or videos, where they come from and what each comes with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from skipdit_cli import media
from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.media.reading import FRAME_SUFFIXES
from skipdit_cli.training import digits
from skipdit_cli.training.demand import Demand
from skipdit_cli.training.listing import Condition, list_samples, readable

PICTURES = (*FRAME_SUFFIXES, ".gif")
EMBEDDED = {"digits": "images", "moving-digits": "videos"}


@dataclass(frozen=True)
class SampleSet:
    """What reading a source found. An image is a video of one frame.

    Args:
        kind: ``images`` or ``videos``.
        conditions: What each sample comes with: a class id, a caption, or None.
        lengths: The number of frames of each.
        read: (sample number, frame numbers) to pictures of mode L or RGB, of any size.
        digest: Sample number to a hash of its content.
        skipped: How many could not be used and were left out.
        name: Sample number to what it is called in an error.
    """

    kind: str
    conditions: list[Condition]
    lengths: Sequence[int]
    read: Callable[[int, Sequence[int]], list[Image.Image]]
    digest: Callable[[int], str]
    skipped: int = 0
    name: Callable[[int], str] = "sample {}".format

    def __len__(self) -> int:
        return len(self.conditions)

    def __str__(self) -> str:
        known = {condition for condition in self.conditions if condition is not None}
        kinds = "captions" if known and isinstance(next(iter(known)), str) else "classes"
        classes = f"{len(known):,} {kinds}, " if known else ""
        return f"{len(self):,} {self.kind}, {classes}{self.skipped:,} skipped"

    def check_labels(self, num_classes: int | None) -> None:
        """
        Raises:
            UsageError: A label the model has no class for.
        """
        if num_classes is None:
            return
        for label in (min(self.conditions), max(self.conditions)):
            if not 0 <= label < num_classes:
                raise UsageError(f"The data has label {label} but the model has classes 0..{num_classes - 1}.")


def read_samples(source: str, demand: Demand, span: int = 1) -> SampleSet:
    """Find and try all samples of a source.

    Args:
        source: ``digits`` or ``moving-digits``; or a folder with ``metadata.jsonl`` or ``metadata.csv`` (keys
            ``file_name`` and ``label``, or ``text``), or one of class directories; the frames of a video may be
            pictures in a folder of their own.
        span: The number of frames from the first of a clip to its last.
    Raises:
        UsageError: There is nothing to read, a line is malformed, or above 1 % of the samples cannot be used.
    """
    if source in EMBEDDED:
        return _embedded(source, demand, span)
    folder = Path(source)
    if not folder.is_dir():
        allowed = " or ".join(f"'{name}'" for name, kind in EMBEDDED.items() if kind == demand.kind)
        raise UsageError(f"Got --data {source}, which is not a folder; expected one, or {allowed}.")
    if demand.video_length is None:
        found, probe, read = find_images, _probe_image, _read_image
    else:
        found, probe, read = find_videos, partial(_probe_video, span=span), _read_video
    listed = list_samples(folder, demand, found)
    usable = readable(listed, probe, demand.kind, source)
    paths, conditions, lengths = map(list, zip(*usable))
    return SampleSet(
        demand.kind,
        conditions,
        lengths,
        partial(_read, paths, read),
        partial(_digest, paths),
        len(listed) - len(usable),
        [str(path) for path in paths].__getitem__,
    )


def find_images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES and path.is_file())


def find_videos(folder: Path) -> Iterator[Path]:
    """Video files, and folders that hold the frames of one.

    Raises:
        UsageError: The folder holds pictures directly: they are images, or frames that need a folder of their own.
    """
    if _holds_frames(folder):
        raise UsageError(
            f"Got {folder} with pictures in it, where videos were expected; the frames of a video lie in a folder of "
            "their own, one level deeper."
        )
    return (path for path in sorted(folder.rglob("*")) if _is_video(path) or _holds_frames(path))


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in media.VIDEO_SUFFIXES and path.is_file()


def _holds_frames(path: Path) -> bool:
    """Whether a folder holds pictures that are the frames of a video; those beside a video are not."""
    return media.is_frame_folder(path) and not any(map(_is_video, path.iterdir()))


def _embedded(source: str, demand: Demand, span: int) -> SampleSet:
    if EMBEDDED[source] != demand.kind or demand.captions:
        wanted = f"{demand.kind} with captions" if demand.captions else demand.kind
        raise UsageError(f"Got --data {source}, which are {EMBEDDED[source]}, but the model is trained on {wanted}.")
    if source == "digits":
        scans, labels = digits.scans()
        lengths = [1] * len(scans)
    else:
        labels = [digits.label(i) for i in range(digits.count())]
        lengths = [digits.LENGTH] * len(labels)
        if span > digits.LENGTH:
            raise UsageError(f"Got clips of {span} frames but the moving digits have {digits.LENGTH}.")
    conditions = [None if demand.num_classes is None else int(label) for label in labels]
    return SampleSet(demand.kind, conditions, lengths, partial(_read_embedded, source), partial(_name, source))


def _read_embedded(source: str, index: int, frames: Sequence[int]) -> list[Image.Image]:
    if source == "digits":
        return [Image.fromarray(digits.scans()[0][index])]
    return [Image.fromarray(frame) for frame in digits.moving_digit(index)[list(frames)]]


def _name(source: str, index: int) -> str:
    return f"{source}-{index}"


def _read(paths: list[Path], read, index: int, frames: Sequence[int]) -> list[Image.Image]:
    try:
        return read(paths[index], frames)
    except (OSError, SyntaxError, ValueError, UsageError) as cause:
        raise SkipditError(f"{paths[index]} was readable and now is not: {str(cause).rstrip('.')}.") from cause


def _read_image(path: Path, frames: Sequence[int]) -> list[Image.Image]:
    return [ImageOps.exif_transpose(Image.open(path))]


def _read_video(path: Path, frames: Sequence[int]) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in media.read_video(path, frames)]


def _probe_image(path: Path) -> int:
    """JPEGs are decoded at an eighth, which is enough to tell."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except Exception as cause:  # PIL's decoders raise a dozen unrelated kinds on damaged files
        why = first_line(cause)
        raise UsageError(f"{path}: {why}") from cause
    return 1


def _probe_video(path: Path, span: int) -> int:
    length = media.probe_video(path).frames
    if length < span:
        raise UsageError(f"{path} has {length} frames but a clip takes {span}.")
    return length


def _digest(paths: list[Path], index: int) -> str:
    """SHA-256 of a file; of a folder of frames, of all its pictures in the order they are read in."""
    path, digest = paths[index], hashlib.sha256()
    for file in [path] if path.is_file() else media.frame_files(path):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
