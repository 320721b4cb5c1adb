"""Check that the inputs of a command do not lie where it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError


def check_apart(output: Path, reads: Mapping[str, object]) -> None:
    """Check that an output file or folder can be replaced without destroying an input.

    Args:
        reads: Inputs by flag, or by a noun. Values that are no existing path (a hub id, a name) are skipped.
    Raises:
        UsageError: The output is an input, or contains one, possibly through a link.
    """
    for flag, value in _paths(reads):
        for place in _places(value) if os.path.lexists(output) else (value,):
            if _is_same(output, place):
                subject = f"{_describe(flag, value) if flag[0] == '-' else f'the {flag}'} itself"
                raise UsageError(f"Output {output} is {subject}; give another --output.")
            if any(_is_same(output, above) for above in place.parents):
                raise UsageError(
                    f"Output {output} is a folder that {_describe(flag, value)} lies in; give another --output."
                )


def check_outside(output: Path, reads: Mapping[str, object], flag: str = "--output") -> None:
    """Check that an output does not lie inside a folder that is read as a whole, as those of models and data are.

    Args:
        reads: As for ``check_apart``.
        flag: The flag of the output.
    Raises:
        UsageError: The output lies inside an input.
    """
    for source, value in _paths(reads):
        above = Path(os.path.realpath(output)).parents
        if value.is_dir() and any(_is_same(place, value) for place in above):
            raise UsageError(f"Output {output} lies inside {_describe(source, value)}; give another {flag}.")


def _paths(reads: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    for flag, value in reads.items():
        # os.path.exists() is False for a path that is too long, where Path.exists() raises.
        if value is not None and os.path.exists(os.path.expanduser(value)):
            yield flag, Path(value).expanduser()


def _places(path: Path) -> Iterator[Path]:
    """Yield where an input lies: its path, the target of that path, and the targets of the links in it."""
    yield Path(os.path.abspath(path))
    yield Path(os.path.realpath(path))
    for folder, below, files in os.walk(path):
        for name in (*below, *files):
            if os.path.islink(os.path.join(folder, name)):
                yield Path(os.path.realpath(os.path.join(folder, name)))


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths are the same place, also on a file system that ignores case."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def _describe(flag: str, path: Path) -> str:
    return f"the {flag} {path}" if flag.isalpha() else f"{flag} {path}"
