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


def find(owner, name: str) -> Interposed | None:
    """Our live interposition on ``owner.name``, also when another library's wrapper lies over it."""
    method = owner.__dict__.get(name)
    while method is not None:
        if isinstance(method, Interposed) and method.active:
            return method
        method = getattr(method, "__wrapped__", None)
    return None


def interpose(owner, name: str, make) -> Interposed:
    """Put ``make(owner.name)`` in the method's place, unless one of ours is there; returns the one in place."""
    ours = find(owner, name)
    if ours is None:
        ours = owner.__dict__[name] = make(getattr(owner, name))
    return ours


def restore(owner, name: str) -> None:
    """Undo ``interpose``. Under another library's wrapper (offload hooks) ours stays as a plain pass-through."""
    ours = find(owner, name)
    if ours is None:
        return
    ours.active = False
    if owner.__dict__[name] is ours:
        own = getattr(ours.inner, "__func__", None)
        if own is not None and own is getattr(type(owner), name, None):
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = ours.inner
