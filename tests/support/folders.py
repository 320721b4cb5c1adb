"""What folders hold, and the flags of short runs that fill one."""

import os
from pathlib import Path

TRAIN = ("--data", "digits", "--train-batch-size", 2, "--max-train-steps", 1, "--train", "skip")
SHORT = ("--steps", 2, "--batch-size", 1)
CALIBRATE = ("--scheduler", "dpm++", "--scheduler-spacing", "lu", "--num-samples", 2, "--num-held-out", 2)
CALIBRATE += ("--time-limit", 0)


def tree(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder, with contents."""
    held = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        held[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
    return held
