"""The statistics of a set of images or videos, computed batch by batch; an interrupted run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from skipdit_cli.errors import UsageError
from skipdit_cli.evaluation.feature_network import FeatureBatch, FeatureNetwork
from skipdit_cli.evaluation.feature_statistics import Statistics
from skipdit_cli.evaluation.frame_measures import frame_difference, subject_consistency
from skipdit_cli.evaluation.image_set import ImageSet
from skipdit_cli.evaluation.kept_statistics import StatisticsCache

INTERVAL = 60.0
"""Seconds from one time that unfinished statistics are kept to the next."""


def extract(
    images: ImageSet,
    network: FeatureNetwork,
    batch_size: int,
    is_reference: bool,
    advance: Callable[[int], object] = lambda count: None,
) -> Statistics:
    """Return the statistics of a set of images or videos.

    Those of a reference are kept in the user's cache folder. Those of samples are kept there while they are
    unfinished, every minute and where the run fails or is interrupted.

    Args:
        advance: Called with the number of samples that are done.

    Raises:
        UsageError: The network takes videos and these are images, or an image cannot be read.
    """
    if network.takes_videos and images.kind != "videos":
        raise UsageError(
            f"Got {images.name}, which holds images, but --features {network.name} is a network of videos; give "
            "videos, or a network of images."
        )
    cache = StatisticsCache(images, network)
    statistics = cache.read() or Statistics(network.settings())
    advance(statistics.samples)
    last, is_whole = time.monotonic(), True
    try:
        for batch in images.read(statistics.samples, batch_size):
            outputs = network(batch)
            measures = _measure_frames(batch, outputs, network)
            is_whole = False
            statistics.add(outputs, len(batch))
            statistics.frame_measures += measures
            is_whole = True
            advance(len(batch))
            if time.monotonic() - last > INTERVAL:
                cache.write(statistics)
                last = time.monotonic()
    except BaseException as cause:
        if statistics.samples and is_whole and not isinstance(cause, UsageError):
            cache.write(statistics)
        raise
    if is_reference:
        cache.write(statistics)
    else:
        cache.discard()
    return statistics


def _measure_frames(batch: np.ndarray, outputs: FeatureBatch, network: FeatureNetwork) -> list[tuple[float, float]]:
    """Return the mean difference between frames and the subject consistency of each video; nothing of images."""
    if batch.ndim != 5 or batch.shape[1] < 2:
        return []
    frames = None if network.takes_videos else outputs.features.reshape(*batch.shape[:2], -1)
    return [
        (frame_difference(video), float("nan") if frames is None else subject_consistency(frames[at]))
        for at, video in enumerate(batch)
    ]
