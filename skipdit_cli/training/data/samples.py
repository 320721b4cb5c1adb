"""The samples of a run: images or videos from a folder or an embedded data set, with their labels or captions."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from skipdit_cli import media
from skipdit_cli.console import count
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.training.data import moving_digits as digits
from skipdit_cli.training.data.class_folders import Classes
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.listing import Probed, list_samples, readable
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data_source import EMBEDDED, parse_data
from skipdit_cli.training.observer import SILENT, Observer

RATE_TOLERANCE = 1.01
"""The ratio up to which two frame rates count as equal."""


@dataclass(frozen=True)
class SampleSet:
    """The samples of a data source. An image is a video of one frame.

    Args:
        kind: ``images`` or ``videos``.
        conditions: The class label or caption of each sample, or None.
        lengths: The number of frames of each; with ``fps_target``, of the frames picked by time.
        read: Returns images of mode L or RGB, of any size, for a sample number and frame numbers.
        digest: Returns a hash of the content of a sample, by its number.
        skipped: The number of samples that could not be read.
        classes: The labels of the class folders; None if there are none.
        left_out: A summary of the files that are no samples.
        files: A hash of the names of all files and of their labels or captions; None for an embedded data set.
        fps_target: Frames per second at which ``read`` picks frames; None for the rate of each file.
        name: Returns the name of a sample for error messages, by its number.
    """

    kind: str
    conditions: list[Condition]
    lengths: Sequence[int]
    read: Callable[[int, Sequence[int]], list[Image.Image]]
    digest: Callable[[int], str]
    skipped: int = 0
    classes: Classes | None = None
    left_out: str = ""
    files: str | None = None
    fps_target: float | None = None
    name: Callable[[int], str] = "sample {}".format

    def __len__(self) -> int:
        return len(self.conditions)

    def __str__(self) -> str:
        conditions = {condition for condition in self.conditions if condition is not None}
        parts = [count(len(self), self.kind[:-1], self.kind)]
        if conditions:
            nouns = ("caption", "captions") if isinstance(next(iter(conditions)), str) else ("class", "classes")
            parts.append(count(len(conditions), *nouns))
        return ", ".join([*parts, f"{self.skipped:,} skipped", *filter(None, [self.left_out])])

    @property
    def labels(self) -> dict[str, int]:
        """The labels of the class folders by name; empty if there are none."""
        return {} if self.classes is None else self.classes.labels

    def recorded(self) -> dict:
        """Return what a resumed run must share with its checkpoint."""
        return {"samples": len(self), "labels": self.labels or None, "files": self.files}

    def check_labels(self, num_classes: int | None) -> None:
        """Check that the model has a class for every label.

        Raises:
            UsageError: It has none for some label.
        """
        if num_classes is None:
            return
        for label in (min(self.conditions), max(self.conditions)):
            if not 0 <= label < num_classes:
                raise UsageError(f"The data has label {label} but the model has classes 0..{num_classes - 1}.")


def read_samples(
    source: str,
    demand: Demand,
    span: int = 1,
    fps_target: float | None = None,
    allow_outside: bool = False,
    observer: Observer = SILENT,
) -> SampleSet:
    """Find the samples of a data source and open each of them once.

    Args:
        source: ``digits`` or ``moving-digits``, or a split of one, ``digits:train``; or a folder with
            ``metadata.jsonl`` or ``metadata.csv`` (keys ``file_name`` and ``label``, or ``text``), or with class
            folders; the frames of a video may be images in a folder of their own.
        span: The number of frames from the first of a clip to its last.
        fps_target: Frames per second at which frames of videos are picked; None takes every frame.
        allow_outside: Whether files may lie outside the folder, and links lead there.
    Raises:
        UsageError: There is nothing to read, a line is malformed, or more than 1 % of the samples cannot be read.
    """
    parsed = parse_data(source)
    if parsed.kind == "embedded":
        return _embedded(parsed.name, parsed.split, demand, span, fps_target)
    folder = Path(source)
    if not folder.is_dir():
        allowed = " or ".join(f"'{name}'" for name, kind in EMBEDDED.items() if kind == demand.kind)
        raise UsageError(f"Got --data {source}, which is not a folder; expected one, or {allowed}.")
    listing = list_samples(folder, demand, allow_outside, observer)
    if demand.video_length is None:
        probe, read = _probe_image, _read_image
    else:
        probe, read = partial(_probe_video, span=span, fps_target=fps_target), _read_video
    usable = readable(listing.samples, probe, demand.kind, source, observer)
    paths, conditions, probed = map(list, zip(*usable))
    _warn_rates([each.fps for each in probed if each.fps is not None], fps_target, observer)
    return SampleSet(
        demand.kind,
        conditions,
        [each.length for each in probed],
        partial(_read, paths, [each.frames for each in probed], read),
        partial(_digest, paths),
        len(listing.samples) - len(usable),
        listing.classes,
        listing.left_out,
        listing.fingerprint(folder),
        fps_target,
        name=[str(path) for path in paths].__getitem__,
    )


def _warn_rates(rates: list[float], fps_target: float | None, observer: Observer) -> None:
    """Warn if clips of as many frames differ in duration, or if frames are repeated."""
    if fps_target is not None:
        slow = [rate for rate in rates if rate * RATE_TOLERANCE < fps_target]
        if slow:
            observer.warn(
                f"{len(slow):,} of {len(rates):,} videos have less than --fps-target {fps_target:g} frames a second "
                f"(down to {min(slow):g}), so their frames are repeated."
            )
    elif rates and max(rates) > RATE_TOLERANCE * min(rates):
        common = Counter(f"{rate:.3g}" for rate in rates).most_common()
        shown = ", ".join(f"{videos:,} of {rate}" for rate, videos in common[:4]) + ", ..." * (len(common) > 4)
        observer.warn(
            f"the videos differ in frames a second ({shown}), so clips of as many frames differ in duration; "
            f"--fps-target {min(rates):.3g} would pick frames by time."
        )


def _embedded(source: str, split: str | None, demand: Demand, span: int, fps_target: float | None) -> SampleSet:
    if EMBEDDED[source] != demand.kind or demand.captions:
        kind = f"{demand.kind} with captions" if demand.captions else demand.kind
        raise UsageError(f"Got --data {source}, which are {EMBEDDED[source]}, but the model is trained on {kind}.")
    if fps_target is not None:
        raise UsageError(f"Got --fps-target {fps_target:g}, but the {source} have no times; leave the flag out.")
    if source != "digits" and span > digits.LENGTH:
        raise UsageError(f"Got clips of {span} frames but the moving digits have {digits.LENGTH}.")
    numbers = digits.numbers(digits.count() if source != "digits" else len(digits.scans()[0]), split)
    conditions = [None if demand.num_classes is None else digits.label(number) for number in numbers]
    lengths = [1 if source == "digits" else digits.LENGTH] * len(numbers)
    read, name = partial(_read_embedded, source, numbers), partial(_name, source, numbers)
    return SampleSet(demand.kind, conditions, lengths, read, name)


def _read_embedded(source: str, numbers: Sequence[int], index: int, frames: Sequence[int]) -> list[Image.Image]:
    if source == "digits":
        return [Image.fromarray(digits.scans()[0][numbers[index]])]
    return [Image.fromarray(frame) for frame in digits.moving_digit(numbers[index])[list(frames)]]


def _name(source: str, numbers: Sequence[int], index: int) -> str:
    return f"{source}-{numbers[index]}"


def _read(paths: list[Path], picked: list[np.ndarray | None], read, index: int, frames: Sequence[int]):
    numbers = frames if picked[index] is None else picked[index][list(frames)].tolist()
    try:
        return read(paths[index], numbers)
    except (OSError, SyntaxError, ValueError, UsageError) as cause:
        raise SkipditError(f"{paths[index]} was readable and now is not: {str(cause).rstrip('.')}.") from cause


def _read_image(path: Path, frames: Sequence[int]) -> list[Image.Image]:
    return [media.read_picture(path)]


def _read_video(path: Path, frames: Sequence[int]) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in media.read_video(path, frames)]


def _probe_image(path: Path) -> Probed:
    media.read_picture(path, quick=True)
    return Probed(1)


def _probe_video(path: Path, span: int, fps_target: float | None) -> Probed:
    facts = media.probe_video(path)
    frames = None if fps_target is None else pick_by_time(media.frame_times(path), fps_target)
    length = facts.frames if frames is None else len(frames)
    if length < span:
        unit = "frames" if frames is None else f"frames of {fps_target:g} a second"
        raise UsageError(f"{path} has {length} {unit} but a clip takes {span}.")
    return Probed(length, facts.fps, frames)


def pick_by_time(times: np.ndarray, fps: float) -> np.ndarray:
    """Return the numbers of the frames nearest in time to frames 0, 1, 2, ... at ``fps``, up to the last one.

    Of two frames that are equally near, the earlier is picked.

    Args:
        times: The time of each frame in seconds, ascending from 0.
    """
    tolerance = 1e-3 / fps  # containers round times
    targets = np.arange(int((times[-1] + tolerance) * fps + tolerance) + 1) / fps
    after = np.searchsorted(times, targets).clip(1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(1, np.int64)
    return np.where(times[after] - targets < targets - times[after - 1] - tolerance, after, after - 1)


def _digest(paths: list[Path], index: int) -> str:
    """Return the SHA-256 of a file, or of all frames of a folder in the order they are read in."""
    path, digest = paths[index], hashlib.sha256()
    for file in [path] if path.is_file() else media.frame_files(path):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
