"""What a command reads must not lie where it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from skipdit_cli.errors import UsageError


def check_apart(output: Path, reads: Mapping[str, object]) -> None:
    """Whether an output, be it a file or a folder, can be replaced without a thing that is read.

    Args:
        reads: Flag, or a word for what it names, to its value: a path; what is none (a hub id, a name) is passed over.
    Raises:
        UsageError: The output is one of them, or one of them lies in it, also through a link.
    """
    for flag, value in _paths(reads):
        for place in _places(value) if os.path.lexists(output) else (value,):
            if _same(output, place):
                itself = f"{_named(flag, value) if flag[0] == '-' else f'the {flag}'} itself"
                raise UsageError(f"Output {output} is {itself}; give another --output.")
            if any(_same(output, above) for above in place.parents):
                raise UsageError(
                    f"Output {output} is a folder that {_named(flag, value)} lies in; give another --output."
                )


def check_outside(output: Path, reads: Mapping[str, object]) -> None:
    """Whether an output leaves the folders alone that are read whole: a model's, those of data.

    Args:
        reads: As for ``check_apart``.
    Raises:
        UsageError: The output lies inside one of them.
    """
    for flag, value in _paths(reads):
        above = Path(os.path.realpath(output)).parents
        if value.is_dir() and any(_same(place, value) for place in above):
            raise UsageError(f"Output {output} lies inside {_named(flag, value)}; give another --output.")


def _paths(reads: Mapping[str, object]) -> Iterator[tuple[str, Path]]:
    for flag, value in reads.items():
        if value is not None and os.path.exists(os.path.expanduser(value)):  # pathlib's raises for what is too long
            yield flag, Path(value).expanduser()


def _places(path: Path) -> Iterator[Path]:
    """Where what is read lies: as it is given, what that leads to, and what links in a folder lead to."""
    yield Path(os.path.abspath(path))
    yield Path(os.path.realpath(path))
    for folder, below, files in os.walk(path):
        for name in (*below, *files):
            if os.path.islink(os.path.join(folder, name)):
                yield Path(os.path.realpath(os.path.join(folder, name)))


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one place, also where letters count alike in both cases."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _named(flag: str, path: Path) -> str:
    return f"the {flag} {path}" if flag.isalpha() else f"{flag} {path}"
