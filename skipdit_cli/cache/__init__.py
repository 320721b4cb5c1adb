"""Skip-Cache: which steps are full, what is remembered, and how it is put on a model."""

from skipdit_cli.cache.enable import disable_skip_cache, enable_skip_cache
from skipdit_cli.cache.forecast import FORECASTS
from skipdit_cli.cache.generation.report import CacheReport
from skipdit_cli.cache.policy import TARGETS, CachePolicy
from skipdit_cli.cache.skip_cache import SkipCache

__all__ = [
    "FORECASTS",
    "TARGETS",
    "CachePolicy",
    "CacheReport",
    "SkipCache",
    "disable_skip_cache",
    "enable_skip_cache",
]
