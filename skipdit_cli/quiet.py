"""Silence the libraries while a model loads: which of their messages reach the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skipdit_cli.console import PrintableFilter

PRINTABLE = PrintableFilter()


@contextmanager
def quiet(errors_only: bool = False, text: bool = False) -> Iterator[None]:
    """Turn off the libraries' progress bars, whose short bars would break our own lines.

    Control characters in what the libraries log, which may quote a file, are removed from here on.

    Args:
        errors_only: Hide warnings as well.
        text: Do the same for transformers, which is imported for it.
    """
    from diffusers.utils import logging as diffusers_logging

    libraries = [diffusers_logging]
    if text:
        from transformers.utils import logging as transformers_logging

        libraries.append(transformers_logging)
    before = [(library, library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        for handler in library.get_logger(library.__name__.partition(".")[0]).handlers:
            handler.addFilter(PRINTABLE)
        library.disable_progress_bar()
        if errors_only:
            library.set_verbosity_error()
    try:
        yield
    finally:
        for library, bars, level in before:
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()
