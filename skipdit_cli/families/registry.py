"""The registry of families: one line for each file of this folder, and ``register`` for families from elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from skipdit_cli.families.declarations import Backbone
from skipdit_cli.families.family import Family
from skipdit_cli.families.trunks_only import TRUNKS_ONLY

BUILT_IN = (
    "dit",
    "conditioned_dit",
    "latte_class",
    "latte",
    "pixart",
    "stable_diffusion_3",
    "flux",
    "hunyuan_dit",
    "wan",
)
"""The files of this folder that declare a ``FAMILY``."""
FAMILIES: dict[str, Family] = {}
"""Every registered family by the name of its transformer class."""


def register(family: Family) -> Family:
    """Make a family known to the whole package, in the place of an earlier one of the same name.

    Returns:
        The family.
    """
    FAMILIES[family.name] = family
    return family


def unregister(name: str) -> None:
    """Forget a family.

    Raises:
        KeyError: No family of this name is registered.
    """
    del FAMILIES[name]


def family_of(transformer) -> Family:
    """Return the family of a transformer; one without declarations if its class is not registered.

    Args:
        transformer: A model, or the name of its class.
    """
    name = transformer if isinstance(transformer, str) else class_name_of(transformer)
    return FAMILIES.get(name) or Family(name)


def declared_trunk(name: str) -> Backbone | None:
    """Return the declared trunk of a transformer class, or None if it has to be found in a forward."""
    return family_of(name).trunk


def former_names() -> dict[str, dict[str, str]]:
    """Return the present class name by former class name and ``norm_type``.

    The configs of DiT and PixArt on the hub name a class that was several. Its other kinds (the attention of UNets,
    VQ-Diffusion) still have that name.
    """
    names: dict[str, dict[str, str]] = {}
    for family in FAMILIES.values():
        for former, norm_type in family.former_names.items():
            names.setdefault(former, {})[norm_type] = family.name
    return names


def class_name(name: str, config: Mapping) -> str:
    """Return the present name of a transformer class.

    Args:
        name: The name in a config or index.
        config: The config of the transformer.
    """
    return former_names().get(name, {}).get(str(config.get("norm_type")), name)


def class_name_of(transformer) -> str:
    """Return the present name of a transformer's class; FSDP2 makes the transformer an instance of a subclass."""
    bases = type(transformer).__mro__
    kind = bases[2] if bases[1].__name__ == "FSDPModule" else bases[0]
    return class_name(kind.__name__, getattr(transformer, "config", {}))


def class_named(name: str) -> type[Any]:
    """Return a class by name: that of a registered family, otherwise that of diffusers.

    Raises:
        AttributeError: There is no such class.
    """
    module = own_classes().get(name)
    if module is None:
        import diffusers

        return getattr(diffusers, name)
    return getattr(import_module(module), name)


def config_value(config: Mapping, key: str):
    """Return a value of a transformer's config: the default of its class, or None, if the config does not say it."""
    if key in config:
        return config[key]
    parameter = inspect.signature(class_named(config["_class_name"]).__init__).parameters.get(key)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def own_classes() -> dict[str, str]:
    """Return the model and pipeline classes that are not diffusers' own, each with the module that defines it."""
    paths = [path.rpartition(".") for family in FAMILIES.values() for path in family.classes]
    return {name: module for module, _, name in paths}


def pipelines_by_class() -> set[str]:
    """Return the names of the pipelines that are sampled by class labels, or without a condition."""
    around = [family.pipeline for family in FAMILIES.values() if family.pipeline is not None]
    return {name for each in around if each.by_class for name in (each.name, each.flow) if name is not None}


for _name in BUILT_IN:
    register(import_module(f"skipdit_cli.families.{_name}").FAMILY)
for _family in TRUNKS_ONLY:
    register(_family)
