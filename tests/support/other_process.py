"""Another process that holds outputs, for tests of what this one then does."""

import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.processes import PRELOADED


@contextmanager
def holding(*outputs: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Yield a process that holds the locks of outputs, and kill it afterwards."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ready, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hold, args=(outputs, sender))
    process.start()
    sender.close()
    try:
        assert ready.recv() == "held"
        yield process
    finally:
        process.kill()
        process.join()


def _hold(outputs: tuple[Path, ...], sender) -> None:
    import time

    from skipdit_cli import files

    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(files.locked(output))
        sender.send("held")
        time.sleep(600)


def add_together(processes: int, times: int, output: Path) -> None:
    """Let processes add 1 to the number in a file, each so many times and under its lock."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started = [context.Process(target=_add, args=(times, output)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes


def _add(times: int, output: Path) -> None:
    from skipdit_cli import files
    from skipdit_cli.errors import UsageError

    left = times
    while left:
        try:
            with files.locked(output):
                number = int(output.read_text()) if output.exists() else 0
                output.write_text(str(number + 1))
            left -= 1
        except UsageError:
            pass
