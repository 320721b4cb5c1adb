"""Where ``skipdit sample`` writes, and what it refuses to write there."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from skipdit_cli import files, media
from skipdit_cli.commands.replay import RECORDED
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import preset_path
from skipdit_cli.sampling.sample_settings import SampleSettings
from skipdit_cli.settings import flag_name

IMAGES, VIDEOS = (".png", ".jpg", ".jpeg", ".webp"), (".mp4", ".gif")
VISIBLE = 256
"""Samples of less than 64 pixels are enlarged to this height where they are shown together or as a video."""
MOST_IN_GRID = {False: 64, True: 16}
"""Images, and videos, in the grid of a folder: the first ones."""


def claim_target(
    settings: SampleSettings, model: str | None, preset: str | None, plan: str | None, from_file: Path | None
) -> Path:
    """Return where the samples go, after checking that it may be written (see ``choose_target``), and lock it."""
    reads = {"model": model, "--preset": preset and preset_path(preset), "--plan": plan, "--from": from_file}
    reads |= {"--image": settings.pipeline.image, "--prompts-file": settings.pipeline.prompts_file}
    reads |= {"--lora": settings.pipeline.lora, "--vae": settings.vae}
    target = choose_target(settings.output, settings.npz, settings.overwrite, reads, settings.format)
    for path in outputs(target, settings.npz):
        files.hold(path, "--npz" if path == settings.npz else "--output")
    return target


def choose_target(
    output: Path | None,
    npz: Path | None,
    overwrite: bool,
    reads: Mapping[str, object],
    format: str | None = None,
) -> Path:
    """Return the file or folder that the samples go to, after checking that it may be written.

    The folder of an interrupted run may be, for it may be resumed (see ``is_resumed``).

    Args:
        output: ``--output``; a new folder in ``outputs/`` if None.
        format: ``--format``, which is for the images in a folder.
        reads: What the command reads, as for ``files.check_apart``.

    Raises:
        UsageError: The type of file is not one that is written, or something in its place may not be replaced.
    """
    if output is None:
        output = Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    if output.suffix and output.suffix.lower() not in IMAGES + VIDEOS:
        raise UsageError(f"Got --output {output} but expected a {_listed(IMAGES + VIDEOS)} file or a folder.")
    if format is not None and f".{format}" not in IMAGES:
        raise UsageError(f"Got --format '{format}' but expected {_listed(IMAGES).replace('.', '')}.")
    if format is not None and output.suffix:
        raise UsageError(f"Got --format {format} with --output {output}, whose suffix says it; leave --format out.")
    if npz is not None and npz.suffix.lower() != ".npz":
        raise UsageError(f"Got --npz {npz} but expected a .npz file.")
    is_partial = not output.suffix and files.is_partial(output, files.SAMPLE)
    companions = companions_of(output) if output.suffix.lower() in VIDEOS else []
    for path in (*([output] if output.suffix else []), *companions, *([npz] if npz else [])):
        in_place = path == output  # a file may be made again in its own place
        files.check_apart(path, {flag: read for flag, read in reads.items() if flag != "--from" or not in_place})
        files.check_file(path, overwrite or is_partial)
    for path in filter(Path.exists, companions):
        _check_companion(path, output)
    if not output.suffix:
        files.check_apart(output, reads)
        files.check_partial(output, files.SAMPLE, overwrite)
    return output


def outputs(target: Path, npz: Path | None) -> list[Path]:
    """Return the file or folder of the samples, and the file of ``--npz`` unless it lies in that folder."""
    is_outside = npz is not None and not Path(os.path.realpath(npz)).is_relative_to(os.path.realpath(target))
    return [target, npz] if npz is not None and is_outside else [target]


def is_resumed(target: Path, settings: Mapping[str, object], overwrite: bool) -> bool:
    """Return whether a run goes on from the samples that an interrupted one left in its folder.

    With ``overwrite`` it does too where the settings are the same, and else the folder is replaced.

    Args:
        settings: All that the files depend on, as plain data.

    Raises:
        UsageError: The interrupted run has other settings.
    """
    return not target.suffix and files.is_resumed(target, files.SAMPLE, settings, overwrite, _spelled)


def _spelled(name: str) -> str:
    return flag_name(name) if name in RECORDED or name in ("npz", "format") else name


def companions_of(video: Path) -> list[Path]:
    """Return the files that are written beside a video: its history and its frames in one image."""
    return [media.history_file(video), contact_sheet_of(video)]


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
        raise UsageError(
            f"Got --output {target}, but this model makes {kind}; expected a {_listed(suffixes)} file or a folder."
        )


def _listed(suffixes: Sequence[str]) -> str:
    return f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"


def check_size(
    target: Path,
    pipe,
    count: int,
    batch_size: int,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
) -> None:
    """Refuse samples that memory cannot hold or that the format of a video cannot have.

    Args:
        count: The number of samples.
        batch_size: Samples per batch.
        height, width, num_frames: The size in pixels and frames; None for the pipeline's own.

    Raises:
        UsageError: The samples are too many or too large, or the format takes no video of this size.
    """
    from skipdit_cli.sampling.pixels import check_memory, is_video, pixel_size

    video, size = is_video(pipe), pixel_size(pipe, height, width)
    scale = 1 if size is None else enlargement(size[0], alone=count == 1 and not video)
    held = None if target.suffix else max(batch_size, MOST_IN_GRID[video])
    check_memory(pipe, count, height, width, num_frames, drawn=scale**2 * (2 if video else 1), held=held)
    if video and size is not None:
        media.check_video_size(target if target.suffix else target / "0000.mp4", *reversed(size))


def contact_sheet_of(video: Path) -> Path:
    """Return the image with the frames of a video, which is written beside it."""
    return video.with_suffix(".png")


def enlargement(height: int, alone: bool) -> int:
    """Return the factor that enlarges tiny samples to be seen; an image alone keeps its size."""
    return 1 if alone or height >= 64 else VISIBLE // height
