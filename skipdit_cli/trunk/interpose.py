"""Replacing a bound method of one instance, reversibly. No class is ever changed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

import torch

_covered = threading.local()
"""Per thread: ids of the interpositions that pass calls on unchanged, because an outer one is at work over them."""


Kind = TypeVar("Kind", bound="Interposed")


class Interposed:
    """A callable in the place of a bound method; it is deep-copied and pickled with its instance.

    ``__wrapped__`` (set by ``functools.update_wrapper``) keeps ``inspect.signature`` true, and lets ``find`` look
    through the wrappers of other libraries, which set it too.

    Args:
        inner: The method that was there before.

    Attributes:
        active: False after ``restore``; a call is then passed on unchanged.
        below: An interposition of ours that lies under another library's wrapper, under this one; None without.
        is_below: Whether this interposition lies, or lay, under another one like that.
    """

    __call__: Callable[..., Any]
    __wrapped__: Callable[..., Any]

    def __init__(self, inner: Callable[..., Any]):
        functools.update_wrapper(self, inner)
        self.inner: Any = inner
        self.active = True
        self.below: Interposed | None = None
        self.is_below = False

    @property
    def serving(self) -> bool:
        """Whether this interposition does its work in the present call, and does not pass it on unchanged."""
        if not self.is_below or torch.compiler.is_dynamo_compiling():  # which ignores thread-local state
            return self.active
        return self.active and id(self) not in getattr(_covered, "ids", ())

    def call_inner(self, *args, **kwargs):
        """Call the method as it was, without the interposition ``below``."""
        if self.below is None:
            return self.inner(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            self.below.active = False
            result = self.inner(*args, **kwargs)
            self.below.active = True
            return result
        before: frozenset[int] = getattr(_covered, "ids", frozenset())
        _covered.ids = before | {id(self.below)}
        try:
            return self.inner(*args, **kwargs)
        finally:
            _covered.ids = before


@overload
def find(owner, name: str) -> Interposed | None: ...
@overload
def find(owner, name: str, kind: type[Kind]) -> Kind | None: ...
def find(owner, name: str, kind: type = Interposed) -> Any:
    """Return the outermost active interposition of a kind on ``owner.name``, or None; other libraries' wrappers may
    lie over it."""
    return next(_active(owner, name, kind), None)


def _active(owner, name: str, kind: type[Any]) -> Iterator[Any]:
    method = owner.__dict__.get(name)
    while method is not None:
        if isinstance(method, kind) and method.active:
            yield method
        method = getattr(method, "__wrapped__", None)


def interpose(owner, name: str, make: Callable[[Any], Kind], kind: type[Any] = Interposed) -> Kind:
    """Replace the method ``owner.name`` by ``make(owner.name)``, unless an interposition of that kind is there.

    Returns:
        The interposition that is in place, new or not.
    """
    return find(owner, name, kind) or _put(owner, name, make)


def interpose_outside(owner, name: str, make: Callable[[Any], Interposed]) -> Interposed:
    """Replace a method like ``interpose``, but over the wrappers of other libraries (offload hooks), which then do not
    see the calls that ours leaves out.

    An interposition of ours under those wrappers stays. It passes calls on unchanged while the outer one is at work,
    and serves again when the wrappers are removed together with the outer one.
    """
    outermost = find(owner, name)
    if outermost is None or owner.__dict__[name] is not outermost:
        outermost, below = _put(owner, name, make), outermost
        outermost.below = below
        if below is not None:
            below.is_below = True
    return outermost


def _put(owner, name: str, make: Callable[[Any], Kind]) -> Kind:
    interposed = owner.__dict__[name] = make(getattr(owner, name))
    return interposed


def restore(owner, name: str, kind: type = Interposed) -> None:
    """Undo ``interpose``. An interposition under another library's wrapper stays there and passes calls on."""
    for interposed in list(_active(owner, name, kind)):
        interposed.active = False
        outer = find(owner, name)
        if owner.__dict__[name] is interposed:
            function = getattr(interposed.inner, "__func__", None)
            if function is not None and function is getattr(type(owner), name, None):
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = interposed.inner
        elif outer is not None and outer.inner is interposed:
            outer.inner = outer.__wrapped__ = interposed.inner
