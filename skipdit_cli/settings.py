"""Settings of a command: frozen dataclasses whose fields say all that a flag, a record and a run need to know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

MODEL = "Model"
SAMPLES = "What to sample"
CACHE = "Cache"
PIPELINE = "Pipeline"
OUTPUT = "Output"
PANELS = (MODEL, SAMPLES, CACHE, PIPELINE)
"""Panels of ``--help`` that commands share, in their order; ``OUTPUT`` comes last of all. Flags without a panel come
first."""
LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""


def setting(
    default: Any,
    help: str,
    panel: str | None = None,
    *,
    names: tuple[str, ...] = (),
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    recorded: bool = False,
    run: bool = False,
    **more: object,
) -> Any:
    """Declare a field of a settings dataclass, from which ``commands/flags.py`` makes a flag.

    Args:
        help: What ``--help`` says about the flag.
        panel: The group of flags in ``--help`` that the flag belongs to.
        names: The flag's spelling where it is not the field's name: ``("--num-inference-steps", "--steps")``.
        metavar: What ``--help`` shows in place of the value.
        minimum, maximum: The smallest and the largest number allowed.
        recorded: Whether the history of a picture or video records the value, for ``sample --from`` to take it.
        run: Whether ``sampling.generate`` takes the value as a keyword argument of the field's name.
        more: Further metadata, which the settings class itself reads.
    """
    metadata: dict[str, object] = {"help": help, "panel": panel, "names": names, "metavar": metavar}
    metadata |= {"minimum": minimum, "maximum": maximum, "recorded": recorded, "run": run, **more}
    return field(default=default, metadata=metadata)


def steps_setting(help: str = "Number of denoising steps.", minimum: int = 1, **more: Any) -> Any:
    """Declare ``num_inference_steps``, which ``--steps`` sets as well.

    Args:
        more: As for ``setting``.
    """
    names = ("--num-inference-steps", "--steps")
    return setting(50, help, PIPELINE, names=names, minimum=minimum, maximum=10_000, **more)


@dataclass(frozen=True)
class HubSettings:
    """How a model that is not on this machine is fetched: keyword arguments of the functions that open one."""

    revision: str | None = setting(
        None, "Branch, tag or commit of the model on the hub. [default: its main branch]", MODEL, recorded=True
    )
    variant: str | None = setting(
        None,
        "Variant of the weight files, such as fp16 for *.fp16.safetensors. [default: the files without one, else the "
        "only one]",
        MODEL,
        recorded=True,
    )
    local_files_only: bool = setting(False, "Use the local cache of the hub and never its server.", MODEL)


def flag_name(name: str) -> str:
    """Return the flag of a field: ``--max-train-steps`` of ``max_train_steps``."""
    return "--" + name.replace("_", "-")


def setting_fields(settings_class: type) -> Iterator[tuple[Field, type]]:
    """Iterate over the fields of a settings class and their types; fields of nested settings stand in their place."""
    types = get_type_hints(settings_class)
    for each in fields(settings_class):
        if is_dataclass(types[each.name]):
            yield from setting_fields(types[each.name])
        else:
            yield each, types[each.name]


def plain_type(annotation: type) -> type:
    """Return the type of a setting's value: ``list`` for ``list[str] | None``."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    kind = next(part for part in parts if part is not type(None))
    return get_origin(kind) or kind


def values_of(settings: Any) -> dict[str, object]:
    """Return the values of a settings object and of the settings nested in it, by field name."""
    values: dict[str, object] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        values |= values_of(value) if is_dataclass(value) else {each.name: value}
    return values


def run_arguments(settings: Any) -> dict[str, object]:
    """Return the keyword arguments that ``sampling.generate`` takes from a settings object."""
    names = {each.name for each, _ in setting_fields(type(settings)) if each.metadata["run"]}
    return {name: value for name, value in values_of(settings).items() if name in names}
