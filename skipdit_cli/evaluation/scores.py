"""The scores of samples against a reference: every metric that a feature network allows, and why not the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from skipdit_cli.console import count
from skipdit_cli.errors import UsageError
from skipdit_cli.evaluation.distances import (
    NEIGHBOURS,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from skipdit_cli.evaluation.feature_network import FeatureNetwork
from skipdit_cli.evaluation.feature_statistics import Moments, Statistics, features
from skipdit_cli.evaluation.frame_measures import temporal_flickering

METRICS = ("fid", "sfid", "kid", "inception_score", "precision", "recall")
"""The metrics by name; ``kid`` and ``inception_score`` come with their standard deviations."""
ENOUGH = 10_000
"""Samples from which on the bias of FID is small (Binkowski et al., arXiv 1801.01401, section 4.1)."""
INCEPTION_CLASSES = 1008
"""The logits of the TensorFlow Inception network of FID, whose classes are not in the order of ImageNet's labels."""

Images = Statistics | np.ndarray | Iterable[np.ndarray]


def score(images: Images, reference: Images | None, network: FeatureNetwork, metrics: Sequence[str] = METRICS) -> dict:
    """Return the scores of samples against a reference.

    Args:
        images: The samples: statistics from ``features``, an array of uint8 (N, H, W, C), or an iterator of batches.
        reference: The same of the real images; None leaves the metrics that need one null.
        metrics: Those to compute, of ``METRICS``.

    Returns:
        ``fid``, ``sfid``, ``kid``, ``kid_std``, ``inception_score``, ``inception_score_std``, ``precision`` and
        ``recall``, null where the network or the reference does not allow it; ``reasons`` says why, by metric; and
        ``num_samples`` and ``num_reference``.

    Raises:
        UsageError: There are fewer than 2 samples or images of the reference, or the two have features of different
            sizes.
    """
    samples, real = _statistics(images, network), None if reference is None else _statistics(reference, network)
    _check(samples, real)
    reasons = {name: reason for name in METRICS if (reason := _reason(name, metrics, samples, real))}
    scores: dict = dict.fromkeys(("fid", "sfid", "kid", "kid_std", "inception_score", "inception_score_std"))
    scores |= dict.fromkeys(("precision", "recall"))
    if "fid" not in reasons:
        scores["fid"] = _frechet(samples.moments, real.moments if real else None)
    if "sfid" not in reasons:
        scores["sfid"] = _frechet(samples.spatial, real.spatial if real else None)
    if "kid" not in reasons:
        scores["kid"], scores["kid_std"] = kernel_distance(*_vectors(samples, real))
    logits = samples.logits
    if "inception_score" not in reasons and logits is not None:
        scores["inception_score"], scores["inception_score_std"] = inception_score(logits)
    if not {"precision", "recall"} <= set(reasons):
        pair = dict(zip(("precision", "recall"), precision_recall(*_vectors(samples, real))))
        scores |= {name: value for name, value in pair.items() if name not in reasons}
    counts = {"num_samples": samples.samples, "num_reference": real.samples or None if real else None}
    return {**scores, "reasons": reasons, **counts}


def agreement(statistics: Statistics, labels: Sequence[int]) -> float | None:
    """Return the share of samples that the network classifies as their class label; None without logits.

    Args:
        labels: The class label of each sample, in the order of the samples.
    """
    logits = statistics.logits
    return None if logits is None else float((logits.argmax(axis=1) == np.asarray(labels)).mean())


def agreement_of(statistics: Statistics, labels: Sequence[int] | None) -> tuple[dict, dict]:
    """Return ``agreement`` under its name, null with a reason where it is not known."""
    logits = statistics.logits
    reason = None
    if logits is None:
        reason = "the network returns no logits"
    elif labels is None:
        reason = "the samples record no class label"
    elif len(logits) != len(labels):
        reason = "the samples are videos"
    elif logits.shape[1] == INCEPTION_CLASSES:
        reason = f"the {INCEPTION_CLASSES:,} classes of Inception are in an order of their own"
    elif max(labels) >= logits.shape[1]:
        reason = f"class label {max(labels)} is none of the network's {logits.shape[1]} classes"
    if reason is not None or labels is None:
        return {"agreement": None}, {"agreement": reason}
    return {"agreement": agreement(statistics, labels)}, {}


def frame_scores(statistics: Statistics) -> tuple[dict, dict]:
    """Return the measures of the frames of videos, averaged over videos, null with a reason for images."""
    names = ("subject_consistency", "temporal_flickering", "frame_difference")
    if not statistics.frame_measures:
        reason = "the samples are no videos of 2 frames or more"
        return dict.fromkeys(names), dict.fromkeys(names, reason)
    difference, consistency = np.mean(statistics.frame_measures, axis=0).tolist()
    values = {"temporal_flickering": temporal_flickering(difference), "frame_difference": difference}
    if np.isnan(consistency):
        return {"subject_consistency": None, **values}, {"subject_consistency": "the network takes videos, not frames"}
    return {"subject_consistency": consistency, **values}, {}


def _statistics(images: Images, network: FeatureNetwork) -> Statistics:
    return images if isinstance(images, Statistics) else features(network, images)


def _check(samples: Statistics, real: Statistics | None) -> None:
    for name, statistics in (("of the samples", samples), ("of the reference", real)):
        if statistics is not None and (statistics.moments is None or statistics.count == 1):
            raise UsageError(f"Got {count(statistics.count, 'image')} {name}, but scores need at least 2; give more.")
    if real is not None and len(real.mean) != len(samples.mean):
        raise UsageError(
            f"Got a reference with features of size {len(real.mean)}, but the feature network returns "
            f"{len(samples.mean)}; give statistics of the same network, or the reference's images."
        )


def _reason(name: str, metrics: Sequence[str], samples: Statistics, real: Statistics | None) -> str | None:
    """Return why a metric is null, or None if it can be computed."""
    if name not in metrics:
        return "not requested"
    if name == "inception_score":
        return None if samples.logit_batches else "the network returns no logits"
    if real is None:
        return "no reference"
    if name == "sfid":
        if samples.spatial is None:
            return "the network returns no spatial features"
        return (
            None if real.spatial is not None else "the reference has no statistics of this network's spatial features"
        )
    if name in ("kid", "precision", "recall"):
        if real.features is None:
            return "the reference is a mean and a covariance, without features"
        if name != "kid" and min(samples.count, real.count) <= NEIGHBOURS:
            return f"needs more than {NEIGHBOURS} samples and as many images of the reference"
    return None


def _frechet(samples: Moments | None, real: Moments | None) -> float:
    assert samples is not None and real is not None
    return frechet_distance(samples.mean, samples.covariance, real.mean, real.covariance)


def _vectors(samples: Statistics, real: Statistics | None) -> tuple[np.ndarray, np.ndarray]:
    assert real is not None and samples.features is not None and real.features is not None
    return samples.features, real.features
