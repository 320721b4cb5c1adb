"""Sound that comes with a video."""

from __future__ import annotations

import wave
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Sound:
    """Of one video.

    Args:
        waves: float32 (channels, samples) of -1..1.
        rate: Samples a second.
    """

    waves: np.ndarray
    rate: int


def save_wav(sound: Sound, path: Path) -> None:
    """Write 16 bits a sample; what lies beyond -1..1 is cut."""
    import numpy as np

    levels = (np.nan_to_num(sound.waves).clip(-1, 1) * 32767).round().astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(levels.T.tobytes())
