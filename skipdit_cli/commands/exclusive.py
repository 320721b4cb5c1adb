"""Parameters that exclude each other."""

from __future__ import annotations

from dataclasses import fields
from itertools import combinations

from skipdit_cli.sampling.cache_settings import CacheSettings

EXCLUSIVE = (
    {"model_argument", "model"},
    {"class_labels", "prompt"},
    {"class_labels", "prompts_file"},
    {"prompt", "prompts_file"},
    {"timesteps", "num_inference_steps"},
    {"num_train_epochs", "max_train_steps"},
)
"""Parameters that exclude each other: one that is set removes the other of a lower layer."""
RULES = [{"cache_interval", "cache_window"}, {"full_steps"}, {"cache_threshold"}, {"target_speedup"}]
EXCLUSIVE_OF = {
    "sample": (
        *({a, b} for one, other in combinations(RULES, 2) for a in one for b in other),
        *({"cache", other.name} for other in fields(CacheSettings) if other.name != "cache"),
    )
}
"""The same for one command; ``bench`` takes both and measures both."""
