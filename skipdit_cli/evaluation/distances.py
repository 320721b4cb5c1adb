"""Distances between two sets of features: FID, KID and Inception Score by torchmetrics, precision and recall here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from skipdit_cli.errors import SkipditError, UsageError, install_extra

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
INCEPTION_SPLITS = 10
NEIGHBOURS = 3
"""k of the k-th nearest neighbour that bounds a manifold in precision and recall."""
ROWS = 1000


class Identity(torch.nn.Module):
    """A feature network for torchmetrics that takes features for images.

    Args:
        num_features: D, which torchmetrics reads.
    """

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return features as they are."""
        return features


def check_torchmetrics() -> None:
    """Check that torchmetrics is installed.

    Raises:
        UsageError: It is not.
    """
    if find_spec("torchmetrics") is None:
        raise UsageError(f"Scores of images need the package torchmetrics: run {install_extra('eval')}.")


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, reference_mean: np.ndarray, reference_covariance: np.ndarray
) -> float:
    """Return the squared Frechet distance between two normal distributions, in float64, by torchmetrics.

    Of Inception features it is the FID (Heusel et al., arXiv 1706.08500), of spatial features the sFID (Nash et al.,
    arXiv 2103.03841), of a network of videos the FVD (Unterthiner et al., arXiv 1812.01717).

    Args:
        mean, reference_mean: (D,).
        covariance, reference_covariance: (D, D).
    """
    with _torchmetrics() as metrics:
        metric: Any = metrics.image.fid.FrechetInceptionDistance(feature=Identity(len(mean)))
        metric.set_dtype(torch.float64)
        moments = ((True, reference_mean, reference_covariance), (False, mean, covariance))
        for is_real, centre, spread in moments:
            # Two points hold the mean exactly, and the covariance is set through the sums that torchmetrics keeps.
            point = torch.from_numpy(np.asarray(centre, np.float64))
            metric.update(point.expand(2, -1), real=is_real)
            side = "real" if is_real else "fake"
            sums = getattr(metric, f"{side}_features_cov_sum")
            sums += torch.from_numpy(np.asarray(spread, np.float64))  # of N - 1 = 1 degree of freedom
        return float(metric.compute())


def kernel_distance(
    features: np.ndarray, reference: np.ndarray, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE
) -> tuple[float, float]:
    """Return the KID, its mean and standard deviation over random subsets, in float64 (Binkowski et al., arXiv
    1801.01401), by torchmetrics.

    Args:
        features: (N, D).
        reference: (M, D).
        subset_size: The vectors of a subset; fewer where N or M is less.
    """
    size = min(subset_size, len(features), len(reference))
    with _torchmetrics() as metrics:
        metric: Any = metrics.image.kid.KernelInceptionDistance(
            feature=Identity(features.shape[1]), subsets=subsets, subset_size=size
        )
        metric.update(torch.from_numpy(reference.astype(np.float64)), real=True)
        metric.update(torch.from_numpy(features.astype(np.float64)), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def inception_score(logits: np.ndarray, splits: int = INCEPTION_SPLITS) -> tuple[float, float | None]:
    """Return the Inception Score, its mean and standard deviation over splits (Salimans et al., arXiv 1606.03498), by
    torchmetrics.

    Args:
        logits: (N, classes).
    """
    with _torchmetrics() as metrics:
        metric: Any = metrics.image.inception.InceptionScore(
            feature=Identity(logits.shape[1]), splits=min(splits, len(logits))
        )
        metric.update(torch.from_numpy(logits.astype(np.float64)))
        mean, deviation = metric.compute()
    return float(mean), float(deviation) if torch.isfinite(deviation) else None


def precision_recall(features: np.ndarray, reference: np.ndarray, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Return the improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991, algorithm 1).

    Precision is the share of samples that lie within the manifold of the reference: in the ball around one of its
    vectors that reaches to its k-th nearest neighbour. Recall is the same with the two sets exchanged.

    Args:
        features: (N, D), N > k.
        reference: (M, D), M > k.
    """
    samples, real = (torch.from_numpy(values.astype(np.float64)) for values in (features, reference))
    return _share_within(samples, real, k), _share_within(real, samples, k)


def _share_within(points: torch.Tensor, manifold: torch.Tensor, k: int) -> float:
    """Return the share of points that lie in a ball of the manifold."""
    radii = torch.cat([torch.cdist(rows, manifold).kthvalue(k + 1, dim=1).values for rows in manifold.split(ROWS)])
    within = [(torch.cdist(rows, manifold) <= radii).any(dim=1) for rows in points.split(ROWS)]
    return float(torch.cat(within).double().mean())


@contextmanager
def _torchmetrics() -> Iterator[Any]:
    """Import torchmetrics' image metrics; random draws are seeded, and its advice on memory is silenced."""
    check_torchmetrics()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            import torchmetrics
            import torchmetrics.image.fid
            import torchmetrics.image.inception
            import torchmetrics.image.kid
        except ImportError as cause:
            raise SkipditError(f"torchmetrics cannot be imported: {cause}.") from cause
        torch.manual_seed(0)
        yield torchmetrics
