"""How large a model may be: what the files beside its config hold, tried on the meta device, where nothing is held."""

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
"""Numbers of a model to one in its file, at most: eight of four bits lie in one, and some are made, not read."""


class TooLarge(SkipditError):
    """A model that has no room. Says in which way."""


@dataclass(frozen=True)
class Room:
    """What a model may have.

    Args:
        tensors: Of weights.
        numbers: In them, and in one tensor that is computed.
        why: Where the limits come from, as part of a sentence.
    """

    tensors: int
    numbers: int
    why: str

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]]) -> Room:
        """Generous: what is larger is no mistake of a few layers."""
        numbers = sum(map(prod, shapes.values()))
        why = f"its weight files hold {len(shapes):,} tensors of {numbers:,} numbers"
        return cls(4 * len(shapes) + 1000, PACKED * numbers + 2**26, why)


MOST = 8000
"""Tensors of the largest models, twice."""
UNKNOWN = Room(MOST, 2**41, f"no model has more than {MOST:,} tensors or 2 T numbers")
"""Of a model whose weights are not here."""


def in_memory() -> Room:
    """Of a model that is made here, in float32."""
    import psutil

    size = psutil.virtual_memory().total
    return Room(MOST, size // 4, f"this machine has {size / 1e9:.0f} GB of memory")


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Name to shape of the tensors in the safetensors files of a folder, from their headers.

    None where there are none, or not all can be read (which ``check_weights`` says).
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
    """The model that ``build`` makes, on the meta device.

    Nothing is allocated, whatever it asks for, and it is stopped as soon as it asks for more than there is room for.

    Raises:
        TooLarge: It did. Anything else that ``build`` raises passes.
    """
    with torch.device("meta"), _counted(room):
        return build()


@contextmanager
def _counted(room: Room) -> Iterator[None]:
    thread, seen = threading.get_ident(), {"tensors": 0, "modules": 0, "numbers": 0}

    def check(what: str, more: int, most: int) -> None:
        seen[what] += more
        if seen[what] > most:
            raise TooLarge(f"more than {most:,} {what}, but {room.why}")

    def parameter(module, name, given) -> None:
        if threading.get_ident() == thread and given is not None:
            check("tensors", 1, room.tensors)
            check("numbers", given.numel(), room.numbers)

    def submodule(module, name, given) -> None:
        if threading.get_ident() == thread:
            check("modules", 1, 20 * room.tensors)

    class Computed(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            self.calls += 1
            if isinstance(made, torch.Tensor) and made.numel() > room.numbers:
                raise TooLarge(f"a tensor of {made.numel():,} numbers, but {room.why}")
            if self.calls > 300 * room.tensors:
                raise TooLarge(f"more than {self.calls:,} steps to make it, but {room.why}")
            return made

    handles = [
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_module_registration_hook(submodule),
    ]
    try:
        with Computed():
            yield
    finally:
        for handle in handles:
            handle.remove()
