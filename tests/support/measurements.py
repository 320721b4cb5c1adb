"""Distances between results, and what a written file holds."""

import subprocess

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe


def relative_l2(actual, expected) -> float:
    """Return ||actual - expected|| / ||expected|| over two whole tensors."""
    return ((actual - expected).norm() / expected.norm()).item()


def samples_in(path):
    """Return the sound of a video file: a float32 array (samples,), the mean of two channels."""
    command = [get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:a:0", "-f", "f32le", "-ac", "2", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, "<f4").reshape(-1, 2).mean(1)
