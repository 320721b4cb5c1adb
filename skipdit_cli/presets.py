"""Presets: YAML files that name a model and set flags of commands; commands/values.py defines their precedence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.formats import check_values, parse_yaml, read_text, to_json

PACKAGE = Path(__file__).parent
OWN_KEYS = ("about", "source", "weights", "model", "made_for", "experiment", "sweep")
BRANCH = "output_branch="
"""The argument of a scheduler that names a file; a preset names one beside it."""
NULLS = ("", "null", "~")
MAX_BYTES = 1 << 18
FORBIDDEN_FLAGS = {
    **dict.fromkeys(("push-to-hub", "private"), "publishes"),
    **dict.fromkeys(("output", "npz", "html", "cache-latents", "update-card"), "says where to write"),
    "overwrite": "replaces files",
    "prompts-file": "reads a text of yours",
}
"""Flags that no preset may set, and what they do, since a preset may come from someone else."""
MADE_FOR: dict[str, tuple[type, ...]] = {
    "class": (str,),
    "blocks": (int, type(None)),
    "fingerprint": (str,),
    "weights": (str, type(None)),
    "branches": (str,),
    "sampler": (str,),
    "steps": (int,),
    "checksum": (str,),
    "guidance_scale": (int, float, type(None)),
    "cost": (int, float),
    "measured": (dict,),
    "date": (str,),
    "versions": (dict,),
}
"""The keys of ``made_for``, all of them required, and the types of their values."""
LONGEST_MADE_FOR = 20_000
"""Characters of ``made_for``, written as JSON."""


@dataclass(frozen=True)
class Preset:
    """One preset file.

    Attributes:
        name: The stem of the file.
        about: One-line description.
        source: Where its numbers come from.
        weights: Name of a model embedded in the package, or empty.
        model: ``{"class": diffusers class name, "config": its arguments}``, or empty; ``"scheduler"`` may hold the
            same for a scheduler.
        made_for: What a plan was made for and how it was measured (``MADE_FOR``); empty for any other preset.
        experiment: The settings of a study, with its name as ``study``; empty for any other preset.
        sweep: The grid of ``train --sweep``: for each axis its variants by name, each of them the values of flags of
            ``train`` and of keys of the model's config, as texts; empty for any other preset.
        flags: Command name to ``{flag without dashes: value as typed, or a list of such values}``.
    """

    name: str
    about: str = ""
    source: str = ""
    weights: str = ""
    model: dict = field(default_factory=dict)
    made_for: dict[str, Any] = field(default_factory=dict)
    experiment: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    flags: dict[str, dict[str, str | list[str]]] = field(default_factory=dict)

    @property
    def weights_path(self) -> Path | None:
        """The folder of the embedded model, if the preset names one."""
        return embedded_folder() / self.weights if self.weights else None


def embedded_folder() -> Path:
    """Return the folder of the models embedded in the package."""
    return PACKAGE / "embedded"


def embedded_names() -> list[str]:
    """Return the names of the embedded models."""
    return sorted(path.name for path in embedded_folder().iterdir() if path.is_dir())


def preset_folder() -> Path:
    """Return the folder of the presets: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "_presets"
    return installed if installed.is_dir() else PACKAGE.parent / "presets"


def preset_names() -> list[str]:
    """Return the names of the presets that the package brings."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def preset_path(name_or_path: str) -> Path:
    """Return the file of a preset.

    Args:
        name_or_path: Its name, or a path (anything with a separator or a .yaml suffix).
    Raises:
        UsageError: There is no such preset; the message names the closest.
    """
    is_path = Path(name_or_path).suffix in (".yaml", ".yml") or bool(re.search(r"[/\\]", name_or_path))
    path = Path(name_or_path) if is_path else preset_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        hint = "" if is_path else nearest(name_or_path, preset_names())
        raise UsageError(f"Got preset '{name_or_path}', which does not exist.{hint} See 'skipdit presets list'.")
    return path


def load_preset(name_or_path: str, commands: Mapping[str, set[str]] | None = None) -> Preset:
    """Read one preset.

    Args:
        commands: The flags of each command; if given, a preset with an unknown command or flag is refused.
    Raises:
        UsageError: There is no such preset, its YAML is bad, or a key is unknown; the message names the closest.
    """
    import yaml

    path = preset_path(name_or_path)
    text, name = read_text(path, MAX_BYTES), f"Preset {path}"
    data = parse_yaml(text, name, yaml_loader())
    # Flags stay strings, as typed: YAML reads 1000:20 as 60020, a number in base 60.
    typed: Any = parse_yaml(text, name, yaml.BaseLoader)
    if not isinstance(data, dict):
        raise UsageError(f"Preset {path} holds a {type(data).__name__} but expected a mapping of keys.")
    about, source, weights = (_text(path, key, typed) for key in OWN_KEYS[:3])
    if weights and Path(weights).name != weights:
        raise UsageError(f"Preset {path} has 'weights: {weights}' but expected the name of an embedded model: digits.")
    flags = {key: _flags(path, key, values, commands) for key, values in typed.items() if key not in OWN_KEYS}
    _find_branch(path, flags.get("sample", {}).get("scheduler-arg"))
    model, made_for = _model(path, data.get("model")), _made_for(path, data.get("made_for"))
    experiment, sweep = _mapping(path, "experiment", data), _sweep(path, typed.get("sweep", ""), commands)
    return Preset(path.stem, about, source, weights, model, made_for, experiment, sweep, flags)


def _find_branch(path: Path, arguments: Any) -> None:
    """Replace the name of an output branch, a file beside the preset, by its path."""
    for at, text in enumerate(arguments if isinstance(arguments, list) else ()):
        if text.startswith(BRANCH):
            name = parse_yaml(text.removeprefix(BRANCH), f"Preset {path}: {BRANCH}")
            if not isinstance(name, str) or not name or re.search(r"[/\\]", name):
                raise UsageError(f"Preset {path} has '{text[:60]}' but expected the name of a file beside it.")
            arguments[at] = BRANCH + to_json(str(path.absolute().parent / name))


def yaml_loader():
    """Return PyYAML's safe loader, changed to read 1e-6 as a number, as YAML 1.2 does."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    exponent = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    return Loader


def _text(path: Path, key: str, typed: dict) -> str:
    value = typed.get(key, "")
    if not isinstance(value, str):
        raise UsageError(f"Preset {path} has '{key}' with a {type(value).__name__} but expected a text.")
    return "" if value in NULLS else value


def _model(path: Path, model: Any) -> dict:
    if model is None:
        return {}
    check_values(model, f"Preset {path}: model")
    parts: list[Any] = [model, *([model["scheduler"]] if isinstance(model, dict) and "scheduler" in model else [])]
    for part in parts:
        valid = isinstance(part, dict) and set(part) - {"scheduler"} == {"class", "config"}
        if not valid or not isinstance(part["config"], dict) or not isinstance(part["class"], str):
            raise UsageError(
                f"Preset {path} has a 'model' (or its scheduler) that is not class: NAME, config: {{...}}."
            )
    return model


def _mapping(path: Path, key: str, data: dict) -> dict[str, Any]:
    """Return the mapping under a key of a preset; empty if there is none."""
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"Preset {path} has '{key}: {str(value)[:60]}' but expected a mapping of keys.")
    check_values(value, f"Preset {path}: {key}")
    return value


def _made_for(path: Path, made_for: Any) -> dict[str, Any]:
    if made_for is None:
        return {}
    name = f"Preset {path}: made_for"
    if not isinstance(made_for, dict):
        raise UsageError(f"{name} is '{str(made_for)[:60]}' but expected a mapping of keys.")
    check_values(made_for, name)
    for key in made_for:
        if key not in MADE_FOR:
            raise UsageError(f"{name} has an unknown key '{key}'.{nearest(key, MADE_FOR)}")
    for key, types in MADE_FOR.items():
        if key not in made_for:
            raise UsageError(f"{name} has no '{key}'; the file is cut short or edited: calibrate again.")
        value = made_for[key]
        if not isinstance(value, types) or isinstance(value, bool):
            kinds = {str: "a text", int: "a whole number", float: "a number", dict: "a mapping", type(None): "null"}
            expected = " or ".join(kinds[kind] for kind in types)
            raise UsageError(f"{name} has '{key}: {str(value)[:60]}' but expected {expected}.")
    length = len(to_json(made_for))
    if length > LONGEST_MADE_FOR:
        raise UsageError(f"{name} has {length:,} characters but expected at most {LONGEST_MADE_FOR:,}.")
    return made_for


def _sweep(path: Path, sweep: Any, commands: Mapping[str, set[str]] | None) -> dict[str, dict[str, dict[str, str]]]:
    """Return the axes of a sweep; a list of values is that of one key, whose variants are named after them."""
    if sweep in NULLS:
        return {}
    if not isinstance(sweep, dict):
        raise UsageError(f"Preset {path} has 'sweep: {str(sweep)[:60]}' but expected a mapping of keys.")
    axes: dict[str, dict[str, dict[str, str]]] = {}
    for axis, values in sweep.items():
        what = f"Preset {path} has 'sweep: {axis}: {str(values)[:60]}'"
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            if len({*values}) < len(values):
                raise UsageError(f"{what}, which holds a value twice; leave one of the two out.")
            axes[axis] = {f"{axis}-{value}": {axis: value} for value in values}
        elif isinstance(values, dict) and values and all(_is_variant(each) for each in values.values()):
            axes[axis] = values
        else:
            raise UsageError(f"{what} but expected a list of values, or variants by name, each with values by key.")
        for key in {key for variant in axes[axis].values() for key in variant}:
            if key in FORBIDDEN_FLAGS:
                raise UsageError(f"Preset {path} sweeps '{key}', which {FORBIDDEN_FLAGS[key]}; leave it out.")
            if commands is not None and "-" in key and key not in commands["train"]:
                raise UsageError(f"Preset {path} has an unknown key 'sweep: {key}'.{nearest(key, commands['train'])}")
    return axes


def _is_variant(values: Any) -> bool:
    return isinstance(values, dict) and bool(values) and all(isinstance(value, str) for value in values.values())


def _flags(
    path: Path, command: str, values: Any, commands: Mapping[str, set[str]] | None
) -> dict[str, str | list[str]]:
    if commands is not None and command not in commands:
        hint = nearest(command, [*commands, *OWN_KEYS])
        raise UsageError(f"Preset {path} has an unknown key '{command}'.{hint}")
    if values != "" and not isinstance(values, dict):
        raise UsageError(f"Preset {path} has '{command}: {values}' but expected flags and their values.")
    flags = {}
    for flag, value in (values or {}).items():
        if flag in FORBIDDEN_FLAGS:
            raise UsageError(
                f"Preset {path} sets '{command}: {flag}', which {FORBIDDEN_FLAGS[flag]}; give --{flag} by hand."
            )
        if commands is not None and flag not in commands[command]:
            hint = nearest(flag, commands[command])
            raise UsageError(f"Preset {path} has an unknown key '{command}: {flag}'.{hint}")
        if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"Preset {path} has '{command}: {flag}: {value}' but expected one value or a list.")
        if value not in NULLS:
            flags[flag] = value
    return flags
