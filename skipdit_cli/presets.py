"""Presets: YAML files that name a model and set flags of commands. Order: flag > environment > preset > default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from skipdit_cli.errors import UsageError, nearest

PACKAGE = Path(__file__).parent
TEXT_KEYS = ("about", "source")


@dataclass(frozen=True)
class Preset:
    """One preset file.

    Args:
        name: The file's stem.
        about, source: What it is, and where its numbers come from.
        weights: Name of a model embedded in the package, if the preset brings one.
        model: ``{"class": diffusers class name, "config": its arguments}``, or empty.
        flags: Command name to ``{flag without dashes: value}``.
    """

    name: str
    about: str = ""
    source: str = ""
    weights: str = ""
    model: dict = field(default_factory=dict)
    flags: dict[str, dict[str, object]] = field(default_factory=dict)

    @property
    def weights_path(self) -> Path | None:
        return PACKAGE / "embedded" / self.weights if self.weights else None


def preset_folder() -> Path:
    """Where the presets are: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "_presets"
    return installed if installed.is_dir() else PACKAGE.parent / "presets"


def preset_names() -> list[str]:
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def load_preset(name_or_path: str, commands: dict[str, set[str]] | None = None) -> Preset:
    """Read a preset by name, or by path (anything with a separator or a .yaml suffix).

    Args:
        commands: Flags each command takes; given, a preset with any other command or flag is refused.
    Raises:
        UsageError: No such preset, bad YAML, or an unknown key; the message names the nearest.
    """
    is_path = Path(name_or_path).suffix in (".yaml", ".yml") or "/" in name_or_path
    path = Path(name_or_path) if is_path else preset_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        hint = "" if is_path else nearest(name_or_path, preset_names())
        raise UsageError(f"Got --preset {name_or_path}, which does not exist.{hint} See 'skipdit presets list'.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise UsageError(f"Preset {path} is not readable YAML: {str(cause).splitlines()[0]}.") from cause
    if not isinstance(data, dict):
        raise UsageError(f"Preset {path} holds a {type(data).__name__} but expected a mapping of keys.")
    own = (*TEXT_KEYS, "weights", "model")
    flags = {key: value or {} for key, value in data.items() if key not in own}
    for command, values in flags.items():
        if commands is not None and command not in commands:
            raise UsageError(f"Preset {path} has an unknown key '{command}'.{nearest(command, [*commands, *own])}")
        if not isinstance(values, dict):
            raise UsageError(f"Preset {path} has '{command}: {values}' but expected flags and their values.")
        for flag in values:
            if commands is not None and flag not in commands[command]:
                hint = nearest(flag, commands[command])
                raise UsageError(f"Preset {path} has an unknown key '{command}: {flag}'.{hint}")
    return Preset(
        path.stem,
        *(data.get(key) or "" for key in TEXT_KEYS),
        data.get("weights") or "",
        data.get("model") or {},
        flags,
    )
