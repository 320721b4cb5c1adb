"""How large a number may be, wherever it comes from: what no run could use is refused at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

from skipdit_cli.errors import UsageError

MOST = {
    **dict.fromkeys(("height", "width", "sample_size"), 16_384),
    **dict.fromkeys(("num_inference_steps", "image_frames", "frame_stride", "rounds", "warmup"), 10_000),
    "samples_per_digit": 10_000,
    **dict.fromkeys(("num_frames", "num_attention_heads"), 100_000),
    **dict.fromkeys(("train_batch_size", "gradient_accumulation_steps"), 100_000),
    "dataloader_num_workers": 1_000,
}
"""By parameter, far above what is of use; of results ``sample`` and ``bench`` know what fits into memory."""
ELSE = 2**32 - 1
"""Of any other: what fits every seed of numpy."""
MOST_LETTERS, MOST_ITEMS, MOST_OF_LENGTH, MOST_WHOLE = 100_000, 10_000, 16_384, 2**24
"""Of one ``--pipeline-arg``: its text, the values in it, a length or count of something, any other whole number."""


def check_most(given: Mapping[str, object]) -> None:
    """
    Args:
        given: A command's parameters.
    Raises:
        UsageError: One is larger than a run can use, or no number at all (NaN, infinity).
    """
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"Got --{name.replace('_', '-')} {value} but expected a number.")
        most = MOST.get(name, ELSE)
        if isinstance(value, int) and value > most:
            raise UsageError(f"Got --{name.replace('_', '-')} {_short(value)} but expected at most {most}.")


def check_argument(name: str, value: object) -> None:
    """
    Args:
        value: Of a ``--pipeline-arg``, as YAML reads it.
    Raises:
        UsageError: It is no plain value, or asks for more than a run can use.
    """
    most = MOST_OF_LENGTH if any(word in name for word in ("length", "num_", "frames", "size")) else MOST_WHOLE
    open_lists, seen = [value], 0
    while open_lists:
        item = open_lists.pop()
        seen += 1
        if isinstance(item, (list, tuple, dict)):
            open_lists += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and abs(item) > most:
            raise UsageError(f"Got --pipeline-arg {name}={_short(item)} but expected at most {most}.")
        elif isinstance(item, float) and not math.isfinite(item):
            raise UsageError(f"Got --pipeline-arg {name}={item}, but NaN and infinity are no numbers to go by.")
        elif not isinstance(item, (str, bool, int, float, type(None))):
            kind = type(item).__name__
            raise UsageError(f"Got --pipeline-arg {name} with a {kind} in it; expected numbers, texts and lists.")
        if seen > MOST_ITEMS or len(open_lists) > MOST_ITEMS:
            raise UsageError(f"Got --pipeline-arg {name} with more than {MOST_ITEMS} values in it; leave it out.")


def _short(number: int) -> str:
    """Python writes no number of above 4,300 digits."""
    return str(number) if number.bit_length() < 200 else "of over 60 digits"
