"""The two ways a command stops on purpose: bad input, or a run that failed."""


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
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0].rstrip(".")


def nearest(word: str, choices) -> str:
    """``" Did you mean 'x'?"`` for the closest choice, or an empty string."""
    import difflib

    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
