"""The errors that end a command with one sentence and an exit code."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code of an interrupted run."""
MAX_LENGTH = 300  # characters of a library's message that are shown


class SkipditError(Exception):
    """A run that failed: shown as one sentence, exit code 1."""

    exit_code = 1


class UsageError(SkipditError, ValueError):
    """Bad input: the sentence says what was got, what is allowed and what to do next; exit code 2."""

    exit_code = 2


class NotFiniteError(SkipditError):
    """An output, or the weights or inputs that it was computed from, holds NaN or infinity.

    Args:
        made: The output, which a benchmark can still time.
    """

    def __init__(self, message: str, made=None):
        super().__init__(message)
        self.made = made


class CheckError(SkipditError):
    """A check that the user requested failed; exit code 3."""

    exit_code = 3


class ProcessError(SkipditError):
    """Another process of this run failed or ended.

    Args:
        exit_code: That of the other process, where it is known.
    """

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


def first_line(cause: BaseException) -> str:
    """Return the first line of an exception's message, truncated, without a full stop and without addresses of
    objects: Pillow names the buffer that it cannot identify."""
    message = re.sub(r" ?<[\w.]+ object at 0x\w+>", "", str(cause))
    return (message.strip().splitlines() or [type(cause).__name__])[0][:MAX_LENGTH].rstrip(".")


@contextmanager
def reading(what: str, advice: str = "", failed: str = "cannot be read") -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into a UsageError for that file.

    Libraries raise many types for bad contents: tokenizers a bare ``Exception``, Pillow a ``DecompressionBombError``,
    parsers a ``RecursionError``, diffusers an ``UnboundLocalError``, Rust a panic that is no ``Exception``. Errors of
    skipdit pass unchanged, and so do those that are not the file's fault: a full disk, an accelerator out of memory.

    Args:
        what: Subject of the sentence: the file.
        advice: End of the sentence.
        failed: Predicate of the sentence.
    Raises:
        UsageError: "WHAT FAILED: message of the library; ADVICE."
    """
    try:
        yield
    except SkipditError:
        raise
    except BaseException as cause:
        name = type(cause).__name__  # by name, so that torch and pyo3 are not imported
        if not isinstance(cause, Exception) and name != "PanicException":
            raise
        if name == "OutOfMemoryError" or getattr(cause, "errno", None) == errno.ENOSPC:
            raise
        message = str(getattr(cause, "strerror", None) or first_line(cause))
        if isinstance(
            cause, (LookupError, NameError, AttributeError, ArithmeticError, AssertionError, RecursionError)
        ):
            message = f"{name}: {message}"  # the messages of these mean little alone
        ending = f"; {advice}" if advice else ""
        raise UsageError(f"{what} {failed}: {message}{ending}.") from cause


def install_extra(extra: str) -> str:
    """Return how to install an optional part of the package, from the index and in a clone."""
    return f"pip install 'skipdit-cli[{extra}]' (in a clone: pip install -e '.[{extra}]')"


def nearest(word: str, choices) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest choice, or an empty string if none is close."""
    import difflib

    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
