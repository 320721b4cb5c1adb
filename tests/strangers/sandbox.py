"""A process of its own in which files of strangers are read, watched and limited.

It is forked from the test process once, reads one file after the other, and is replaced when it dies. An audit hook
records all that Python code does in it besides reading: writes, processes, connections.
"""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

MEMORY = 2 << 30
"""Bytes that a reader may take."""
CPU_SECONDS, WALL_SECONDS = 20, 180
"""What a reader may take, of the processor and on a loaded machine."""
CANARY, SECRET, SCRATCH = "stranger-canary", "stranger-secret", "stranger-scratch"
"""The file that code of a stranger would make; the name of files outside of the data folder; and the folder beside the
working one that a reader may write to, if it is to write elsewhere: into a cache, or a new folder."""
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "webbrowser.open", "urllib.Request")
OF_THIS_MACHINE = ("socket.gethostname", "socket.__new__", "socket.sethostname")
"""Events of the module ``socket`` that reach no other machine."""


class Verdict(NamedTuple):
    """What came of reading a file: ``faults`` is empty if it was read or refused in a sentence, and nothing else
    happened."""

    refusal: str | None
    faults: tuple[str, ...]


def make_canary(folder: Path) -> None:
    """Write the module that a stranger's file may name, which leaves a file behind when it is imported."""
    folder.mkdir()
    code = f"open({CANARY!r}, 'w').close()\nclass Canary:\n    from_pretrained = from_config = print\n"
    (folder / "stranger_module.py").write_text(code)


@contextlib.contextmanager
def spoiling(file: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that gives a file another content, and put its own one back at the end.

    The file is deleted and written anew: a process that has mapped it, this one or the other, dies of what is cut off.
    """
    valid = file.read_bytes()

    def spoil(content: bytes) -> None:
        file.unlink(missing_ok=True)
        file.write_bytes(content)

    try:
        yield spoil
    finally:
        spoil(valid)


class Sandbox:
    """The process; ``sandbox.read(name, folder)`` is a ``Verdict``.

    Args:
        here: An empty folder to work in, which stays empty.
        modules: A folder with ``stranger_module.py``.
        readers: The functions to read with, each of a name.
    """

    def __init__(self, here: Path, modules: Path, readers: Iterable):
        self.here, self.modules, self.pid = here, modules, 0
        self.readers: dict[str, Callable[[Path], object]] = {reader.name: reader.read for reader in readers}

    def read(self, name: str, folder: Path) -> Verdict:
        """Read what lies in a folder, which has to stay as it is."""
        if not self.pid:
            self._start()
        before = _state_of(folder, self.here)
        os.write(self.requests, json.dumps([name, str(folder)]).encode() + b"\n")
        outcome = self._outcome()
        faults = list(outcome["faults"])
        if (after := _state_of(folder, self.here)) != before:
            faults.append(f"wrote {sorted(str(path) for path in before.items() ^ after.items())}")
            for path in after.keys() - before.keys():
                path.rmdir() if path.is_dir() else path.unlink()
        return Verdict(outcome["refusal"], tuple(faults))

    def close(self) -> None:
        """End the process."""
        if self.pid:
            os.close(self.requests), os.close(self.results)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def _start(self) -> None:
        (requests, self.requests), (self.results, results) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(requests), os.close(results)
            return
        try:
            os.close(self.requests), os.close(self.results)
            self._serve(requests, results)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _outcome(self) -> dict:
        """Wait for the answer of the process; if it dies or hangs, say so."""
        received = b""
        while not received.endswith(b"\n"):
            ready = select.select([self.results], [], [], WALL_SECONDS)[0]
            part = os.read(self.results, 1 << 16) if ready else b""
            if not part:
                fault = "did not end" if not ready else _ending(os.waitpid(self.pid, 0)[1])
                with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
                    os.killpg(self.pid, signal.SIGKILL)  # and what it started
                    os.waitpid(self.pid, 0)
                os.close(self.requests), os.close(self.results)
                self.pid = 0
                return {"refusal": None, "faults": [fault]}
            received += part
        return json.loads(received)

    def _serve(self, requests: int, results: int) -> None:
        os.setpgid(0, 0)
        os.chdir(self.here)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(self.modules))
        events: list[str] = []
        sys.addaudithook(_watch(events))
        resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for line in os.fdopen(requests):
            name, folder = json.loads(line)
            events.clear()
            outcome = _read(self.readers[name], Path(folder), events)
            os.write(results, json.dumps(outcome).encode() + b"\n")
        os._exit(0)


def _ending(status: int) -> str:
    """Describe how a process died."""
    if not os.WIFSIGNALED(status):
        return f"died with status {status}"
    number = signal.Signals(os.WTERMSIG(status))
    return "did not end" if number == signal.SIGXCPU else f"died by {number.name}"


def _read(read: Callable[[Path], object], folder: Path, events: list[str]) -> dict:
    from skipdit_cli.errors import MAX_SENTENCE, SkipditError

    used, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident memory begins anew
    events.clear()
    before, refusal, faults = _memory("VmRSS"), None, []
    try:
        read(folder)
    except SkipditError as error:
        refusal = str(error)
        if len(refusal) > MAX_SENTENCE or "\n" in refusal or not refusal:
            faults.append(f"said in {len(refusal)} characters: {refusal!r}")
        faults += [f"took memory: {cause!r}" for cause in _causes(error) if _is_memory(cause)]
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = next((frame for frame in reversed(where) if "skipdit_cli" in frame.filename), where[-1])
        text = f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
        faults.append(f"raised {text} at {ours.filename.rpartition('skipdit_cli/')[2]}:{ours.lineno}")
    peak, after = _memory("VmHWM") - before, resource.getrusage(resource.RUSAGE_CHILDREN)
    if peak > MEMORY or (after.ru_maxrss << 10) > MEMORY:
        faults.append(f"took {max(peak, after.ru_maxrss << 10) >> 20} MiB of memory")
    if after.ru_utime - children.ru_utime > CPU_SECONDS:
        faults.append("did not end")
    return {"refusal": refusal, "faults": faults + list(dict.fromkeys(events))}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_memory(error: BaseException) -> bool:
    """Return whether an exception says that the limit of memory was reached, and so that memory was asked for.

    ffmpeg says so of a block above its ``-max_alloc``, which it does not take; what its process takes is measured.
    """
    if "(ffmpeg: " in str(error):
        return False
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "Cannot allocate" in str(error)


def _memory(name: str) -> int:
    """Return a figure of this process in bytes: VmData, VmRSS or VmHWM, its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) << 10


def _watch(events: list[str]) -> Callable[[str, tuple], None]:
    """Return an audit hook that records what no reader may do."""
    from imageio_ffmpeg import get_ffmpeg_exe

    ffmpeg = get_ffmpeg_exe()

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            name = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and name not in ("/proc/self/clear_refs", os.devnull) and SCRATCH not in name:
                events.append(f"opened {name} to write")
            elif SECRET in name or name.startswith(("/etc/passwd", "/etc/hostname")):
                events.append(f"read {name}")
        elif event == "subprocess.Popen":
            if arguments[0] != ffmpeg:
                events.append(f"started {arguments[0]}")
        elif event in WRITES and _is_in_scratch(arguments):
            pass
        elif event in WRITES + CODE or (event.startswith("socket.") and event not in OF_THIS_MACHINE):
            events.append(f"{event} {str(arguments)[:200]}")
        elif event == "import" and arguments[0] == "stranger_module":
            events.append("imported a module of a stranger")

    return hook


def _is_in_scratch(arguments: tuple) -> bool:
    """Return whether all paths of an event lie in the folder for writes, perhaps relative to an open folder."""
    paths = [os.fsdecode(each) for each in arguments if isinstance(each, (str, bytes))]
    for number in (each for each in arguments if isinstance(each, int)):
        with contextlib.suppress(OSError):  # the number is a mode, and no open folder
            paths = [f"{os.readlink(f'/proc/self/fd/{number}')}/{path}" for path in paths]
    return all(f"/{SCRATCH}/" in f"{path}/" for path in paths)


def _state_of(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return size and date of all that lies in folders, which a write would change."""
    states = {}
    for folder in folders:
        for path in folder.rglob("*"):
            facts = path.lstat()
            states[path] = (facts.st_size, facts.st_mtime_ns)
    return states
