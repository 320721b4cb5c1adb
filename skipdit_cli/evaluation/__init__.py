"""Scores of samples: feature networks, statistics of features, and the distances between them."""

from skipdit_cli.evaluation.feature_network import FeatureNetwork, load_features
from skipdit_cli.evaluation.feature_statistics import Statistics, features
from skipdit_cli.evaluation.score import METRICS, agreement, score

__all__ = ["METRICS", "FeatureNetwork", "Statistics", "agreement", "features", "load_features", "score"]
