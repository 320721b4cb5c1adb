"""Serve the page on this machine alone, until Ctrl-C."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from skipdit_cli.errors import UsageError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
"""The port that Gradio users expect, and how many are tried from it on."""
KEPT_SESSIONS = 20
"""Browser sessions of which Gradio keeps the values, pictures among them; the page reads none of them again."""


def choose_port(port: int | None) -> int:
    """Return the port to serve on: the given one, or the first free one from 7860.

    Raises:
        UsageError: It is in use, or all of them are.
    """
    if port is not None and not _is_free(port):
        raise UsageError(f"Got --port {port}, which is in use; give another, or leave it out for the first free one.")
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    free = next((each for each in candidates if _is_free(each)), None)
    if free is None:
        raise UsageError(f"The ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are in use; give --port with another.")
    return free


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server binds it
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
        return True


def stay_offline() -> None:
    """Have Gradio report nothing home; it reads the environment when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


def serve(page: Any, port: int, opens_browser: bool, announce: Callable[[str], None]) -> None:
    """Serve a page of ``make_page`` until Ctrl-C.

    Args:
        announce: Called with the address of the page once it can be opened.
    """
    announce(start(page, port, opens_browser))
    sys.stdout.flush()  # a server's log is often a file
    with suppress(KeyboardInterrupt):  # the usual end; the server ends with the process
        threading.Event().wait()


def start(page: Any, port: int, opens_browser: bool = False) -> str:
    """Start the server of a page in another thread, and return the address of the page."""
    page.queue().launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=opens_browser,
        prevent_thread_lock=True,
        quiet=True,
        state_session_capacity=KEPT_SESSIONS,
        **page.launch_arguments,
    )
    return f"http://{HOST}:{page.server_port}"
