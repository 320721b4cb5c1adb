"""The files that ``skipdit sample`` writes: images or videos, each with the record of its run."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from skipdit_cli import files, media
from skipdit_cli.commands.replay import record_conditions
from skipdit_cli.errors import UsageError
from skipdit_cli.version import __version__

IMAGES, VIDEOS = (".png",), (".mp4", ".gif")
VISIBLE = 256
"""Samples of less than 64 pixels are enlarged to this height where they are shown together or as a video."""


def choose_target(output: Path | None, npz: Path | None, overwrite: bool, reads: Mapping[str, object]) -> Path:
    """Return the file or folder that the samples go to, after checking that it may be written.

    Args:
        output: ``--output``; a new folder in ``outputs/`` if None.
        reads: What the command reads, as for ``files.check_apart``.

    Raises:
        UsageError: The type of file is not one that is written, or something in its place may not be replaced.
    """
    if output is None:
        output = Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    if output.suffix and output.suffix.lower() not in IMAGES + VIDEOS:
        raise UsageError(f"Got --output {output} but expected a .png, .mp4 or .gif file or a folder.")
    if npz is not None and npz.suffix.lower() != ".npz":
        raise UsageError(f"Got --npz {npz} but expected a .npz file.")
    companions = _companions(output) if output.suffix.lower() in VIDEOS else []
    for path in (*([output] if output.suffix else []), *companions, *([npz] if npz else [])):
        in_place = path == output  # a file may be made again in its own place
        files.check_apart(path, {flag: read for flag, read in reads.items() if flag != "--from" or not in_place})
        files.check_file(path, overwrite)
    for path in filter(Path.exists, companions):
        _check_companion(path, output)
    if not output.suffix:
        files.check_apart(output, reads)
        files.check_folder(output, files.SAMPLE, overwrite)
    return output


def _companions(video: Path) -> list[Path]:
    """Return the files that are written beside a video: its history and its frames in one image."""
    return [media.history_file(video), _contact_sheet(video)]


def _check_companion(path: Path, video: Path) -> None:
    """Raise ``UsageError`` unless an existing file beside a video was written by ``sample`` for this video."""
    owners = [str(other) for suffix in VIDEOS if (other := video.with_suffix(suffix)) != video and other.exists()]
    try:
        media.read_metadata(path)
    except UsageError:
        raise UsageError(
            f"Output {video} would replace {path}, which is not from skipdit; give another --output."
        ) from None
    if owners:
        raise UsageError(f"Output {video} would replace {path}, which is of {owners[0]}; give another --output.")


def check_kind(target: Path, pipe) -> None:
    """Refuse a file for images if the model makes videos, and the reverse.

    Args:
        pipe: The pipeline or its outline.

    Raises:
        UsageError: The suffix of the file is of the other kind.
    """
    from skipdit_cli.sampling.pixels import is_video

    suffixes, kind = (VIDEOS, "videos") if is_video(pipe) else (IMAGES, "images")
    if target.suffix and target.suffix.lower() not in suffixes:
        expected = " or ".join(suffixes)
        raise UsageError(
            f"Got --output {target}, but this model makes {kind}; expected a {expected} file or a folder."
        )


def check_size(
    target: Path, pipe, count: int, height: int | None = None, width: int | None = None, num_frames: int | None = None
) -> None:
    """Refuse samples that memory cannot hold or that the format of a video cannot have.

    Args:
        count: The number of samples.
        height, width, num_frames: The size in pixels and frames; None for the pipeline's own.

    Raises:
        UsageError: The samples are too many or too large, or the format takes no video of this size.
    """
    from skipdit_cli.sampling.pixels import check_memory, is_video, pixel_size

    video, size = is_video(pipe), pixel_size(pipe, height, width)
    scale = 1 if size is None else _scale(size[0], alone=count == 1 and not video)
    check_memory(pipe, count, height, width, num_frames, drawn=scale**2 * (2 if video else 1))
    if video and size is not None:
        media.check_video_size(target if target.suffix else _numbered(target, 0, ".mp4"), *reversed(size))


def save(
    images,
    target: Path,
    npz: Path | None,
    record: dict,
    conditions: Sequence[int | str | None],
    sounds: Sequence[media.Sound] = (),
) -> list[Path]:
    """Write all samples to one file; or to a folder, one file per sample and one of all of them.

    Args:
        images: Images (N, H, W, 3) or videos (N, F, H, W, 3), uint8.
        npz: Also write them as an array to this file.
        record: The record of the run; the file of one sample gets one that makes this sample alone.
        conditions: One class label or prompt per sample, None for an unconditional model.
        sounds: One per video, or none; see ``where_sounds_are``.

    Returns:
        The files, in the order they were written.
    """
    video = images.ndim == 5
    scale = _scale(images.shape[-3], alone=not video and len(images) == 1)
    if target.suffix:
        target.parent.mkdir(parents=True, exist_ok=True)
        return [*_save_together(images, target, record, scale, sounds), *_save_npz(images, npz)]
    npz_inside = npz is not None and Path(os.path.realpath(npz)).is_relative_to(os.path.realpath(target))
    with files.fill_folder(target, files.SAMPLE) as folder:
        written = []
        for i, condition in enumerate(conditions):
            single = {**record, **record_conditions([condition]), "seed": record["seed"] + i}
            path = _numbered(folder, i, ".mp4" if video else ".png")
            written += _save_together(images[i : i + 1], path, single, scale if video else 1, sounds[i : i + 1])
        written += _save_together(images, folder / ("grid.gif" if video else "grid.png"), record, scale)
        if npz_inside:
            written += _save_npz(images, folder / Path(os.path.realpath(npz)).relative_to(os.path.realpath(target)))
    written = [target / path.relative_to(folder) for path in written]
    return written if npz_inside else [*written, *_save_npz(images, npz)]


def _save_together(images, path: Path, record: dict, scale: int, sounds: Sequence[media.Sound] = ()) -> list[Path]:
    """Write samples side by side to one image, or to one video with its history and its frames beside it."""
    versions = {"version": __version__, **{name: version(name) for name in ("torch", "diffusers")}}
    history = {**versions, "settings": record}
    if images.ndim == 4:
        media.save_png(media.grid(images, scale=scale), path, history)
        return [path]
    sound = sounds[0] if len(sounds) == 1 else None
    media.save_video(media.video_grid(images, scale), path, record["fps"], history, sound)
    media.save_png(media.contact_sheet(images, scale), _contact_sheet(path), history)
    return [path, *_companions(path)]


def _save_npz(images, npz: Path | None) -> list[Path]:
    if npz is None:
        return []
    npz.parent.mkdir(parents=True, exist_ok=True)
    media.save_npz(images, npz)
    return [npz]


def where_sounds_are(target: Path, count: int) -> str:
    """Return a sentence about the sound of the videos: an mp4 of one video has it, a gif or a grid has none."""
    if not target.suffix:
        return "each mp4 has its sound."
    if target.suffix.lower() == ".gif":
        return "the model makes sound, which a gif has not: give -o NAME.mp4 to hear it."
    if count > 1:
        return "the sound of several videos in one file is left out: give a folder, for one file per video."
    return "the mp4 has its sound."


def _contact_sheet(video: Path) -> Path:
    return video.with_suffix(".png")


def _numbered(folder: Path, index: int, suffix: str) -> Path:
    return folder / f"{index:04d}{suffix}"


def _scale(height: int, alone: bool) -> int:
    """Return the factor that enlarges tiny samples to be seen; an image alone keeps its size."""
    return 1 if alone or height >= 64 else VISIBLE // height
