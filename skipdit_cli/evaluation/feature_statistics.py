"""The statistics of features, accumulated batch by batch: what every score is computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from skipdit_cli.errors import UsageError
from skipdit_cli.evaluation.feature_network import FeatureBatch, FeatureNetwork

MOST_VECTORS = 10_000
"""Feature vectors that are kept for KID, precision and recall: all, or a random subset of this many."""
BATCH = 256


@dataclass
class Moments:
    """The mean and the covariance of vectors, in float64; ``add`` merges batches (Chan et al. 1979).

    Attributes:
        count: N, the number of vectors.
        mean: (D,).
        scatter: (D, D), the sum of the outer products of the deviations from the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Return the moments of no vectors of ``size`` elements."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def add(self, vectors: np.ndarray) -> None:
        """Add vectors, (n, D)."""
        vectors = vectors.astype(np.float64)
        number, mean = len(vectors), vectors.mean(axis=0)
        difference, total = mean - self.mean, self.count + len(vectors)
        deviations = vectors - mean
        self.scatter += deviations.T @ deviations
        self.scatter += np.outer(difference, difference) * (self.count * number / total)
        self.mean = self.mean + difference * (number / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, (D, D)."""
        return self.scatter / max(self.count - 1, 1)


@dataclass
class Statistics:
    """The statistics of the features of many images or videos.

    Memory holds at most ``MOST_VECTORS`` feature vectors and, where the network has them, a row of logits per image.

    Attributes:
        settings: What the features depend on, from ``FeatureNetwork.settings``.
        moments: Those of the features; None before the first batch.
        spatial: Those of the spatial features; None if the network returns none.
        features: (n, D) float32, at most ``MOST_VECTORS`` feature vectors drawn at random; None if they are not known.
        logits: (N, classes) float32, in the order of the images; None if the network returns none.
        samples: The number of images or videos; less than ``count`` where each frame of a video has features.
        frame_measures: Of each video, the mean difference between frames and the subject consistency.
    """

    settings: dict = field(default_factory=dict)
    moments: Moments | None = None
    spatial: Moments | None = None
    features: np.ndarray | None = None
    keys: np.ndarray | None = None
    logit_batches: list[np.ndarray] = field(default_factory=list)
    samples: int = 0
    frame_measures: list[tuple[float, float]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """N, the number of feature vectors that were added."""
        return 0 if self.moments is None else self.moments.count

    @property
    def mean(self) -> np.ndarray:
        """The mean of the features, (D,) float64."""
        assert self.moments is not None
        return self.moments.mean

    @property
    def covariance(self) -> np.ndarray:
        """The covariance of the features, (D, D) float64."""
        assert self.moments is not None
        return self.moments.covariance

    @property
    def logits(self) -> np.ndarray | None:
        """The logits, (N, classes), or None."""
        return np.concatenate(self.logit_batches) if self.logit_batches else None

    def _sizes(self, batch: FeatureBatch) -> Iterator[tuple[str, int, np.ndarray | None]]:
        """Yield the name, the size in earlier batches and the values of each output of a network."""
        if self.moments is not None:
            yield "features", len(self.moments.mean), batch.features
        if self.spatial is not None:
            yield "spatial features", len(self.spatial.mean), batch.spatial
        if self.logit_batches:
            yield "logits", self.logit_batches[0].shape[1], batch.logits

    def add(self, batch: FeatureBatch, samples: int) -> None:
        """Add the features of a batch of so many images or videos.

        Raises:
            UsageError: They have another size than those of earlier batches.
        """
        for name, size, values in self._sizes(batch):
            if values is not None and values.shape[1] != size:
                raise UsageError(
                    f"Got {name} of {size} and of {values.shape[1]} values from the feature network; give "
                    "--feature-size, or a network whose output does not depend on the batch."
                )
        self.samples += samples
        keys = _random_keys(self.count, len(batch.features))
        if self.moments is None:
            self.moments = Moments.empty(batch.features.shape[1])
            self.spatial = None if batch.spatial is None else Moments.empty(batch.spatial.shape[1])
        self.moments.add(batch.features)
        if self.spatial is not None and batch.spatial is not None:
            self.spatial.add(batch.spatial)
        if batch.logits is not None:
            self.logit_batches.append(batch.logits)
        if self.features is not None and self.keys is not None:
            keys = np.concatenate([self.keys, keys])
            features = np.concatenate([self.features, batch.features])
        else:
            features = batch.features
        if len(keys) > MOST_VECTORS:
            indices = np.sort(np.argpartition(keys, MOST_VECTORS)[:MOST_VECTORS])
            features, keys = features[indices], keys[indices]
        self.features, self.keys = features, keys


def _random_keys(start: int, count: int) -> np.ndarray:
    """Return a random number for each vector by its index (SplitMix64); those with the smallest ones are kept, so that
    the choice does not depend on the batches."""
    with np.errstate(over="ignore"):
        key = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))


def features(
    network: FeatureNetwork,
    images: np.ndarray | Iterable[np.ndarray],
    advance: Callable[[int], object] | None = None,
) -> Statistics:
    """Return the statistics of the features of images or videos.

    Args:
        images: uint8 (N, H, W, C) with C of 1 or 3, (N, H, W) in grey, or videos (N, T, H, W, C); or an iterator of
            batches of these.
        advance: Called after each batch with its number of images.
    """
    if isinstance(images, np.ndarray):
        images = [images[at : at + BATCH] for at in range(0, len(images), BATCH)]
    statistics = Statistics(network.settings())
    for batch in images:
        statistics.add(network(batch), len(batch))
        if advance is not None:
            advance(len(batch))
    return statistics
