"""How large a model may be: it is built on the meta device, and stopped once it outgrows its weight files.

A config is a few bytes that can ask for any number of layers. ``claims.py`` therefore builds the model without memory
(``try_on_meta``) and in a ``Room``: so many tensors and numbers as its weight files hold, generously; without files,
more than any known model has. A model that exceeds its room raises ``TooLarge``, which ``claims.py`` turns into a
``UsageError``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from skipdit_cli.errors import SkipditError, UsageError, reading
from skipdit_cli.models.weights import files_in

PACKED = 16
"""Numbers of a model for each number in its files, at most: eight of four bits are packed into one int32, and some
tensors are computed, not read."""
MOST_TENSORS = 8000
"""Twice the tensors of the largest models."""


class TooLarge(SkipditError):
    """A model that exceeds its room; the message says in which way."""


@dataclass(frozen=True)
class Room:
    """The size that a model may have.

    Args:
        tensors: The most parameters.
        numbers: The most numbers in them, and in one tensor that is computed.
        why: Where the limits come from, as part of a sentence.
    """

    tensors: int
    numbers: int
    why: str

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]]) -> Room:
        """Return the room that weight files leave, generously: what exceeds it is no mistake of a few layers.

        Args:
            shapes: Names and shapes of the tensors in the files.
        """
        numbers = sum(map(prod, shapes.values()))
        why = f"its weight files hold {len(shapes):,} tensors of {numbers:,} numbers"
        return cls(4 * len(shapes) + 1000, PACKED * numbers + 2**26, why)


UNKNOWN = Room(MOST_TENSORS, 2**41, f"no model has more than {MOST_TENSORS:,} tensors or 2 T numbers")
"""The room of a model whose weights are not here."""


def in_memory() -> Room:
    """Return the room of a model that is made in this machine's memory, in float32."""
    import psutil

    size = psutil.virtual_memory().total
    return Room(MOST_TENSORS, size // 4, f"this machine has {size / 1e9:.0f} GB of memory")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Read names and shapes of the tensors in a folder's safetensors files, from their headers.

    Returns:
        None where there are no files, or one cannot be read (``weights.check_weights`` raises for that).
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in files_in(Path(folder), "*.safetensors"):
            with reading(str(file)), safe_open(file, "pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except UsageError:
        return None
    return shapes or None


def try_on_meta(build: Callable[[], torch.nn.Module], room: Room) -> torch.nn.Module:
    """Build a model on the meta device, where nothing is allocated, and stop as soon as it exceeds its room.

    Raises:
        TooLarge: It exceeded it.
        Exception: Whatever ``build`` raises.
    """
    with torch.device("meta"), _limited(room):
        return build()


@contextmanager
def _limited(room: Room) -> Iterator[None]:
    """Count what this thread's models register and compute, and raise ``TooLarge`` above the limits of ``room``."""
    thread, totals = threading.get_ident(), {"tensors": 0, "modules": 0, "numbers": 0}

    def add(what: str, amount: int, limit: int) -> None:
        totals[what] += amount
        if totals[what] > limit:
            raise TooLarge(f"more than {limit:,} {what}, but {room.why}")

    def on_parameter(module, name, parameter) -> None:
        if threading.get_ident() == thread and parameter is not None:
            add("tensors", 1, room.tensors)
            add("numbers", parameter.numel(), room.numbers)

    def on_module(module, name, submodule) -> None:
        if threading.get_ident() == thread:
            add("modules", 1, 20 * room.tensors)

    class LimitedFunctions(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            self.calls += 1
            if isinstance(result, torch.Tensor) and result.numel() > room.numbers:
                raise TooLarge(f"a tensor of {result.numel():,} numbers, but {room.why}")
            if self.calls > 300 * room.tensors:
                raise TooLarge(f"more than {self.calls:,} steps to make it, but {room.why}")
            return result

    handles = [
        hooks.register_module_parameter_registration_hook(on_parameter),
        hooks.register_module_module_registration_hook(on_module),
    ]
    try:
        with LimitedFunctions():
            yield
    finally:
        for handle in handles:
            handle.remove()
