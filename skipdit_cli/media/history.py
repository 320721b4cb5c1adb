"""Metadata of generated files: JSON in an image, or in a file beside a video."""

from __future__ import annotations

from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.files import replacing
from skipdit_cli.formats import parse_json, read_text, to_json
from skipdit_cli.media.intake import open_image
from skipdit_cli.media.pictures import METADATA_KEY, read_comment

MAX_BYTES = 1 << 24  # the metadata of thousands of prompts has a tenth of that
SIDECAR_SUFFIXES = (".mp4", ".gif", ".json")


def history_file(video: Path) -> Path:
    """Return the metadata file of a video: ``clip.json`` for ``clip.mp4``."""
    return video.with_suffix(".json")


def save_history(video: Path, metadata: dict) -> None:
    """Write metadata to the JSON file beside a video, under the key that images use for it."""
    with replacing(history_file(video), durable=False) as part:
        part.write_text(to_json({METADATA_KEY: metadata}, indent=2) + "\n", encoding="utf-8")


def read_metadata(path: Path) -> dict:
    """Return the metadata that ``save_picture`` or ``save_video`` wrote.

    Args:
        path: A PNG, JPEG or WebP, a video, or the JSON file beside a video.
    Raises:
        UsageError: The file is missing, no image or video, or was not written by skipdit.
    """
    path = Path(path)
    if path.suffix.lower() not in SIDECAR_SUFFIXES:
        with open_image(path) as image:
            image.load()
            if METADATA_KEY not in image.info and (comment := read_comment(image)):
                return _parse(comment, path, lambda data: data[METADATA_KEY])
            return _parse(image.info.get(METADATA_KEY, ""), path)
    sidecar = history_file(path)
    for required in (path, sidecar):
        if not required.is_file():
            raise UsageError(
                f"Got {path}, but {required} is not a file; expected a video and the .json skipdit wrote."
            )
    return _parse(read_text(sidecar, MAX_BYTES), sidecar, lambda data: data[METADATA_KEY])


def _parse(text: str, path: Path, select=lambda data: data) -> dict:
    try:
        metadata = select(parse_json(text, path))
    except (UsageError, KeyError, TypeError):
        metadata = None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("settings", {}), dict):
        raise UsageError(f"Got {path}, which does not say how it was made; expected a file written by skipdit.")
    return metadata
