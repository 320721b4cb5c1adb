"""Statistics in files: those of a reference, kept in the user's cache folder, and .npz files for others."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.evaluation.feature_network import FeatureNetwork
from skipdit_cli.evaluation.feature_statistics import Moments, Statistics
from skipdit_cli.evaluation.image_set import ImageSet
from skipdit_cli.evaluation.npz_file import read_arrays
from skipdit_cli.files import cache_folder, replacing
from skipdit_cli.version import __version__


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics to an .npz file, as ``load_statistics`` reads them.

    The names of the mean and the covariance are those of pytorch-fid and ADM: ``mu`` and ``sigma``, of spatial
    features ``mu_s`` and ``sigma_s``.
    """
    moments = statistics.moments
    assert moments is not None
    counts = np.array([statistics.count, statistics.samples])
    arrays: dict[str, Any] = {"mu": moments.mean, "sigma": moments.covariance, "counts": counts}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    if statistics.features is not None:
        arrays |= {"features": statistics.features, "keys": statistics.keys}
    if statistics.logits is not None:
        arrays["logits"] = statistics.logits
    if statistics.frame_measures:
        arrays["frame_measures"] = np.array(statistics.frame_measures, np.float64)
    arrays["settings"] = np.array(json.dumps(statistics.settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def load_statistics(path: Path, network: FeatureNetwork) -> Statistics:
    """Read the statistics in an .npz file: ours, or a mean and a covariance of another tool.

    Raises:
        UsageError: The file is damaged, its arrays do not fit together, or it was made with another network or other
            settings.
    """
    arrays = read_arrays(path)
    with reading(f"Got {path}, which"):
        return _parse_statistics(arrays, path, network)


def _parse_statistics(arrays: dict[str, np.ndarray], path: Path, network: FeatureNetwork) -> Statistics:
    settings = dict(json.loads(str(arrays["settings"]))) if "settings" in arrays else {}
    expected = network.settings()
    for name in ("checksum", "image_size", "value_range", "layout", "num_frames"):
        if settings and settings.get(name) != expected[name]:
            raise UsageError(
                f"Got {path}, statistics with {name} {settings.get(name)}, but --features {network.name} has "
                f"{expected[name]}; give the same network and settings."
            )
    mean, covariance = arrays["mu"], arrays["sigma"]
    is_valid = mean.ndim == 1 and covariance.shape == (len(mean), len(mean)) and np.isfinite(covariance).all()
    if not is_valid or mean.dtype.kind != "f":
        raise UsageError(
            f"Got {path} with mu {mean.shape} and sigma {covariance.shape}; expected (D,) and (D, D) of numbers."
        )
    count, samples = map(int, arrays["counts"]) if "counts" in arrays else (0, 0)
    spatial = _moments(arrays["mu_s"], arrays["sigma_s"], count) if "mu_s" in arrays and settings else None
    logits = [arrays["logits"]] if "logits" in arrays and settings else []
    measures = [tuple(row) for row in arrays.get("frame_measures", ())]
    features, keys = (arrays.get(name) if settings else None for name in ("features", "keys"))
    moments = _moments(mean, covariance, count)
    return Statistics(settings, moments, spatial, features, keys, logits, samples, measures)


def _moments(mean: np.ndarray, covariance: np.ndarray, count: int) -> Moments:
    return Moments(count, mean.astype(np.float64), covariance.astype(np.float64) * max(count - 1, 1))


class StatisticsCache:
    """The statistics of one set of images by one network, in the user's cache folder; perhaps of its first images, by
    an interrupted run.

    Args:
        images, network: What the statistics are of.
    """

    def __init__(self, images: ImageSet, network: FeatureNetwork):
        basis = json.dumps([images.digest, images.kind, network.settings(), __version__])
        name = f"{hashlib.sha256(basis.encode()).hexdigest()[:40]}.npz"
        self.path, self.network = cache_folder("evaluation") / name, network

    def read(self) -> Statistics | None:
        """Return what is kept, or None."""
        with suppress(UsageError, OSError, KeyError, ValueError):
            return load_statistics(self.path, self.network) if self.path.is_file() else None
        return None

    def write(self, statistics: Statistics) -> bool:
        """Keep statistics; return whether the cache folder could be written."""
        with suppress(OSError):
            save_statistics(statistics, self.path)
            return True
        return False

    def discard(self) -> None:
        """Delete what is kept."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
