"""A model as its configs describe it: blocks and branches without weights, to count on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights

from skipdit_cli.backbones import Trunk, known_trunk
from skipdit_cli.checkpoints.architecture import build_transformer, is_transformer
from skipdit_cli.checkpoints.pipeline import find_folder, is_part, named_model
from skipdit_cli.checkpoints.weights import read_json
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.skip import SKIP, SkipBranches, add_skip_branches


@dataclass(frozen=True)
class Outline:
    """
    Args:
        name: As given.
        transformer: On the meta device, with branches on it if its class can have them.
        attached: Whether they are its own.
    """

    name: str
    transformer: object
    attached: bool

    @property
    def trunk(self) -> Trunk | None:
        """None where only a forward would tell."""
        return known_trunk(self.transformer)

    @property
    def branches(self) -> SkipBranches | None:
        return None if self.trunk is None else self.trunk.branches


def read_outline(model: str | None, preset_name: str | None = None, **hub_arguments) -> Outline:
    """The outline of a pipeline folder, transformer folder, hub id, or the model a preset names; no weights are read.

    A model without skip branches gets those of the ``residual`` merge, to see what they would cost.

    Raises:
        UsageError: There is no such model, or its configs are damaged.
    """
    preset = load_preset(preset_name) if model is None and preset_name else None
    if preset is not None and preset.model and preset.weights_path is None:
        config = {"_class_name": preset.model["class"], **preset.model.get("config", {})}
        return _outline(preset.name, config, None)
    named = named_model(model, preset_name)
    alone = is_part(Path(named).expanduser())
    folder = Path(named).expanduser() if alone else find_folder(named, **hub_arguments)
    config = read_json((folder if alone else folder / "transformer") / "config.json")
    if not is_transformer(config.get("_class_name")):
        raise UsageError(f"Folder {folder} holds a {config.get('_class_name')}, which has no transformer trunk.")
    skip = read_json(folder / SKIP / "config.json") if (folder / SKIP).is_dir() else None
    return _outline(str(model or preset_name), config, skip)


def _outline(name: str, config: dict, skip: dict | None) -> Outline:
    with init_empty_weights():
        transformer = build_transformer(config)
        branches = None if skip is None else _branches(name, skip)
        trunk = known_trunk(transformer)
        if branches is not None or (trunk is not None and not trunk.backbone.native_skips):
            add_skip_branches(transformer, branches=branches)
    return Outline(name, transformer, skip is not None)


def _branches(name: str, config: dict) -> SkipBranches:
    try:
        return SkipBranches.from_config(config)
    except (TypeError, ValueError, RuntimeError) as cause:
        raise UsageError(f"The {SKIP}/config.json of {name} does not describe skip branches: {cause}") from cause
