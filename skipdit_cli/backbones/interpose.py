"""Replacing a bound method of one instance, reversibly. Nothing is ever changed on a class."""

from __future__ import annotations

import functools


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

    def call_inner(self, *args, **kwargs):
        """The method as it was, without the one of ours that another library's wrapper covers."""
        if self.below is None:
            return self.inner(*args, **kwargs)
        self.below.active = False
        try:
            return self.inner(*args, **kwargs)
        finally:
            self.below.active = True


def find(owner, name: str) -> Interposed | None:
    """Our outermost live interposition on ``owner.name``, also when another library's wrapper lies over it."""
    return next(_alive(owner, name), None)


def _alive(owner, name: str):
    method = owner.__dict__.get(name)
    while method is not None:
        if isinstance(method, Interposed) and method.active:
            yield method
        method = getattr(method, "__wrapped__", None)


def interpose(owner, name: str, make) -> Interposed:
    """Put ``make(owner.name)`` in the method's place, unless one of ours is there; returns the one in place."""
    return find(owner, name) or _put(owner, name, make)


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


def restore(owner, name: str) -> None:
    """Undo ``interpose``. Under another library's wrapper (offload hooks) ours stays as a plain pass-through."""
    for ours in list(_alive(owner, name)):
        ours.active = False
        if owner.__dict__[name] is ours:
            own = getattr(ours.inner, "__func__", None)
            if own is not None and own is getattr(type(owner), name, None):
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = ours.inner
