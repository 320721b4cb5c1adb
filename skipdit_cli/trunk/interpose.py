"""Replacing a bound method of one instance, reversibly. Nothing is ever changed on a class."""

from __future__ import annotations

import functools
import threading

import torch

_aside = threading.local()
"""Of each thread: the interpositions that another of ours, at work over them, has told to hand through."""


class Interposed:
    """A callable in the place of a bound method; deep-copies and pickles with the instance it serves.

    ``__wrapped__`` (set by ``functools.update_wrapper``) keeps ``inspect.signature`` true and lets ``find`` look
    through the wrappers of other libraries, which use it too.
    """

    def __init__(self, inner):
        functools.update_wrapper(self, inner)
        self.inner = inner
        self.active = True
        self.below: Interposed | None = None

    @property
    def serving(self) -> bool:
        """Whether it does its work in this call, and does not just hand through."""
        if torch.compiler.is_dynamo_compiling():  # knows no thread-local; one thread traces at a time
            return self.active
        return self.active and id(self) not in getattr(_aside, "ids", ())

    def call_inner(self, *args, **kwargs):
        """The method as it was, without the one of ours that another library's wrapper covers."""
        if self.below is None:
            return self.inner(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            self.below.active = False
            result = self.inner(*args, **kwargs)
            self.below.active = True
            return result
        before = getattr(_aside, "ids", frozenset())
        _aside.ids = before | {id(self.below)}
        try:
            return self.inner(*args, **kwargs)
        finally:
            _aside.ids = before


def find(owner, name: str, kind: type = Interposed) -> Interposed | None:
    """Our outermost live interposition of a kind on ``owner.name``, also when another wrapper lies over it."""
    return next(_alive(owner, name, kind), None)


def _alive(owner, name: str, kind: type):
    method = owner.__dict__.get(name)
    while method is not None:
        if isinstance(method, kind) and method.active:
            yield method
        method = getattr(method, "__wrapped__", None)


def interpose(owner, name: str, make, kind: type = Interposed) -> Interposed:
    """Put ``make(owner.name)`` in the method's place, unless one of ours of that kind is there; returns the one in
    place."""
    return find(owner, name, kind) or _put(owner, name, make)


def interpose_outside(owner, name: str, make) -> Interposed:
    """Like ``interpose``, but over the wrappers of other libraries (offload hooks): what is left out by ours, they do
    not see. One of ours that lies under them stays, to serve alone again when they are taken off, and hands through
    while the outer one is at work."""
    ours = find(owner, name)
    if ours is None or owner.__dict__[name] is not ours:
        ours, below = _put(owner, name, make), ours
        ours.below = below
    return ours


def _put(owner, name: str, make) -> Interposed:
    ours = owner.__dict__[name] = make(getattr(owner, name))
    return ours


def restore(owner, name: str, kind: type = Interposed) -> None:
    """Undo ``interpose``. Under another library's wrapper (offload hooks) ours stays as a plain pass-through."""
    for ours in list(_alive(owner, name, kind)):
        ours.active = False
        over = find(owner, name)
        if owner.__dict__[name] is ours:
            own = getattr(ours.inner, "__func__", None)
            if own is not None and own is getattr(type(owner), name, None):
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = ours.inner
        elif over is not None and over.inner is ours:
            over.inner = over.__wrapped__ = ours.inner
