"""A model as its configs describe it: blocks and branches without weights, to count on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import init_empty_weights

from skipdit_cli.errors import reading
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.models.build import build_transformer, preset_config
from skipdit_cli.models.index import check_index, is_part, pipeline_class, transformer_config
from skipdit_cli.models.open import branches_config, find_folder, named_model
from skipdit_cli.presets import load_preset
from skipdit_cli.skip import SKIP, SkipBranches, add_skip_branches, skip_folder
from skipdit_cli.trunk import Trunk, known_trunk


@dataclass(frozen=True)
class Outline:
    """A pipeline without its weights: what can be asked of it is checked on this, before any are read.

    Args:
        name: As given.
        transformer: On the meta device, with branches on it if its class can have them.
        attached: Whether they are its own.
        transformer_2: The second of its pipeline, if there is one, in the same way.
        config: What its ``model_index.json`` holds.
        kind: The class of the pipeline; None of a lone transformer.
        folder: Where it lies.
    """

    name: str
    transformer: object
    attached: bool
    transformer_2: object = None
    config: dict = field(default_factory=dict)
    kind: type | None = None
    folder: Path | None = None

    @property
    def trunk(self) -> Trunk | None:
        """None where only a forward would tell."""
        return known_trunk(self.transformer)

    @property
    def branches(self) -> SkipBranches | None:
        return None if self.trunk is None else self.trunk.branches

    @property
    def labels(self) -> dict[str, int]:
        """Names of classes, several to one between commas, as diffusers' ``DiTPipeline`` reads them."""
        named = self.config.get("id2label") or {}
        return {name.strip(): int(at) for at, names in named.items() for name in names.split(",")}


def read_outline(model: str | None, preset_name: str | None = None, lone: bool = False, **hub_arguments) -> Outline:
    """The outline of a pipeline folder, hub id, or the model a preset names; no weights are read.

    A model without skip branches gets those of the ``residual`` merge, to see what they would cost.

    Args:
        lone: Take the folder of a transformer alone, too, which cannot be sampled.
    Raises:
        UsageError: There is no such model, or its configs are damaged.
    """
    preset = load_preset(preset_name) if model is None and preset_name else None
    if preset is not None and preset.model and preset.weights_path is None:
        return Outline(preset.name, _transformer(preset.name, preset_config(preset), None), False)
    named = named_model(model, preset_name)
    alone = Path(named).expanduser()
    if lone and is_part(alone):
        transformer = _part(named, alone / SKIP, transformer_config(alone))
        return Outline(str(model), transformer, (alone / SKIP).is_dir())
    folder = find_folder(named, **hub_arguments)
    index = check_index(named, folder, weights=False)
    transformer, second = (
        _part(named, folder / skip_folder(part), transformer_config(folder / part, index))
        if index.get(part) not in (None, [None, None])
        else None
        for part in TRANSFORMERS
    )
    attached, kind = (folder / SKIP).is_dir(), pipeline_class(named, index)
    return Outline(str(model or preset_name), transformer, attached, second, index, kind, folder)


def _part(name, skip: Path, config: dict):
    return _transformer(str(name), config, branches_config(skip) if skip.is_dir() else None)


def _transformer(name: str, config: dict, skip: dict | None):
    with init_empty_weights():
        transformer = build_transformer(config)
        branches = None if skip is None else _branches(name, skip)
        trunk = known_trunk(transformer)
        if branches is not None or (trunk is not None and not trunk.backbone.native_skips and len(trunk) > 1):
            add_skip_branches(transformer, branches=branches)
    return transformer


def _branches(name: str, config: dict) -> SkipBranches:
    with reading(f"The {SKIP}/config.json of {name}", failed="does not describe skip branches"):
        return SkipBranches.from_config(config)
