"""Write videos as mp4 (H.264) or GIF, with a JSON file beside them, and arrange several videos in one."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.files import replacing
from skipdit_cli.media.history import save_history
from skipdit_cli.media.pictures import grid
from skipdit_cli.media.sound import Sound, save_wav

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

QUALITY = 9  # of 10, as in sample.py of Latte


def check_video_size(path: Path, width: int, height: int) -> None:
    """Check that a file format can hold frames of this size: H.264 in yuv420p, which every player reads, stores one
    colour for 2x2 pixels.

    Raises:
        UsageError: An mp4 of odd width or height.
    """
    if path.suffix.lower() == ".mp4" and (width % 2 or height % 2):
        raise UsageError(
            f"Got frames of {width}x{height} for {path}, but an mp4 has even sizes; give -o NAME.gif, which takes any."
        )


def save_video(frames: np.ndarray, path: Path, fps: float, metadata: dict, sound: Sound | None = None) -> None:
    """Write an mp4 or a GIF, by the suffix of the path, and its metadata as JSON beside it.

    Args:
        frames: uint8 (F, H, W, 3).
        fps: Frames per second.
        sound: Soundtrack of an mp4; a GIF has none.
    Raises:
        UsageError: An mp4 of odd width or height.
        SkipditError: The encoder failed.
    """
    check_video_size(path, frames.shape[2], frames.shape[1])
    with replacing(path, durable=False) as part:
        try:
            if path.suffix.lower() == ".mp4":
                _write_mp4(part, frames, fps, sound)
            else:
                _write_gif(part, frames, fps)
        except (OSError, RuntimeError) as cause:
            why = str(cause).strip().splitlines() or ["no reason given"]
            raise SkipditError(f"The video {path} could not be encoded: {why[0].rstrip('.')}.") from cause
    save_history(path, metadata)


def _write_mp4(path: Path, frames: np.ndarray, fps: float, sound: Sound | None) -> None:
    import imageio.v3 as imageio
    import imageio_ffmpeg

    # imageio's default macro block size of 16 resizes the frames.
    settings: dict[str, Any] = {
        "codec": "libx264",
        "pixelformat": "yuv420p",
        "macro_block_size": 1,
        "quality": QUALITY,
    }
    settings["ffmpeg_log_level"] = "error"  # it warns about the channel layout of sound
    with TemporaryDirectory() as folder:
        if sound is not None:
            save_wav(sound, Path(folder) / "sound.wav")
            settings |= {"audio_path": f"{folder}/sound.wav", "audio_codec": "aac"}
        imageio.imwrite(path, frames, plugin="FFMPEG", fps=fps, **settings)
    written = imageio_ffmpeg.count_frames_and_secs(str(path))[0]  # imageio raises nothing when ffmpeg dies late
    if written != len(frames):
        raise OSError(f"ffmpeg wrote {written} of {len(frames)} frames")


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    import imageio.v3 as imageio

    imageio.imwrite(path, frames, plugin="pillow", duration=1000 / fps, loop=0)


def video_grid(videos: np.ndarray, scale: int = 1, columns: int | None = None) -> np.ndarray:
    """Arrange videos side by side: uint8 (N, F, H, W, 3) to (F, H', W', 3); even sizes stay even.

    Args:
        scale, columns: As for ``grid``.
    """
    import numpy as np

    return np.stack([np.asarray(grid(frames, columns, scale, gap=2)) for frames in videos.swapaxes(0, 1)])


def contact_sheet(videos: np.ndarray, scale: int = 1) -> Image.Image:
    """Arrange all frames of videos, uint8 (N, F, H, W, 3), in one image: a row per video, a single one as a square."""
    count, frames = videos.shape[:2]
    return grid(videos.reshape(-1, *videos.shape[2:]), frames if count > 1 else None, scale)
