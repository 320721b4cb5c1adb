"""The errors that end a command with one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""The exit code of an interrupted run."""
SPACE = "free some space or "
DISK_FAILURES = {
    errno.ENOSPC: ("the disk is full", SPACE),
    getattr(errno, "EDQUOT", -1): ("the disk quota is used up", SPACE),
    errno.EFBIG: ("a file is larger than the file system or 'ulimit -f' allows", ""),
    errno.EROFS: ("the file system is read-only", ""),
    errno.EIO: ("the disk cannot be written or read (input/output error)", ""),
}
"""What is wrong with a disk, and the advice, by the number of the error."""
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EFBIG)
MAX_LENGTH = 300  # characters of a library's message that are shown
MAX_SENTENCE = 480  # characters of an error's sentence, which may quote a value of any length from a file
HEAD = 330  # of those, the characters in front of what is left out


class SkipditError(Exception):
    """A run that failed: shown as one sentence, exit code 1.

    Args:
        message: The sentence. Line breaks in it become spaces; of more than ``MAX_SENTENCE`` characters, the middle is
            left out.
        whole: Keep the middle, for a list that is of the package's own making.

    Attributes:
        given: The message as it was given, with line breaks and middle.
    """

    exit_code = 1

    def __init__(self, message: object = "", whole: bool = False):
        self.given = str(message)
        text = " ".join(self.given.split())
        if len(text) > MAX_SENTENCE and not whole:
            text = f"{text[:HEAD]} [...] {text[HEAD + 7 - MAX_SENTENCE :]}"
        super().__init__(text)


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


def disk_failure(cause: BaseException, output: object = None) -> str | None:
    """Return the sentence for a disk that cannot be written, or None for another error.

    Libraries in native code (safetensors, torch) raise no ``OSError``; their messages end with that of the system.

    Args:
        output: Where the command writes, for an error that names no file.
    """
    number, place = getattr(cause, "errno", None), getattr(cause, "filename", None) or output or "the output"
    for each, (failure, advice) in DISK_FAILURES.items():
        if number == each or (number is None and os.strerror(each) in str(cause)):
            return f"{failure} at {place}; {advice}choose another --output."
    return None


def first_line(cause: BaseException) -> str:
    """Return the first line of an exception's message, truncated, without a full stop and without addresses of
    objects: Pillow names the buffer that it cannot identify."""
    message = re.sub(r" ?<[\w.]+ (object at 0x\w+|name=[^<>]*)>", "", str(cause))
    return (message.strip().splitlines() or [type(cause).__name__])[0][:MAX_LENGTH].rstrip(".")


ALLOCATORS = ("DefaultCPUAllocator", "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What the message of a plain ``RuntimeError`` of torch holds where memory has run out."""


def is_out_of_memory(cause: BaseException) -> bool:
    """Return whether an exception says that a device or this machine is out of memory; torch is not imported."""
    if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
        return True
    return isinstance(cause, RuntimeError) and any(name in str(cause) for name in ALLOCATORS)


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
        if name == "OutOfMemoryError" or getattr(cause, "errno", None) in NO_ROOM:
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
