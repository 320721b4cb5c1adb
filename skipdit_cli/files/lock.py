"""Locks of outputs: at any time one process writes a folder or a file, and a second one is refused.

The lock of ``runs/a`` is the file ``runs/.a.skipdit-lock``, which names the process that holds it. The kernel locks
that file as well (flock) until the process ends, in whatever way, so that what a killed process left is recognised. On
a file system without such locks (some network file systems) the process is looked up by its id. A process of another
machine cannot be looked up: its lock is refused, and the message says how to remove it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path

from skipdit_cli import processes
from skipdit_cli.errors import UsageError
from skipdit_cli.files.marker import LOCK_INSIDE
from skipdit_cli.processes.writer import Writer, parse_writer, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ATTEMPTS, PAUSE = 6, 0.05
"""How often, and after how many seconds, a lock is tried again: another process may just look at it or delete it."""
LONGEST = 200
"""Bytes of the name of an output that the name of its lock repeats."""


@dataclass
class Lock:
    """A lock that this process holds.

    Args:
        path: Its file.
        descriptor: The open file; the lock of the kernel is on it.
        created: Folders above the output that were created for the file, the innermost first.
        pid: The process that holds it: a forked one has a copy of this object, and not the lock.
    """

    path: Path
    descriptor: int
    created: list[Path] = field(default_factory=list)
    pid: int = field(default_factory=os.getpid)

    def release(self) -> None:
        """Delete the file and give the lock up."""
        if self.pid != os.getpid():
            return
        with suppress(OSError):
            self.path.unlink()
        os.close(self.descriptor)
        with suppress(OSError):  # the output is in them
            for folder in self.created:
                folder.rmdir()


_held: dict[Path, Lock] = {}
"""The locks of this process by the real path of their outputs."""
_command: ContextVar[ExitStack | None] = ContextVar("_command", default=None)
"""What the running command gives up at its end."""


@contextmanager
def command_locks() -> Iterator[None]:
    """Give up, at the end of the block, what ``hold`` has locked in it."""
    with ExitStack() as stack:
        token = _command.set(stack)
        try:
            yield
        finally:
            _command.reset(token)


def hold(target: Path, flag: str = "--output") -> None:
    """Lock an output until the running command ends.

    Args:
        flag: The flag that names it.
    Raises:
        UsageError: Another process writes it, or may write it.
    """
    stack = _command.get()
    if stack is None:
        raise RuntimeError("hold() is for commands; use locked().")
    stack.enter_context(locked(target, flag))


@contextmanager
def locked(target: Path, flag: str = "--output") -> Iterator[None]:
    """Lock an output for a block; in a block that has locked it, do nothing.

    Of several processes of one launch, the one of rank 0 holds the lock for all. Where nothing can be written, nothing
    is locked.

    Args:
        flag: The flag that names it.
    Raises:
        UsageError: Another process writes it, or may write it.
        OSError: The lock cannot be written.
    """
    place = Path(os.path.realpath(target))
    if place in _held or processes.rank() > 0 or not _is_writable(lock_file(place)):
        yield
        return
    _held[place] = lock = _acquire(target, place, flag)
    try:
        yield
    finally:
        if _held.get(place) is lock:
            del _held[place]
        lock.release()


def check_unlocked(target: Path) -> None:
    """Check that no other process holds the lock of an output.

    Raises:
        UsageError: One does.
    """
    place = Path(os.path.realpath(target))
    path = lock_file(place)
    if place in _held or processes.rank() > 0 or not os.path.lexists(path):
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # it was just deleted, or cannot be read, which is reported when it is acquired
    try:
        _check_free(target, path, descriptor, _lock(descriptor, shared=True))
    finally:
        os.close(descriptor)


def lock_file(place: Path) -> Path:
    """Return the file of an output's lock: beside it or, in a mount point or under a read-only parent, in it."""
    if place.is_dir() and (os.path.ismount(place) or not os.access(place.parent, os.W_OK)):
        return place / LOCK_INSIDE
    name = place.name
    if len(name.encode(errors="surrogateescape")) > LONGEST:
        name = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return place.with_name(f".{name}{LOCK_INSIDE}")


def _is_writable(path: Path) -> bool:
    """Return whether a file can be created at a path, its folders included."""
    parent = next(parent for parent in path.parents if parent.exists())
    return os.access(parent, os.W_OK | os.X_OK)


def _acquire(target: Path, place: Path, flag: str) -> Lock:
    """Return a new lock of an output.

    Raises:
        UsageError: Another process holds it.
    """
    path = lock_file(place)
    created = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for attempt in range(ATTEMPTS):
            descriptor = _open_locked(target, path, flag, is_last=attempt == ATTEMPTS - 1)
            if descriptor is not None:
                return Lock(path, descriptor, created)
            time.sleep(PAUSE)
        raise UsageError(f"Output {target} is being written by another process; give another {flag}.")
    except BaseException:
        with suppress(OSError):
            for folder in created:
                folder.rmdir()
        raise


def _open_locked(target: Path, path: Path, flag: str, is_last: bool) -> int | None:
    """Return the open file of a lock that names this process now, or None where another one is in the way just now.

    Args:
        is_last: Refuse a lock that is held; before, it may be held only for as long as a process looks at it.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)
    is_new = True
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        is_new = False
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            return None
    try:
        state = _lock(descriptor)
        if state is not False and not _is_file(descriptor, path):
            state, is_last = False, False  # it was deleted after it was opened
        if state is False and not is_last:
            os.close(descriptor)
            return None
        if not is_new:
            _check_free(target, path, descriptor, state, flag)
            if state is None:  # the process that creates the file anew holds the lock
                is_named = _read(descriptor) is not None  # or else it was just created, and is being written
                if (is_named or is_last) and _is_file(descriptor, path):
                    path.unlink(missing_ok=True)
                os.close(descriptor)
                return None
        content = json.dumps(asdict(this_process())).encode()
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        if os.write(descriptor, content) != len(content):
            raise OSError(28, os.strerror(28), str(path))
        return descriptor
    except OSError as cause:
        os.close(descriptor)
        if is_new:
            path.unlink(missing_ok=True)
        cause.filename = cause.filename or str(path)
        raise
    except UsageError:
        os.close(descriptor)
        raise


def _lock(descriptor: int, shared: bool = False) -> bool | None:
    """Put a lock of the kernel on an open file; False where another process has one, None where there are none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # ENOLCK, EOPNOTSUPP and others of a file system without such locks
        return None
    return True


def _check_free(target: Path, path: Path, descriptor: int, state: bool | None, flag: str = "--output") -> None:
    """Check that the process that a lock names is not there any more.

    Args:
        state: As ``_lock`` returns it.
    Raises:
        UsageError: It runs, or may run.
    """
    writer = _read(descriptor)
    if state is False or (state is None and writer is not None and writer.is_visible() and writer.is_running()):
        details = f": {writer}; wait until it ends, or" if writer else ";"
        raise UsageError(f"Output {target} is being written by another process{details} give another {flag}.")
    if writer is None or writer.is_visible() or (state and writer.is_of_this_machine()):
        return
    raise UsageError(
        f"Output {target} is locked by {writer}, which cannot be looked up from here; if it does not run any more, "
        f"delete {path}, or give another {flag}."
    )


def _read(descriptor: int) -> Writer | None:
    """Return the process that an open lock names, or None where it names none."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return parse_writer(json.loads(os.read(descriptor, 4096)))
    except (OSError, ValueError, RecursionError):
        return None


def _is_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def _forget_in_child() -> None:
    """Close the copies of the locks in a forked process, which would keep them after the end of the one that holds
    them."""
    for lock in _held.values():
        with suppress(OSError):
            os.close(lock.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
