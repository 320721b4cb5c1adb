"""The two ways a command stops on purpose: bad input, or a run that failed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300
"""Characters of what a library says that are shown."""


class SkipditError(Exception):
    """A run that failed. Shown as one sentence; exit code 1."""

    exit_code = 1


class UsageError(SkipditError, ValueError):
    """Bad input: what, got, allowed, next command. Exit code 2, nothing written."""

    exit_code = 2


class NotFiniteError(SkipditError):
    """What was made, or what it is made with, holds NaN or infinity.

    Args:
        made: What there is all the same, for those who time it.
    """

    def __init__(self, message: str, made=None):
        super().__init__(message)
        self.made = made


class CheckError(SkipditError):
    """A check the user asked for was missed. Exit code 3."""

    exit_code = 3


def first_line(cause: BaseException) -> str:
    """What a library has to say, cut to one line without a full stop."""
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0][:LONGEST].rstrip(".")


@contextmanager
def reading(what: str, advice: str = "", failed: str = "cannot be read") -> Iterator[None]:
    """Whatever a library raises while it reads a file is a refusal of that file, in one sentence.

    Libraries raise what they like over bad contents: tokenizers a bare ``Exception``, Pillow a bomb of its own kind,
    parsers a ``RecursionError``, diffusers an ``UnboundLocalError``, Rust a panic that is no ``Exception`` at all. Our
    own errors pass, and so does what is not the file's fault: a full disk, an accelerator without memory.

    Args:
        what: The file, as the sentence begins.
        advice: How the sentence ends.
        failed: What could not be done with it.
    Raises:
        UsageError: "WHAT FAILED: what the library said; ADVICE."
    """
    try:
        yield
    except SkipditError:
        raise
    except BaseException as cause:
        name = type(cause).__name__  # of torch and pyo3, which are not imported for this
        if not isinstance(cause, Exception) and name != "PanicException":
            raise
        if name == "OutOfMemoryError" or getattr(cause, "errno", None) == errno.ENOSPC:
            raise
        said = str(getattr(cause, "strerror", None) or first_line(cause))
        if isinstance(
            cause, (LookupError, NameError, AttributeError, ArithmeticError, AssertionError, RecursionError)
        ):
            said = f"{name}: {said}"  # whose messages say little alone
        ending = f"; {advice}" if advice else ""
        raise UsageError(f"{what} {failed}: {said}{ending}.") from cause


def nearest(word: str, choices) -> str:
    """``" Did you mean 'x'?"`` for the closest choice, or an empty string."""
    import difflib

    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
