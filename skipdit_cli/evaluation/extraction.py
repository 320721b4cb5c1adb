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
from skipdit_cli.evaluation.shared_batches import share_batches
from skipdit_cli.processes import Team

INTERVAL = 60.0
"""Seconds from one time that unfinished statistics are kept to the next."""


def extract(
    images: ImageSet,
    network: FeatureNetwork,
    batch_size: int,
    is_reference: bool,
    advance: Callable[[int], object] = lambda count: None,
    team: Team = Team(),
) -> Statistics:
    """Return the statistics of a set of images or videos; in all processes but the main one, empty ones.

    Several processes share the batches; the main one adds them in their order, so that the statistics are those of
    one process. They are kept in the user's cache folder: those of a reference for good, those of samples while they
    are unfinished, every minute and where the run fails or is interrupted.

    Args:
        advance: Called with the number of samples that are done.
        team: The processes that share the work.

    Raises:
        UsageError: The network takes videos and these are images, or an image cannot be read.
    """
    if network.takes_videos and images.kind != "videos":
        raise UsageError(
            f"Got {images.name}, which holds images, but --features {network.name} is a network of videos; give "
            "videos, or a network of images."
        )
    cache = StatisticsCache(images, network)
    statistics = (cache.read() if team.is_main else None) or Statistics(network.settings())
    advance(statistics.samples)
    batches = images.batches(team.broadcast(statistics.samples), batch_size)
    last, is_whole = time.monotonic(), True
    try:
        for batch, (outputs, measures) in share_batches(
            images, batches, lambda pixels, _: _measure(pixels, network), team
        ):
            is_whole = False
            statistics.add(outputs, batch.stop - batch.start)
            statistics.frame_measures += measures
            is_whole = True
            advance(batch.stop - batch.start)
            if time.monotonic() - last > INTERVAL:
                cache.write(statistics)
                last = time.monotonic()
    except BaseException as cause:
        if statistics.samples and is_whole and not isinstance(cause, UsageError):
            cache.write(statistics)
        raise
    if team.is_main and is_reference:
        cache.write(statistics)
    elif team.is_main:
        cache.discard()
    return statistics


def _measure(pixels: np.ndarray, network: FeatureNetwork) -> tuple[FeatureBatch, list[tuple[float, float]]]:
    outputs = network(pixels)
    return outputs, _measure_frames(pixels, outputs, network)


def _measure_frames(batch: np.ndarray, outputs: FeatureBatch, network: FeatureNetwork) -> list[tuple[float, float]]:
    """Return the mean difference between frames and the subject consistency of each video; nothing of images."""
    if batch.ndim != 5 or batch.shape[1] < 2:
        return []
    frames = None if network.takes_videos else outputs.features.reshape(*batch.shape[:2], -1)
    return [
        (frame_difference(video), float("nan") if frames is None else subject_consistency(frames[at]))
        for at, video in enumerate(batch)
    ]
