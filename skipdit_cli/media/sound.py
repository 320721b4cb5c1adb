"""The soundtrack of a video."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sound:
    """The soundtrack of one video.

    Attributes:
        waves: float32 (channels, samples) in [-1, 1].
        rate: Samples per second.
    """

    waves: np.ndarray
    rate: int


def save_wav(sound: Sound, path: Path) -> None:
    """Write a WAV file with 16 bits per sample; samples are clipped to [-1, 1]."""
    import numpy as np

    levels = (np.nan_to_num(sound.waves).clip(-1, 1) * 32767).round().astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(levels.T.tobytes())
