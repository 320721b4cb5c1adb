"""The files that ``skipdit sample`` writes: images or videos, each with the record of its run."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipdit_cli import files, media
from skipdit_cli.commands.replay import record_conditions
from skipdit_cli.commands.sample_checksums import SampleChecksums
from skipdit_cli.commands.sample_share import Costs
from skipdit_cli.commands.sample_target import MOST_IN_GRID, companions_of, contact_sheet_of, enlargement
from skipdit_cli.errors import SkipditError, first_line
from skipdit_cli.processes import Team
from skipdit_cli.version import versions_of_results

if TYPE_CHECKING:
    from skipdit_cli.sampling.generate import Generated
    from skipdit_cli.sampling.sample_settings import SampleSettings

ARRAY = "partial.npy"
"""In a folder of samples, until all are made: those that the grid and ``--npz`` need."""
CHECKSUMS = "partial.sha256"
"""In a folder of samples, until all are made: the checksum of each."""

logger = logging.getLogger(__name__)


class SampleFile:
    """One image or video of all samples, side by side, as a context manager.

    Args:
        target: The file.
        npz: Also write the samples as an array to this file.
        record: The record of the run.
        team: The processes that make the samples; the main one writes them.
    """

    def __init__(self, target: Path, npz: Path | None, record: dict, team: Team = Team()):
        self.target, self.npz, self.record, self.kept, self.team = target, npz, record, 0, team
        self.has_sound = False
        self.costs = Costs(team)
        self.parts: list[tuple[int, Any, list[media.Sound]]] = []

    def __enter__(self) -> SampleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.parts.clear()

    def has(self, batch: slice) -> bool:
        """Return False: a run into one file is not resumed."""
        return False

    def add(self, batch: slice, part: Generated) -> None:
        """Take the samples of a batch."""
        self.parts.append((batch.start, part.images, part.sounds))
        self.costs.add(batch, part)

    def finish(self) -> list[Path]:
        """Write the samples of all processes; return the files, in the order they were written."""
        import numpy as np

        self.costs.collect()
        shares = self.team.gather(self.parts)
        if not self.team.is_main:
            return []
        parts = sorted((part for share in shares for part in share), key=lambda part: part[0])
        images, sounds = np.concatenate([part[1] for part in parts]), [sound for part in parts for sound in part[2]]
        self.has_sound = bool(sounds)
        self.shape = images.shape
        scale = enlargement(images.shape[-3], alone=images.ndim == 4 and len(images) == 1)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        written = _save_together(images, self.target, self.record, scale, sounds)
        if self.npz is not None:
            self.npz.parent.mkdir(parents=True, exist_ok=True)
            media.save_npz(images, self.npz)
            written.append(self.npz)
        return written


class SampleFolder(files.PartialFolder):
    """A folder of one file per sample, each written when its batch is done, and a grid of the first ones.

    The files of a resumed run are those of an undisturbed one, byte for byte.

    Args:
        target, npz, record, team: As for ``SampleFile``; the file of one sample gets a record that makes it alone, and
            the process that made the sample writes it.
        conditions: One class label or prompt per sample, None for an unconditional model.
        suffix: That of the files.
        settings, resume: As for ``files.PartialFolder``.
    """

    def __init__(
        self,
        target: Path,
        npz: Path | None,
        record: dict,
        conditions: Sequence[int | str | None],
        suffix: str,
        settings: Mapping[str, object],
        resume: bool,
        team: Team = Team(),
    ):
        super().__init__(target, files.SAMPLE, settings, resume)
        self.npz, self.record, self.conditions, self.suffix, self.team = npz, record, conditions, suffix, team
        self.has_sound = False
        self.costs = Costs(team)
        digits = max(4, len(str(len(conditions) - 1)))
        self.names = [f"{index:0{digits}d}{suffix}" for index in range(len(conditions))]
        is_video = suffix == ".mp4"
        self.grid, self.in_grid = "grid.gif" if is_video else f"grid{suffix}", MOST_IN_GRID[is_video]
        count = len(conditions)
        self.array = media.ArrayFile(self.place / ARRAY, count if npz is not None else min(count, self.in_grid))
        self.is_begun = False
        self.checksums = SampleChecksums(self.place / CHECKSUMS, count)
        self.keeps_samples = resume and self.array.is_whole() and self.checksums.is_whole()
        self.made = team.on_main(self._made_before)  # reads and hashes all files that are there
        self.kept = len(self.made)
        if resume and not self.keeps_samples:
            logger.warning("%s or %s is missing or damaged, so all samples are made again.", ARRAY, CHECKSUMS)

    def has(self, batch: slice) -> bool:
        """Return whether the files of a batch are there already, from an interrupted run, and as they were written.

        Without the whole array of their samples they are made again.
        """
        return self.made.issuperset(range(batch.start, batch.stop))

    def _made_before(self) -> set[int]:
        """Return the samples that an interrupted run made, whose files and parts of the array are undamaged."""
        return {index for index in range(len(self.names)) if self._is_made(index)} if self.keeps_samples else set()

    def _is_made(self, index: int) -> bool:
        """Return whether an interrupted run made a sample, and its files and its part of the array are undamaged."""
        checksum = self.checksums.read(index)
        if checksum is None:
            return False
        is_there = all(each.is_file() and not each.is_symlink() for each in self._files(index))
        if is_there and checksum == self._checksum(index):
            return True
        logger.warning("%s is missing or damaged, so it is made again.", self.target / self.names[index])
        return False

    def _files(self, index: int) -> list[Path]:
        path = self.place / self.names[index]
        return [path, *self._companions(path)]

    def _checksum(self, index: int) -> bytes:
        """Return the checksum of the files of a sample and of its part of the array."""
        digest = hashlib.sha256(self.array.read_one(index) if index < self.array.count else b"")
        for path in self._files(index):
            digest.update(path.read_bytes())
        return digest.digest()

    def _companions(self, path: Path) -> list[Path]:
        return companions_of(path) if self.suffix == ".mp4" else []

    def add(self, batch: slice, part: Generated) -> None:
        """Write the samples of a batch."""
        images, sounds = part.images, part.sounds
        self._open(images.shape[1:])
        self.array.write(batch.start, images)
        self.has_sound = bool(sounds)
        self.costs.add(batch, part)
        for at, index in enumerate(range(batch.start, batch.stop)):
            if index not in self.made:
                single = {**self.record, **record_conditions([self.conditions[index]])}
                single["seed"] = self.record["seed"] + index
                path, scale = self.place / self.names[index], enlargement(images.shape[-3], images.ndim == 4)
                _save_together(images[at : at + 1], path, single, scale, sounds[at : at + 1])
                self.checksums.write(index, self._checksum(index))
                self.keep()
        _return_free_memory()

    def _open(self, shape: tuple[int, ...] | None = None) -> None:
        """Create the folder, once all processes have made their first batch, or continue in it.

        Args:
            shape: That of a sample; None for a process that makes none.
        """
        if self.is_begun:
            return
        self.is_begun = True
        shapes = [each for each in self.team.gather(shape) if each is not None]
        self.team.on_main(lambda: self._create(shapes[0] if shapes else None))

    def _create(self, shape: tuple[int, ...] | None) -> None:
        paths = [Path(name) for name in (*self.names, self.grid)]
        video = [companion for path in paths for companion in self._companions(path)]
        inside = [self.npz_inside] if self.npz_inside is not None else []
        self.open([path.as_posix() for path in (*paths, *video, Path(ARRAY), Path(CHECKSUMS), *inside)])
        if not self.keeps_samples:
            self.array.discard()
            self.checksums.create()
        if shape is not None:
            self.array.create(shape)

    def keep(self) -> None:
        """Say that the folder holds something to resume from; the main process says it for all."""
        if self.team.is_main:
            super().keep()

    def __exit__(self, kind, cause, trace) -> None:
        if self.team.is_main:
            super().__exit__(kind, cause, trace)
        elif isinstance(cause, OSError):
            reason = cause.strerror or first_line(cause)
            raise SkipditError(
                f"Writing {self.target} failed: {reason}; what was made is kept, and the same command goes on."
            ) from cause

    @property
    def npz_inside(self) -> Path | None:
        """The file of ``--npz`` as a path in the folder, or None where it lies elsewhere."""
        path = None if self.npz is None else Path(os.path.realpath(self.npz))
        return path.relative_to(self.place) if path is not None and path.is_relative_to(self.place) else None

    def finish(self) -> list[Path]:
        """Wait for all processes, write the grid and the array, and return all files in the order of writing."""
        self._open()
        self.costs.collect()
        if not self.team.is_main:
            return []
        self.shape = (len(self.names), *self.array.shape[1:])
        first = self.array.read(self.in_grid)
        scale = enlargement(first.shape[-3], alone=first.ndim == 4 and len(first) == 1)
        record = {**self.record, **record_conditions(self.conditions[: len(first)])}
        grid = _save_together(first, self.place / self.grid, record, scale)
        if self.npz is not None:
            self.npz.parent.mkdir(parents=True, exist_ok=True)
            self.array.copy_to_npz(self.npz)
        super().finish(ARRAY, CHECKSUMS)
        made = [path for name in self.names for path in (self.target / name, *self._companions(self.target / name))]
        return [*made, *(self.target / path.name for path in grid), *([self.npz] if self.npz is not None else [])]


def open_output(
    target: Path,
    settings: SampleSettings,
    record: dict,
    conditions: Sequence[int | str | None],
    is_video: bool,
    run: Mapping[str, object],
    resume: bool,
    team: Team,
) -> SampleFile | SampleFolder:
    """Return what writes the samples.

    Args:
        target, record, conditions, resume, team: As for ``SampleFolder``.
        settings: The settings of the command.
        is_video: Whether the samples are videos.
        run: All that the files depend on, as plain data.
    """
    if target.suffix:
        return SampleFile(target, settings.npz, record, team)
    suffix = ".mp4" if is_video else f".{settings.format or 'png'}"
    return SampleFolder(target, settings.npz, record, conditions, suffix, run, resume, team)


def _return_free_memory() -> None:
    """Give freed memory back to the system: glibc keeps it in fragments, 110 kB for each picture of 128x128."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another libc
            ctypes.CDLL(None).malloc_trim(0)


def _save_together(images, path: Path, record: dict, scale: int, sounds: Sequence[media.Sound] = ()) -> list[Path]:
    """Write samples side by side to one image, or to one video with its history and its frames beside it."""
    history = {"versions": versions_of_results(), "settings": record}
    if images.ndim == 4:
        media.save_picture(media.grid(images, scale=scale), path, history)
        return [path]
    sound = sounds[0] if len(sounds) == 1 else None
    media.save_video(media.video_grid(images, scale), path, record["fps"], history, sound)
    media.save_picture(media.contact_sheet(images, scale), contact_sheet_of(path), history)
    return [path, *companions_of(path)]


def where_sounds_are(target: Path, count: int) -> str:
    """Return a sentence about the sound of the videos: an mp4 of one video has it, a gif or a grid has none."""
    if not target.suffix:
        return "each mp4 has its sound."
    if target.suffix.lower() == ".gif":
        return "the model makes sound, which a gif has not: give -o NAME.mp4 to hear it."
    if count > 1:
        return "the sound of several videos in one file is left out: give a folder, for one file per video."
    return "the mp4 has its sound."
