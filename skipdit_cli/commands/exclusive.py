"""Parameters that exclude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations, pairwise

from skipdit_cli.errors import UsageError
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


def check_once(command, arguments: Sequence[str]) -> None:
    """Refuse a file of settings that is typed twice where only the last would count.

    Args:
        command: The Click command.
        arguments: The command line.

    Raises:
        UsageError: A plan, a preset or a record is typed twice.
    """
    names = {opt for p in command.params if not getattr(p, "multiple", False) for opt in p.opts}
    for flag in names & {"--plan", "--preset", "--sweep", "--from"}:
        values = [after for before, after in pairwise(arguments) if before == flag]
        values += [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{flag}=")]
        if len(values) > 1:
            raise UsageError(f"Got {flag} twice, {values[0]} and {values[1]}; give one of the two.")
