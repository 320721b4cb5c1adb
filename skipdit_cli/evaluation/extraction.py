"""The statistics of a set of images or videos, computed batch by batch; an interrupted run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.evaluation.feature_network import FeatureBatch, FeatureNetwork
from skipdit_cli.evaluation.feature_statistics import Statistics
from skipdit_cli.evaluation.frame_measures import frame_difference, subject_consistency
from skipdit_cli.evaluation.image_set import ImageSet
from skipdit_cli.evaluation.kept_statistics import StatisticsCache
from skipdit_cli.processes import Team

T = TypeVar("T")
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


def share_batches(
    images: ImageSet, batches: Sequence[slice], measure: Callable[[np.ndarray, slice], T], team: Team = Team()
) -> Iterator[tuple[slice, T]]:
    """Yield each batch with what is measured of it, in their order, in the main process; nothing in the others.

    Each process reads and measures every batch of its share; a batch is the same whoever measures it.

    Args:
        images: The images.
        batches: Slices of the images, ascending.
        measure: Returns what is measured, given the pixels of a batch and its slice.
        team: The processes.

    Raises:
        UsageError: A process cannot read an image; all of them stop.
    """
    own = iter(zip(team.share(list(batches)), images.read(team.share(list(batches)))))
    for start in range(0, len(batches), team.count):
        result: T | None = None
        failure: tuple[str, int] | None = None
        try:
            if start + team.rank < len(batches):
                batch, pixels = next(own)
                result = measure(pixels, batch)
        except Exception as cause:
            if team.count == 1:
                raise
            is_ours = isinstance(cause, SkipditError)
            failure = str(cause) if is_ours else f"{type(cause).__name__}: {first_line(cause)}.", _exit_code(cause)
        shares = team.gather((result, failure))
        team.on_main(lambda shares=shares: _check(shares))  # type: ignore[misc]
        yield from ((batch, result) for batch, (result, _) in zip(batches[start:], shares))  # type: ignore[misc]


def _exit_code(cause: Exception) -> int:
    return getattr(cause, "exit_code", SkipditError.exit_code)


def _check(shares: Sequence[tuple[object, tuple[str, int] | None]]) -> None:
    """Raise the first failure of a process."""
    for _, failure in shares:
        if failure is not None:
            sentence, code = failure
            raise (UsageError if code == UsageError.exit_code else SkipditError)(sentence)
