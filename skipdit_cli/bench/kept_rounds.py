"""The finished rounds of a bench, kept beside its output: what an interrupted one goes on from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from skipdit_cli import files
from skipdit_cli.bench.timing import Measured, interleave
from skipdit_cli.cache import CacheReport
from skipdit_cli.errors import UsageError, reading
from skipdit_cli.formats import to_json
from skipdit_cli.sampling.generate import Generated

MOST_BYTES = 1 << 26
ANEW = "the bench begins anew"
COSTS = ("denoise_seconds", "total_seconds", "cache_bytes", "steps", "calls", "full_steps")
"""The numbers of a ``Generated`` that are kept as they are."""

logger = logging.getLogger(__name__)


class KeptRounds:
    """The whole rounds of a bench, in two files beside its output until the report is written.

    Damaged files are not used: the bench begins anew, with a warning. A round that was interrupted is measured again,
    for its cases would not have run side by side.

    Args:
        output: The folder of the report; None keeps nothing.
        settings: All that the rows depend on, as plain data.
        overwrite: Begin anew where the settings are others.

    Attributes:
        sessions: The number of rounds that each process measured, this one last.

    Raises:
        UsageError: There are rounds of other settings.
    """

    def __init__(self, output: Path | None, settings: Mapping[str, object], overwrite: bool = False):
        self.path = None if output is None else output.with_name(f"{output.name}.partial.json")
        self.settings, self.sessions = to_json(dict(settings)), [0]
        self.kept: Any = None
        kept = None if self.path is None else files.read_checked(self.path, MOST_BYTES, ANEW)
        if kept is None:
            return
        if kept.get("settings") != self.settings:
            if not overwrite:
                raise UsageError(
                    f"Got {self.path}, of an interrupted bench with other settings, weights or versions; give the "
                    "same ones to go on, --overwrite to begin anew, or delete it."
                )
            return
        if not self._samples.is_file() or files.checksum(self._samples) != kept.get("samples"):
            logger.warning("%s is missing or damaged, so %s.", self._samples, ANEW)
            return
        with self._reading():
            self.kept, self.sessions = kept, [*map(int, kept["sessions"]), 0]

    @property
    def rounds(self) -> int:
        """The number of rounds from before."""
        return sum(self.sessions[:-1])

    @property
    def _samples(self) -> Path:
        return self.path.with_suffix(".safetensors")  # type: ignore[union-attr]  # there is an output

    def measure(
        self, cases: Sequence[Any], runs: Sequence[Callable[[], Generated]], rounds: int | None, device: torch.device
    ) -> dict[Any, Measured]:
        """Run the rounds that are left, and return the measurements of each case in all rounds.

        Args:
            cases: What the runs are of.
            runs, rounds, device: As for ``interleave``.
        """
        return dict(zip(cases, interleave(runs, rounds, device, self.restore(cases), partial(self.save, cases))))

    def restore(self, cases: Sequence[object]) -> Sequence[Measured | None]:
        """Return what was measured of each case; None of each where nothing was.

        Raises:
            UsageError: The rounds are of other cases, or are none.
        """
        if self.kept is None:
            return [None] * len(cases)
        if self.kept.get("cases") != list(map(repr, cases)):
            raise UsageError(f"Got {self.path}, of a bench with other rows; delete it, and run the bench again.")
        with self._reading():
            measured = self._read()
            if len(measured) != len(cases):
                raise ValueError(f"it has {len(measured)} cases")
        return measured

    def _reading(self) -> AbstractContextManager[None]:
        """Refuse files that are whole, and yet are not as a bench writes them."""
        return reading(f"Got {self.path}, which", "delete it, and run the bench again", "is not of a bench")

    def _read(self) -> list[Measured]:
        from safetensors.torch import load_file

        tensors, measured = load_file(self._samples), []
        for at, case in enumerate(self.kept["measured"]):
            images, report = tensors.get(f"{at}.images"), case["report"]
            first = Generated(
                images=None if images is None else images.numpy(),
                latents=tensors[f"{at}.latents"],
                report=None if report is None else CacheReport(**report),
                **{name: case["first"][name] for name in COSTS},
            )
            measured.append(Measured(case["seconds"], case["seconds_end_to_end"], case["peak_bytes"], first))
        return measured

    def save(self, cases: Sequence[object], measured: Sequence[Measured]) -> None:
        """Write what has been measured, after a whole round."""
        self.sessions[-1] += 1
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if sum(self.sessions) == 1:
            self._save_samples([each.first for each in measured])
        content: dict[str, Any] = {"settings": self.settings, "sessions": self.sessions}
        content |= {"cases": list(map(repr, cases)), "samples": files.checksum(self._samples)}
        content["measured"] = [
            {
                "seconds": each.seconds,
                "seconds_end_to_end": each.seconds_end_to_end,
                "peak_bytes": each.peak_bytes,
                "report": each.first.report and vars(each.first.report),
                "first": {name: getattr(each.first, name) for name in COSTS},
            }
            for each in measured
        ]
        files.write_checked(self.path, content)

    def _save_samples(self, samples: Sequence[Generated]) -> None:
        from safetensors.torch import save_file

        tensors = {f"{at}.latents": each.latents.contiguous() for at, each in enumerate(samples)}
        images = {f"{at}.images": each.images for at, each in enumerate(samples) if each.images is not None}
        tensors |= {name: torch.from_numpy(array).contiguous() for name, array in images.items()}
        with files.replacing(self._samples) as part:
            save_file(tensors, part)

    def note(self) -> list[str]:
        """Return a sentence for the report where several processes measured the rounds."""
        counts = [count for count in self.sessions if count]
        if len(counts) < 2:
            return []
        return [
            f"This bench was interrupted and resumed: {len(counts)} processes measured its {sum(counts)} rounds "
            f"({' + '.join(map(str, counts))}), each of them whole."
        ]

    def remove(self) -> None:
        """Delete the files, for the report is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self._samples.unlink(missing_ok=True)
