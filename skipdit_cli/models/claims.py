"""What the config of a model, scheduler or tokenizer claims, checked before any weights are read.

A config is checked in three steps, each of which raises a ``UsageError`` that names the folder and the value to blame:

1. Its values against the signature of its class (``config_values.py``).
2. The class is built from it: a model on the meta device, where nothing is allocated, with at most as many tensors as
   its weight files leave room for (``bounds.py``); a scheduler for real, and it makes one step.
3. The parameters of the model that was built against the names and shapes in the headers of the weight files:
   diffusers and transformers would leave a missing one at random.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from skipdit_cli.errors import UsageError, first_line, reading
from skipdit_cli.models.bounds import UNKNOWN, Room, TooLarge, stored_shapes, try_on_meta
from skipdit_cli.models.config_values import LARGEST, check_arguments, check_numbers, is_integer
from skipdit_cli.models.packages import importable
from skipdit_cli.models.weights import files_in, read_json
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.schedulers import set_usual_timesteps

LIBRARIES = ("diffusers", "transformers")
FORMER_KEYS = (".query.weight", ".proj_attn.weight", ".weight_g", ".gamma", "LayerNorm.beta")
"""Endings of names that the libraries translate as they load: what a file lacks may be there under another name."""
ENDLESS = 10**20
"""A tokenizer's longest text from here on means that there is no limit: transformers writes 1e30."""

_sound: set[tuple] = set()
"""What passed ``check_model`` in this process: a conversion checks the same config up to seven times."""


def check_part(folder: Path, library: str, name: str) -> None:
    """Check the configs of one part of a pipeline against the class that ``model_index.json`` names for it.

    Its weight files must be whole already (``weights.check_weights``). A class of a pipeline's own, or one that lacks
    a package here, is not checked.

    Args:
        library, name: Where the class is, and its name: ``diffusers``, ``AutoencoderKL``.
    Raises:
        UsageError: The library has no such part, or it cannot be made from these configs.
    """
    import diffusers

    where = f"Folder {folder}"
    with reading(where, failed=f"holds a {name} that cannot be made here"), quiet(errors_only=True):
        kind: Any = getattr(importlib.import_module(library), name, None) if library in LIBRARIES else None
    if library not in LIBRARIES or hasattr(kind, "_backends"):
        return
    if not hasattr(kind, "from_pretrained"):
        raise UsageError(f"{where} is to hold a {name}, which is no part of a pipeline in {library}.")
    configs = {file.name: read_json(file) for file in files_in(folder, "*config.json")}
    if library == "transformers":
        if "config.json" in configs and hasattr(kind, "_from_config"):
            check_encoder(kind, configs["config.json"], where, folder)
        for file in configs.keys() - {"config.json"}:
            check_tokenizer(configs[file], where, file)
    elif issubclass(kind, diffusers.SchedulerMixin):
        check_scheduler(kind, configs.get("scheduler_config.json", {}), where)
    elif "config.json" in configs:
        check_model(kind, configs["config.json"], where, stored_shapes(folder))


def check_model(
    kind: type[Any],
    config: dict,
    where: str,
    shapes: dict[str, tuple[int, ...]] | None = None,
    room: Room = UNKNOWN,
    build: Callable[[dict], torch.nn.Module] | None = None,
    file: str = "config.json",
) -> None:
    """Check the config of a model of diffusers, in all three steps.

    What passed once in this process is not built again.

    Args:
        config: The arguments of ``kind``; keys that begin with ``_`` are diffusers' own.
        where: How the error message begins: the folder, or the preset.
        shapes: Names and shapes of the tensors in its weight files; None if they are not here.
        room: The size that the model may have where ``shapes`` is None.
        build: Makes a model from a config; ``kind.from_config`` if not given.
        file: The file of the config, for the error message.
    Raises:
        UsageError: No model can be made from it, or it does not fit the weight files; the sentence names the first
            value or tensor to blame.
    """
    check_arguments(kind, config, where, LARGEST["model"], file)
    key = (kind, build, room, repr(config), shapes and frozenset(shapes.items()))
    if key in _sound:
        return
    model = _try(build or kind.from_config, config, where, room if shapes is None else Room.of(shapes), file)
    _check_shapes(model, config, shapes, where)
    _sound.add(key)


def check_encoder(kind: type[Any], config: dict, where: str, folder: Path) -> None:
    """Check the config of a model of transformers, such as a text encoder, as ``check_model`` does.

    Its values are not checked against a signature, which transformers' classes do not declare.

    Raises:
        UsageError: As ``check_model``.
    """
    check_numbers(config, where, LARGEST["model"])
    shapes = stored_shapes(folder)

    def build(config: dict):
        return kind._from_config(kind.config_class.from_dict(config))

    model = _try(build, config, where, UNKNOWN if shapes is None else Room.of(shapes))
    _check_shapes(model, config, shapes, where)


def check_scheduler(kind: type[Any], config: dict, where: str) -> None:
    """Check that a scheduler can be made from its config and makes a step.

    Raises:
        UsageError: It cannot; the sentence names the first value to blame.
    """
    file = "scheduler_config.json"
    check_arguments(kind, config, where, LARGEST["scheduler"], file)
    with quiet(errors_only=True):
        try:
            kind.from_config(config)
        except Exception as cause:
            raise _refusal(cause, kind.from_config, config, where, file) from cause
        try:
            _make_step(kind, {})
        except Exception:
            return  # this class is called in a way of its own
        try:
            _make_step(kind, config)
        except Exception as cause:
            raise _refusal(cause, partial(_make_step, kind), config, where, file) from cause


def _make_step(kind: type[Any], config: dict) -> None:
    """Set two timesteps and make the first step.

    Some faults show only then: a list of betas that ends too early, an unknown ``prediction_type``.
    """
    scheduler = kind.from_config(config)
    with torch.random.fork_rng(devices=[]):
        set_usual_timesteps(scheduler, 2)
        noise = torch.full((1, 4, 4, 4), 0.5)
        learned = str(scheduler.config.get("variance_type")).startswith("learned")
        scheduler.step(torch.cat([noise] * 2, 1) if learned else noise, scheduler.timesteps[0], noise)


def check_tokenizer(config: dict, where: str, file: str) -> None:
    """Check that the config of a tokenizer or processor asks for no more tokens, or longer texts, than have a use.

    Raises:
        UsageError: It does; the sentence names the value.
    """
    endless = [key for key, value in config.items() if "length" in key and is_integer(value) and value >= ENDLESS]
    numbers = {key: config[key] for key in config if key not in endless}
    check_numbers(numbers, where, LARGEST["tokenizer"], file)
    extra = config.get("extra_ids", 0)
    if not is_integer(extra) or not 0 <= extra <= 10_000:
        raise UsageError(f"{where} has a {file} with extra_ids {extra!r}, but expected 0..10000.")


def _try(build: Callable, config: dict, where: str, room: Room, file: str = "config.json") -> torch.nn.Module | None:
    """Build a model on the meta device; return None if its class cannot be built there, though it may elsewhere."""

    def on_meta(config: dict):
        with quiet(errors_only=True, text=importable("transformers")):  # loading says once what it has to say
            return try_on_meta(lambda: build(config), room)

    try:
        return on_meta(config)
    except UsageError:
        raise
    except NotImplementedError:  # numpy reads values, and the meta device has none
        return None
    except Exception as cause:
        raise _refusal(cause, on_meta, config, where, file) from cause


def _refusal(cause: Exception, build: Callable, config: dict, where: str, file: str = "config.json") -> UsageError:
    """Return the error about a config that cannot be built, with the value to blame.

    That value is found by leaving out one value after the other, the largest first, so that the class's default is
    used in its place.
    """
    why = str(cause) if isinstance(cause, TooLarge) else f"{type(cause).__name__}: {first_line(cause)}"
    for key in sorted(config, key=lambda key: (-config[key] if is_integer(config[key]) else 0, key)):
        if key.startswith("_"):
            continue
        try:
            build({name: value for name, value in config.items() if name != key})
        except Exception:
            continue
        return UsageError(f"{where} has a {file} with {key} {_short(config[key])}, which does not work here ({why}).")
    sizes = {key: value for key, value in config.items() if is_integer(value)}
    if isinstance(cause, TooLarge) and sizes:
        key = max(sizes, key=lambda name: sizes[name])
        return UsageError(f"{where} has a {file} with {key} {sizes[key]}, which does not work here ({why}).")
    return UsageError(f"{where} has a {file} that does not work here ({why}).")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_shapes(model: torch.nn.Module | None, config: dict, shapes: dict | None, where: str) -> None:
    """Check that the weight files hold every parameter of a model, in its shape.

    Nothing is checked where there is no model or no file, or where the weights are quantised.
    """
    if model is None or shapes is None or config.get("quantization_config"):
        return
    names_of: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    ties = getattr(model, "all_tied_weights_keys", None) or {}  # transformers 5.0 does not tie them on the meta device
    for name, parameter in parameters.items():
        tied = id(parameters.get(ties.get(name, name), parameter))
        names_of.setdefault(tied, []).append(name)  # tied parameters lie in a file once
        if shapes.get(name, parameter.shape) != tuple(parameter.shape):
            raise UsageError(
                f"{where} does not fit its weight files: by its config.json {name} is of shape "
                f"{list(parameter.shape)}, in the files {list(shapes[name])}."
            )
    missing = [names[0] for names in names_of.values() if not any(map(shapes.__contains__, names))]
    left = shapes.keys() - {*chain(*names_of.values())}
    modules = {name[:end] for name in left for end in range(len(name)) if name[end] == "." and "." in name[:end]}
    missing = [name for name in missing if ".".join(name.split(".")[:-2]) not in modules]  # it has a former name
    translated = len(missing) > len(names_of) // 2 or any(name.endswith(FORMER_KEYS) for name in shapes)
    if missing and not translated:
        raise UsageError(
            f"{where} is incomplete: its config.json asks for {missing[0]}, which its files do not hold "
            f"({len(missing)} are missing)."
        )
