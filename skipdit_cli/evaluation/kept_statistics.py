"""Statistics in files: those of a reference, kept in the user's cache folder, and .npz files for others."""

from __future__ import annotations

import hashlib
import json
import logging
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

ROUNDING = 1e-5
"""The rounding error of a covariance in float32, relative to its largest value."""

logger = logging.getLogger(__name__)


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
    count, samples = map(int, arrays["counts"]) if "counts" in arrays else (0, 0)
    if min(count, samples) < 0:
        raise UsageError(f"Got {path}, statistics of {count} vectors of {samples} images; make them again.")
    moments = _moments(mean, covariance, count, path)
    if not settings:  # of another tool, whose further arrays are not known
        if not _is_covariance(covariance):
            problem = "it is not symmetric, or has negative eigenvalues"
            raise UsageError(f"Got {path}, whose sigma is no covariance: {problem}; make the statistics again.")
        return Statistics(settings, moments, samples=samples)
    spatial = _moments(arrays["mu_s"], arrays["sigma_s"], count, path) if "mu_s" in arrays else None
    sizes = {"features": len(mean), "keys": None, "logits": None, "frame_measures": 2}
    rows = {name: _rows(arrays[name], name, size, path) for name, size in sizes.items() if name in arrays}
    features, keys = rows.get("features"), rows.get("keys")
    if (features is None) != (keys is None) or (features is not None and len(features) != len(rows["keys"])):
        raise UsageError(f"Got {path}, whose features and keys differ in number; make the statistics again.")
    measures = [tuple(row) for row in rows.get("frame_measures", ())]
    logits = [rows["logits"]] if "logits" in rows else []
    return Statistics(settings, moments, spatial, features, keys, logits, samples, measures)


def _rows(array: np.ndarray, name: str, size: int | None, path: Path) -> np.ndarray:
    """Return an array of one row per vector or image; the measures of frames may hold NaN."""
    is_valid = array.ndim == (1 if name == "keys" else 2) and (size is None or array.shape[1] == size)
    if not is_valid or array.dtype.kind not in "fu" or not (name == "frame_measures" or np.isfinite(array).all()):
        raise UsageError(f"Got {path} with {name} {array.shape} of {array.dtype}, which is damaged; make it again.")
    return array


def _is_covariance(matrix: np.ndarray) -> bool:
    """Return whether a matrix is symmetric and positive semi-definite, but for rounding errors of float32."""
    values, scale = matrix.astype(np.float64), ROUNDING * max(float(np.abs(matrix).max()), 1e-30)
    return bool(np.abs(values - values.T).max() <= scale and np.linalg.eigvalsh(values)[0] >= -scale * len(values))


def _moments(mean: np.ndarray, covariance: np.ndarray, count: int, path: Path) -> Moments:
    is_valid = mean.ndim == 1 and covariance.shape == (len(mean), len(mean)) and mean.dtype.kind == "f"
    if not is_valid or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UsageError(
            f"Got {path} with mu {mean.shape} and sigma {covariance.shape}; expected (D,) and (D, D), finite."
        )
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
        try:
            return load_statistics(self.path, self.network) if self.path.is_file() else None
        except (UsageError, OSError, KeyError, ValueError):
            logger.warning("%s is damaged, so its statistics are computed again.", self.path)
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
