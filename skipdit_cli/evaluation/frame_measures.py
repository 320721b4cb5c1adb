"""Measures of a video by its own frames, as VBench has them (Huang et al., arXiv 2311.17982)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

NEEDS_NETWORKS = {
    "motion_smoothness": "needs a network that interpolates frames (AMT), which skipdit does not run",
    "dynamic_degree": "needs a network of optical flow (RAFT), which skipdit does not run",
    "aesthetic_quality": "needs the LAION aesthetic predictor, which skipdit does not run",
    "imaging_quality": "needs the MUSIQ predictor, which skipdit does not run",
    "overall_consistency": "needs a network of videos and texts (ViCLIP), which skipdit does not run",
}
"""The dimensions of VBench that are not computed, and why."""


def subject_consistency(features: np.ndarray) -> float:
    """Return how alike the frames of a video are, by their features.

    For each frame after the first it is the mean of two cosine similarities, with the first and with the preceding
    frame, averaged over these frames. VBench takes features of DINO; of CLIP, it is its background consistency.

    Args:
        features: (T, D) of at least 2 frames.
    """
    units = features.astype(np.float64)
    units = units / np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    to_first, to_previous = units[1:] @ units[0], (units[1:] * units[:-1]).sum(axis=1)
    return float((to_first + to_previous).mean() / 2)


def frame_difference(frames: np.ndarray) -> float:
    """Return the mean absolute difference between consecutive frames, in levels of 0..255.

    Args:
        frames: uint8 (T, H, W, C) of at least 2 frames.
    """
    changes = [np.abs(after.astype(np.int16) - before).mean() for before, after in pairwise(frames)]
    return float(np.mean(changes))


def temporal_flickering(difference: float) -> float:
    """Return VBench's temporal flickering, 1 for a still video, from the mean difference between frames."""
    return (255 - difference) / 255
