"""What ``skipdit sample`` leaves: pictures or videos, each with how it was made."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from skipdit_cli import __version__, files, media
from skipdit_cli.commands.replay import record_conditions
from skipdit_cli.errors import UsageError

PICTURES, VIDEOS = (".png",), (".mp4", ".gif")


def choose_target(output: Path | None, npz: Path | None, overwrite: bool, reads: Mapping[str, object]) -> Path:
    """Where the samples go: one file, or a folder.

    Args:
        reads: As for ``files.check_apart``.
    Raises:
        UsageError: No kind of file that is written, or something that may not be written there.
    """
    if output is None:
        output = Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    if output.suffix and output.suffix.lower() not in PICTURES + VIDEOS:
        raise UsageError(f"Got --output {output} but expected a .png, .mp4 or .gif file or a folder.")
    if npz is not None and npz.suffix.lower() != ".npz":
        raise UsageError(f"Got --npz {npz} but expected a .npz file.")
    single = [output] if output.suffix else []
    beside = _beside(output) if output.suffix.lower() in VIDEOS else []
    for path in (*single, *beside, *([npz] if npz else [])):
        replayed = path == output  # a file may be made again in its own place
        files.check_apart(path, {flag: read for flag, read in reads.items() if flag != "--from" or not replayed})
        files.check_file(path, overwrite)
    for path in filter(Path.exists, beside):
        _check_own(path, output)
    if not single:
        files.check_apart(output, reads)
        files.check_folder(output, files.SAMPLE, overwrite)
    return output


def _beside(video: Path) -> list[Path]:
    return [media.history_file(video), _sheet(video)]


def _check_own(beside: Path, video: Path) -> None:
    """Raise ``UsageError`` unless a file that stands beside a video is one that ``sample`` wrote there for it."""
    others = [other for suffix in VIDEOS if (other := video.with_suffix(suffix)) != video and other.exists()]
    try:
        media.read_metadata(beside)
    except UsageError:
        others.append(None)
    if others:
        whose = "is not from skipdit" if others[0] is None else f"is of {others[0]}"
        raise UsageError(f"Output {video} would replace {beside}, which {whose}; give another --output.")


def check_kind(target: Path, pipe) -> None:
    """Whether what the model makes can be written to a file of this kind.

    Args:
        pipe: The pipeline, or its outline.
    Raises:
        UsageError: Videos to a picture file or the reverse.
    """
    from skipdit_cli.sampling.pixels import is_video

    allowed, kind = (VIDEOS, "videos") if is_video(pipe) else (PICTURES, "images")
    if target.suffix and target.suffix.lower() not in allowed:
        expected = " or ".join(allowed)
        raise UsageError(
            f"Got --output {target}, but this model makes {kind}; expected a {expected} file or a folder."
        )


def check_size(target: Path, pipe, count: int, height=None, width=None, num_frames=None) -> None:
    """
    Args:
        count: How many samples there are to be.
        height, width, num_frames: Those asked for, if any.
    Raises:
        UsageError: More than memory holds, or a video of a size its format has not.
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
    settings: dict,
    conditions: list[int | str | None],
    sounds: Sequence[media.Sound] = (),
) -> list[Path]:
    """All samples in one file; or, in a folder, every sample (each with what makes it alone) and all of them.

    Args:
        images: uint8 (N, H, W, 3), or videos (N, F, H, W, 3).
        settings: Flags of the command that make the same again.
        conditions: One a sample: its class or its text; None of an unconditional model.
        sounds: One a video, or none; see ``where_sounds_are``.
    Returns:
        The files, in the order they were written.
    """
    video = images.ndim == 5
    scale = _scale(images.shape[-3], alone=not video and len(images) == 1)

    def write(images, path: Path, settings: dict, scale: int, sounds: Sequence[media.Sound]) -> list[Path]:
        if video:
            return _save_videos(images, path, settings, scale, sounds[0] if len(sounds) == 1 else None)
        return _save_image(images, path, settings, scale)

    if target.suffix:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = write(images, target, settings, scale, sounds)
        return [*written, *_save_npz(images, npz)]
    inside = npz is not None and Path(os.path.realpath(npz)).is_relative_to(os.path.realpath(target))
    with files.fill_folder(target, files.SAMPLE) as part:
        written = []
        for i, condition in enumerate(conditions):
            own = {**settings, **record_conditions([condition]), "seed": settings["seed"] + i}
            single = _numbered(part, i, ".mp4" if video else ".png")
            written += write(images[i : i + 1], single, own, scale if video else 1, sounds[i : i + 1])
        written += write(images, part / ("grid.gif" if video else "grid.png"), settings, scale, ())
        if inside:
            written += _save_npz(images, part / Path(os.path.realpath(npz)).relative_to(os.path.realpath(target)))
    written = [target / path.relative_to(part) for path in written]
    return written if inside else [*written, *_save_npz(images, npz)]


def _save_npz(images, npz: Path | None) -> list[Path]:
    if npz is None:
        return []
    npz.parent.mkdir(parents=True, exist_ok=True)
    media.save_npz(images, npz)
    return [npz]


def where_sounds_are(target: Path, count: int) -> str:
    """In a sentence: an mp4 has the sound of its video, a gif none, nor has an mp4 of several videos side by side."""
    if not target.suffix:
        return "each mp4 has its sound."
    if target.suffix.lower() == ".gif":
        return "the model makes sound, which a gif has not: give -o NAME.mp4 to hear it."
    if count > 1:
        return "the sound of several videos in one file is left out: give a folder, for a file each."
    return "the mp4 has its sound."


def _save_image(images, path: Path, settings: dict, scale: int) -> list[Path]:
    media.save_png(media.grid(images, scale=scale), path, _history(settings))
    return [path]


def _save_videos(videos, path: Path, settings: dict, scale: int, sound: media.Sound | None) -> list[Path]:
    """The video, how it was made, and its frames in one picture."""
    media.save_video(media.video_grid(videos, scale), path, settings["fps"], _history(settings), sound)
    media.save_png(media.contact_sheet(videos, scale), _sheet(path), _history(settings))
    return [path, *_beside(path)]


def _history(settings: dict) -> dict:
    made_with = {"version": __version__, **{name: version(name) for name in ("torch", "diffusers")}}
    return {**made_with, "settings": settings}


def _sheet(video: Path) -> Path:
    return video.with_suffix(".png")


def _numbered(folder: Path, index: int, suffix: str) -> Path:
    return folder / f"{index:04d}{suffix}"


def _scale(height: int, alone: bool) -> int:
    """How much to enlarge what nobody could see: grids and videos are for eyes, a picture alone stays as it is."""
    return 1 if alone or height >= 64 else 256 // height
