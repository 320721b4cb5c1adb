"""The process that writes an output: how it is identified, and whether it still runs."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

CLOCK_TOLERANCE = 2.0
"""Seconds by which two readings of the start of a process may differ: it is computed from a clock that is adjusted."""


@dataclass(frozen=True)
class Writer:
    """A process of this or another machine.

    Args:
        host: The name of its machine.
        pid: Its id.
        started: When it started, in seconds since 1970, which distinguishes it from a later one with the same id; None
            if unknown.
        boot: The id of the boot of its machine, which containers share with it; None if unknown.
        namespace: The namespace of its id, which a container has for itself; None if unknown.
    """

    host: str
    pid: int
    started: float | None = None
    boot: str | None = None
    namespace: str | None = None

    def is_of_this_machine(self) -> bool:
        """Return whether it is, or was, a process of this machine, perhaps in a container or before a reboot."""
        return self.host == socket.gethostname() or (self.boot is not None and self.boot == _boot())

    def is_visible(self) -> bool:
        """Return whether this process can know whether it runs: not on another machine or in another container."""
        namespaces = {self.namespace, _namespace()} - {None}
        return self.is_of_this_machine() and len(namespaces) < 2

    def is_running(self) -> bool:
        """Return whether a visible process still runs."""
        if self.boot is not None and _boot() not in (None, self.boot):
            return False  # the machine has been restarted
        if not is_alive(self.pid):
            return False
        now = _started(self.pid)
        return self.started is None or now is None or abs(now - self.started) <= CLOCK_TOLERANCE

    def __str__(self) -> str:
        """Return its id, its machine and when it started, as a message names it."""
        moment = None if self.started is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.started))
        return f"process {self.pid} on {self.host}" + (f", started {moment}" if moment else "")


def this_process() -> Writer:
    """Return this process."""
    return Writer(socket.gethostname(), os.getpid(), _started(os.getpid()), _boot(), _namespace())


def parse_writer(content: object) -> Writer | None:
    """Return the process that JSON describes, or None for anything else."""
    if not isinstance(content, dict):
        return None
    values: dict[str, Any] = {field.name: content.get(field.name) for field in fields(Writer)}
    pid, started = values["pid"], values["started"]
    valid = isinstance(values["host"], str) and isinstance(pid, int) and not isinstance(pid, bool) and 0 < pid < 2**31
    valid = valid and (started is None or (isinstance(started, (int, float)) and 0 <= started < 2**40))
    valid = valid and all(isinstance(values[name], (str, type(None))) for name in ("boot", "namespace"))
    return Writer(**values) if valid else None


def is_alive(pid: int) -> bool:
    """Return whether this machine runs a process with this id."""
    if not 0 < pid < 2**31:
        return False
    if os.name == "nt":
        import psutil

        return psutil.pid_exists(pid)  # os.kill(pid, 0) would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return not _is_defunct(pid)


def _is_defunct(pid: int) -> bool:
    """Return whether a process has ended, though its parent has not asked how."""
    import psutil

    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _started(pid: int) -> float | None:
    """Return when a process started, in seconds since 1970; None if unknown."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _boot() -> str | None:
    """Return the id of this boot of the machine; None where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """Return the namespace of process ids of this process; None where the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
