"""Scores of samples: feature networks, statistics of features, and the distances between them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skipdit_cli.evaluation.feature_network import FeatureNetwork, load_features
    from skipdit_cli.evaluation.feature_statistics import Statistics, features
    from skipdit_cli.evaluation.scores import METRICS, agreement, score

_HOMES = {
    "FeatureNetwork": "feature_network",
    "load_features": "feature_network",
    "Statistics": "feature_statistics",
    "features": "feature_statistics",
    "METRICS": "scores",
    "agreement": "scores",
    "score": "scores",
}
__all__ = ["METRICS", "FeatureNetwork", "Statistics", "agreement", "features", "load_features", "score"]


def __getattr__(name: str) -> Any:
    """Import a name where it is used: the settings of ``skipdit evaluate`` are read without torch."""
    if name in _HOMES:
        return getattr(import_module(f"skipdit_cli.evaluation.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'skipdit_cli.evaluation' has no attribute '{name}'")
