"""What a config claims, checked against its class and the weights beside it before anything is built."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from skipdit_cli.errors import UsageError, first_line, reading
from skipdit_cli.formats import check_values
from skipdit_cli.models.bounds import UNKNOWN, Room, TooLarge, stored_shapes, try_on_meta
from skipdit_cli.models.packages import importable
from skipdit_cli.models.weights import files_in, read_json
from skipdit_cli.quiet import quiet

LIBRARIES = ("diffusers", "transformers")
LARGEST = {"model": 2**24, "scheduler": 10**6, "tokenizer": 2**20}
"""The largest whole number that a config of a kind has a use for: a length, training's timesteps, a vocabulary."""
NO_SIZE = ("theta", "pixels", "edge")
"""Words in names of numbers that are no size of anything made: rope's base, the area up to which pictures are kept."""
ANYTHING = (list, tuple, dict, typing.Any)
"""Declarations that say nothing of what is inside."""
FORMER = (".query.weight", ".proj_attn.weight", ".weight_g", ".gamma", "LayerNorm.beta")
"""Names that the libraries translate as they read: what a file of such has not may be there under another."""
SENTINEL = 10**20
"""From here on a tokenizer's longest text is none at all: transformers writes 1e30."""


def check_part(folder: Path, library: str, name: str) -> None:
    """The configs of one part of a pipeline, whose weight files are whole, by the class that its index names.

    Raises:
        UsageError: diffusers or transformers has no such part, or cannot make it of these configs.
    """
    import diffusers

    where = f"Folder {folder}"
    with reading(where, failed=f"holds a {name} that cannot be made here"), quiet(errors_only=True):
        kind = getattr(importlib.import_module(library), name, None) if library in LIBRARIES else None
    if library not in LIBRARIES or hasattr(kind, "_backends"):  # of a pipeline's own, or of a package that is not here
        return
    if not hasattr(kind, "from_pretrained"):
        raise UsageError(f"{where} is to hold a {name}, which is no part of a pipeline in {library}.")
    configs = {file.name: read_json(file) for file in files_in(folder, "*config.json")}
    if library == "transformers":
        if "config.json" in configs and hasattr(kind, "_from_config"):
            check_encoder(kind, configs["config.json"], where, folder)
        for file in configs.keys() - {"config.json"}:
            check_words(configs[file], where, file)
    elif issubclass(kind, diffusers.SchedulerMixin):
        check_scheduler(kind, configs.get("scheduler_config.json", {}), where)
    elif "config.json" in configs:
        check_model(kind, configs["config.json"], where, stored_shapes(folder))


def check_model(
    kind: type,
    config: dict,
    where: str,
    shapes: dict[str, tuple[int, ...]] | None = None,
    room: Room = UNKNOWN,
    build: Callable[[dict], torch.nn.Module] | None = None,
    file: str = "config.json",
) -> None:
    """Whether a config can be of a model of diffusers, by the types of its values, and by making the model on the meta
    device in the room that its weight files leave.

    Args:
        config: The arguments of ``kind``; keys with ``_`` in front are diffusers' own.
        where: What the sentence begins with: the folder, or the preset.
        shapes: Of the tensors in its weight files.
        room: Where there are none.
        build: How one is made of a config; ``kind.from_config`` if not given.
        file: What holds the config, for the sentence.
    Raises:
        UsageError: It cannot; the sentence names the first value that is to blame.
    """
    check_arguments(kind, config, where, LARGEST["model"], file)
    model = _try(build or kind.from_config, config, where, room if shapes is None else Room.of(shapes), file)
    if model is not None and shapes is not None and not config.get("quantization_config"):
        _check_shapes(model, shapes, where)


def check_encoder(kind: type, config: dict, where: str, folder: Path) -> None:
    """The same of a model of transformers, which would also leave layers that its files lack at random.

    Raises:
        UsageError: As ``check_model``; or the files lack a tensor.
    """
    _check_numbers(config, where, LARGEST["model"])
    shapes = stored_shapes(folder)

    def build(given: dict):
        return kind._from_config(kind.config_class.from_dict(given))

    model = _try(build, config, where, UNKNOWN if shapes is None else Room.of(shapes))
    if model is not None and shapes is not None and not config.get("quantization_config"):
        _check_shapes(model, shapes, where)


def check_scheduler(kind: type, config: dict, where: str) -> None:
    """
    Raises:
        UsageError: A scheduler of this class cannot be made of this config.
    """
    check_arguments(kind, config, where, LARGEST["scheduler"], "scheduler_config.json")

    with quiet(errors_only=True):
        try:
            kind.from_config(config)
        except Exception as cause:
            raise _refusal(cause, kind.from_config, config, where, "scheduler_config.json") from cause
        try:
            _step(kind, {})
        except Exception:
            return  # of a kind that is called in a way of its own
        try:
            _step(kind, config)
        except Exception as cause:
            raise _refusal(cause, partial(_step, kind), config, where, "scheduler_config.json") from cause


def _step(kind: type, config: dict) -> None:
    """Set two timesteps and take the first: what only shows then (a list of betas that ends too early, a
    ``prediction_type`` that is none) shows here."""
    scheduler = kind.from_config(config)
    shifted = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    with torch.random.fork_rng(devices=[]):
        scheduler.set_timesteps(2, **shifted)
        noise = torch.full((1, 4, 4, 4), 0.5)
        learned = str(scheduler.config.get("variance_type")).startswith("learned")
        scheduler.step(torch.cat([noise] * 2, 1) if learned else noise, scheduler.timesteps[0], noise)


def check_words(config: dict, where: str, file: str) -> None:
    """
    Args:
        config: Of a tokenizer or processor.
    Raises:
        UsageError: A value would have it make more words, or longer texts, than any has.
    """
    endless = [key for key, value in config.items() if "length" in key and _whole(value) and value >= SENTINEL]
    _check_numbers({key: config[key] for key in config if key not in endless}, where, LARGEST["tokenizer"], file)
    extra = config.get("extra_ids", 0)
    if not _whole(extra) or not 0 <= extra <= 10_000:
        raise UsageError(f"{where} has a {file} with extra_ids {extra!r}, but expected 0..10000.")


def check_arguments(kind: type, config: dict, where: str, largest: int, file: str = "config.json") -> None:
    """Whether the values of a config are of the types that the class of diffusers declares.

    Raises:
        UsageError: One is not, is not finite, or is larger than any that there is a use for.
    """
    parameters = inspect.signature(kind.__init__).parameters
    own = {name for name in config if name in parameters and config[name] == parameters[name].default}  # -inf, say
    _check_numbers({name: value for name, value in config.items() if name not in own}, where, largest, file)
    try:
        declared = typing.get_type_hints(kind.__init__)
    except (NameError, TypeError):  # of a class that names types it imports for checkers alone
        declared = {}
    for name in config.keys() & parameters.keys() - own:
        default = parameters[name].default
        allowed = set(_types(declared.get(name, object)))
        allowed |= set() if default in (None, inspect.Parameter.empty) else {type(default)}
        wrong = _misfit(config[name], allowed)
        if wrong is not None:
            raise UsageError(
                f"{where} has a {file} with {name} {wrong!r}, but a {kind.__name__} takes {_words(allowed)}."
            )


def _types(declared: object) -> Iterator[type]:
    """The plain types that a declaration allows, those inside of lists among them; ``object`` for any."""
    inner = typing.get_args(declared)
    origin = typing.get_origin(declared)
    if origin is typing.Literal:
        yield from map(type, inner)
    elif inner:
        if origin not in (typing.Union, types.UnionType):
            yield origin
        for each in inner:
            yield from () if each in (Ellipsis, type(None)) else _types(each)
    else:
        yield declared if isinstance(declared, type) and declared not in ANYTHING else object


def _misfit(value: object, allowed: set[type]) -> object:
    """The part of a value that is of no allowed type; None if all are. A list of whole numbers is left to the class:
    declarations say a number where there may be one for each layer."""
    if isinstance(value, (list, tuple)):
        if allowed and allowed <= {float, bool, str}:
            return value
        return next((wrong for wrong in (_misfit(item, allowed) for item in value) if wrong is not None), None)
    if value is None or not allowed or object in allowed:
        return None
    if isinstance(value, bool):
        fits = bool in allowed
    elif isinstance(value, (int, float)):
        fits = allowed & {int, float} or (bool in allowed and value in (0, 1))
    else:
        fits = any(isinstance(value, each) for each in allowed) or not allowed <= {int, float, bool, str, list, tuple}
    return None if fits else value


def _words(allowed: set[type]) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a mapping"}
    found = [word for each, word in names.items() if each in allowed and not (each is int and float in allowed)]
    return " or ".join(found or ["a list"])


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_numbers(config: dict, where: str, largest: int, file: str = "config.json") -> None:
    check_values(config, f"{where}, {file}")
    pending: list[tuple[str, object]] = list(config.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(name, item) for item in value]
        elif _whole(value) and abs(value) > (2**53 if any(word in name for word in NO_SIZE) else largest):
            raise UsageError(f"{where} has a {file} with {name} {value}, but expected -{largest}..{largest}.")


def _try(build: Callable, config: dict, where: str, room: Room, file: str = "config.json") -> torch.nn.Module | None:
    """The model on the meta device; None if it cannot be made there, though it may elsewhere."""

    def on_meta(given: dict):
        with quiet(errors_only=True, text=importable("transformers")):  # loading says once what it has to say
            return try_on_meta(lambda: build(given), room)

    try:
        return on_meta(config)
    except UsageError:
        raise
    except NotImplementedError:  # numpy wants numbers, and there are none on the meta device
        return None
    except Exception as cause:
        raise _refusal(cause, on_meta, config, where, file) from cause


def _refusal(cause: Exception, build: Callable, config: dict, where: str, file: str = "config.json") -> UsageError:
    """What is to blame is found by leaving one value after the other out, so that the class's default is taken."""
    why = str(cause) if isinstance(cause, TooLarge) else f"{type(cause).__name__}: {first_line(cause)}"
    for key in sorted(config, key=lambda key: (-config[key] if _whole(config[key]) else 0, key)):  # the largest first
        if key.startswith("_"):
            continue
        try:
            build({name: value for name, value in config.items() if name != key})
        except Exception:
            continue
        return UsageError(f"{where} has a {file} with {key} {_short(config[key])}, which does not work here ({why}).")
    sizes = {key: value for key, value in config.items() if _whole(value)}
    if isinstance(cause, TooLarge) and sizes:
        key = max(sizes, key=sizes.get)
        return UsageError(f"{where} has a {file} with {key} {sizes[key]}, which does not work here ({why}).")
    return UsageError(f"{where} has a {file} that does not work here ({why}).")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_shapes(model: torch.nn.Module, shapes: dict[str, tuple[int, ...]], where: str) -> None:
    """Raise ``UsageError`` where the weight files lack a parameter, or have it in another shape: diffusers and
    transformers would draw some of those at random."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)  # tied ones lie in a file once
        if shapes.get(name, parameter.shape) != tuple(parameter.shape):
            raise UsageError(
                f"{where} does not fit its weight files: by its config.json {name} is of shape "
                f"{list(parameter.shape)}, in the files {list(shapes[name])}."
            )
    missing = [group[0] for group in names.values() if not any(map(shapes.__contains__, group))]
    left = shapes.keys() - {*chain(*names.values())}
    places = {name[:end] for name in left for end in range(len(name)) if name[end] == "." and "." in name[:end]}
    missing = [name for name in missing if ".".join(name.split(".")[:-2]) not in places]  # it has a former name
    former = len(missing) > len(names) // 2 or any(name.endswith(FORMER) for name in shapes)
    if missing and not former:
        raise UsageError(
            f"{where} is incomplete: its config.json asks for {missing[0]}, which its files do not hold "
            f"({len(missing)} are missing)."
        )
