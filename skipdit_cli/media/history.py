"""How a file of ours was made: JSON in a picture's text chunk, or in a file beside a video."""

from __future__ import annotations

from pathlib import Path

from skipdit_cli.console import to_json
from skipdit_cli.errors import UsageError
from skipdit_cli.files import replacing
from skipdit_cli.formats import parse_json, read_text
from skipdit_cli.media.intake import opened
from skipdit_cli.media.pictures import METADATA_KEY

LARGEST = 1 << 24
"""Bytes of a history; that of thousands of prompts has a tenth."""
BESIDE = (".mp4", ".gif", ".json")


def history_file(video: Path) -> Path:
    """``clip.json`` of ``clip.mp4``."""
    return video.with_suffix(".json")


def save_history(video: Path, metadata: dict) -> None:
    """Write ``metadata`` beside a video, under the key that pictures hold it under."""
    with replacing(history_file(video)) as part:
        part.write_text(to_json({METADATA_KEY: metadata}, indent=2) + "\n", encoding="utf-8")


def read_metadata(path: Path) -> dict:
    """What ``save_png`` or ``save_video`` was given.

    Args:
        path: A PNG; or a video, or the JSON beside it.
    Raises:
        UsageError: The file is missing, no picture or video, or not one of ours.
    """
    path = Path(path)
    if path.suffix.lower() not in BESIDE:
        with opened(path) as image:
            image.load()
            return _parsed(image.info.get(METADATA_KEY, ""), path)
    beside = history_file(path)
    for needed in (path, beside):
        if not needed.is_file():
            raise UsageError(f"Got {path}, but {needed} is not a file; expected a video and the .json skipdit wrote.")
    return _parsed(read_text(beside, LARGEST), beside, lambda data: data[METADATA_KEY])


def _parsed(text: str, path: Path, within=lambda data: data) -> dict:
    try:
        metadata = within(parse_json(text, path))
    except (UsageError, KeyError, TypeError):
        metadata = None
    if not isinstance(metadata, dict) or not isinstance(metadata.get("settings", {}), dict):
        raise UsageError(f"Got {path}, which does not say how it was made; expected a file written by skipdit.")
    return metadata
