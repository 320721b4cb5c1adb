"""The journal of a calibration: what an interrupted one goes on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from skipdit_cli import files
from skipdit_cli.errors import UsageError
from skipdit_cli.formats import is_number, to_json

SAVED_EVERY = 25
"""Candidates between two writes."""
MOST_BYTES = 1 << 26


class Journal:
    """The accuracies that a calibration has measured, in a file beside its output until it is complete.

    A damaged file is not used: the calibration begins anew, with a warning.

    Args:
        output: What the calibration writes.
        settings: All that its results depend on, as plain data.

    Attributes:
        results: Candidate's key to the accuracy of its samples, as of ``Evaluator``.

    Raises:
        UsageError: The file is of a calibration with other settings.
    """

    def __init__(self, output: Path, settings: Mapping[str, object]):
        self.path, self.settings, self.count = output.with_name(f"{output.name}.partial.json"), to_json(settings), 0
        self.results: dict[str, list[float]] = self._read()

    def _read(self) -> dict[str, list[float]]:
        kept = files.read_checked(self.path, MOST_BYTES, "the calibration begins anew")
        if kept is None:
            return {}
        if kept.get("settings") != self.settings:
            raise UsageError(
                f"Got {self.path}, of an interrupted calibration with other settings, weights or versions; give the "
                "same ones to go on, or delete it."
            )
        results: Any = kept.get("results")
        lists = results.values() if isinstance(results, dict) else [None]
        if not all(isinstance(each, list) and all(map(is_number, each)) for each in lists):
            raise UsageError(f"Got {self.path}, which is of no calibration; delete it, and calibrate again.")
        return results

    def after(self, advance: Callable[[], None]) -> Callable[[], None]:
        """Return what to call after each candidate: it advances the progress, and writes from time to time."""

        def tried() -> None:
            self.count += 1
            if self.count % SAVED_EVERY == 0:
                self.write()
            advance()

        return tried

    def write(self) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_checked(self.path, {"settings": self.settings, "results": self.results})

    def remove(self) -> None:
        """Delete the file, for the calibration is complete."""
        self.path.unlink(missing_ok=True)
