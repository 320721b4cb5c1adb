"""The videos of a text-to-video model under the names that VBench reads, `PROMPT-INDEX.mp4`."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def name_for_vbench(videos: Sequence[str], prompts: Sequence[str], per_prompt: int, folder: str) -> int:
    """Link, or copy, videos into a folder by the names of VBench, and return how many there are.

    Args:
        videos: The files in the order of the prompts, ``per_prompt`` for each.
        prompts: The prompts.
        per_prompt: Videos of each prompt; VBench takes 5, and 25 for its dimension temporal_flickering.
        folder: The folder to fill.
    """
    target, counts = Path(folder), Counter[str]()
    target.mkdir(parents=True, exist_ok=True)
    for at, video in enumerate(videos):
        prompt = prompts[at // per_prompt]
        name = target / f"{prompt}-{counts[prompt]}.mp4"
        counts[prompt] += 1
        name.unlink(missing_ok=True)
        try:
            os.link(video, name)
        except OSError:
            shutil.copyfile(video, name)
    return len(videos)
