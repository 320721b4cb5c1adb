"""The values in a config: whether they are of the types that a class declares, finite, and of a size that has a use.

These checks read the config and the signature of its class, and build nothing. ``claims.py`` runs them before it
builds a model, so that a mistaken or hostile value is named in a ``UsageError`` and not in a traceback.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator

from skipdit_cli.errors import UsageError
from skipdit_cli.formats import check_values

LARGEST = {"model": 2**24, "scheduler": 10**6, "tokenizer": 2**20}
"""The largest useful integer in a config, by kind: a length, the timesteps of training, a vocabulary."""
MOST_KEYS = 1000
"""Keys of a config; the largest of transformers have 100."""
NOT_SIZES = ("theta", "pixels", "edge")
"""Words in the names of numbers that are no size: RoPE's base, the area up to which images are kept."""
UNTYPED = (list, tuple, dict, typing.Any)
"""Declarations that do not say what is inside."""


def is_integer(value: object) -> bool:
    """Return whether a value is an integer and no boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_numbers(config: dict, where: str, largest: int, file: str = "config.json") -> None:
    """Check that all numbers in a config, also nested ones, are finite and that no integer exceeds ``largest``.

    Args:
        where: How the error message begins: the folder, or the preset.
        file: The file of the config, for the error message.
    Raises:
        UsageError: A number is NaN, infinite or too large; the sentence names it.
    """
    if len(config) > MOST_KEYS:
        raise UsageError(f"{where} has a {file} with {len(config):,} keys, but expected at most {MOST_KEYS:,}.")
    check_values(config, f"{where}, {file}")
    pending: list[tuple[str, typing.Any]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(name, item) for item in value]
        elif is_integer(value) and abs(value) > (2**53 if any(word in name for word in NOT_SIZES) else largest):
            raise UsageError(f"{where} has a {file} with {name} {value}, but expected -{largest}..{largest}.")


def check_arguments(kind: type[typing.Any], config: dict, where: str, largest: int, file: str = "config.json") -> None:
    """Check that the values of a config are of the types that a class of diffusers declares for its arguments.

    Args:
        where, largest, file: As for ``check_numbers``, which is checked, too, but for values that are defaults.
    Raises:
        UsageError: A value has another type, is NaN, infinite or too large; the sentence names it.
    """
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {
        name for name in config if name in parameters and config[name] == parameters[name].default
    }  # -inf, say
    check_numbers({name: value for name, value in config.items() if name not in defaults}, where, largest, file)
    try:
        declared = typing.get_type_hints(kind.__init__)
    except (NameError, TypeError):  # the class names types that it imports for type checkers alone
        declared = {}
    for name in config.keys() & parameters.keys() - defaults:
        default = parameters[name].default
        allowed = set(_types(declared.get(name, object)))
        allowed |= set() if default in (None, inspect.Parameter.empty) else {type(default)}
        wrong = _mistyped(config[name], allowed)
        if wrong is not None:
            raise UsageError(
                f"{where} has a {file} with {name} {wrong!r}, but a {kind.__name__} takes {_type_names(allowed)}."
            )


def _types(declared: typing.Any) -> Iterator[type]:
    """Yield the plain types that a declaration allows, those of items among them; ``object`` for any."""
    arguments = typing.get_args(declared)
    origin: typing.Any = typing.get_origin(declared)
    if origin is typing.Literal:
        yield from map(type, arguments)
    elif arguments:
        if origin not in (typing.Union, types.UnionType):
            yield origin
        for each in arguments:
            yield from () if each in (Ellipsis, type(None)) else _types(each)
    else:
        yield declared if isinstance(declared, type) and declared not in UNTYPED else object


def _mistyped(value: object, allowed: set[type]) -> object:
    """Return the part of a value that has no allowed type; None if there is none.

    A list of integers passes where an integer does: declarations say a number where there may be one for each layer.
    """
    if isinstance(value, (list, tuple)):
        if allowed and allowed <= {float, bool, str}:
            return value
        return next((wrong for wrong in (_mistyped(item, allowed) for item in value) if wrong is not None), None)
    if value is None or not allowed or object in allowed:
        return None
    if isinstance(value, bool):
        fits = bool in allowed
    elif isinstance(value, (int, float)):
        fits = bool(allowed & {int, float}) or (bool in allowed and value in (0, 1))
    else:
        fits = any(isinstance(value, each) for each in allowed) or not allowed <= {int, float, bool, str, list, tuple}
    return None if fits else value


def _type_names(allowed: set[type]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a mapping"}
    words = [word for each, word in names.items() if each in allowed and not (each is int and float in allowed)]
    return " or ".join(words or ["a list"])
