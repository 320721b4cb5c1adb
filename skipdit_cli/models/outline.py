"""A model from its configs alone: its transformers on the meta device, without weights.

Commands count blocks, parameters and FLOPs on it, and check flags against it, before they read any weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import init_empty_weights

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.families.conditioned_dit import with_conditioning
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.models.build import build_transformer, preset_config
from skipdit_cli.models.hub import find_folder
from skipdit_cli.models.index import (
    check_index,
    has_part,
    is_part,
    pipeline_class,
    transformer_config,
)
from skipdit_cli.models.open import branches_config, named_model
from skipdit_cli.presets import load_preset
from skipdit_cli.skip import SKIP, SkipBranches, add_skip_branches, skip_folder
from skipdit_cli.trunk import Trunk, known_trunk


@dataclass(frozen=True)
class Outline:
    """A pipeline without its weights.

    Args:
        name: The model, as the user named it.
        transformer: The transformer on the meta device, with skip branches on it if its class can have them.
        attached: Whether the folder holds those branches; if not, they show what ``convert`` would add.
        transformer_2: The second transformer, in the same way; None if the pipeline has one alone.
        config: The content of ``model_index.json``.
        kind: The class of the pipeline; None for a transformer alone.
        folder: The folder of the pipeline; None for a preset or a transformer alone.
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
        """The trunk of the transformer; None where only a forward pass would find it."""
        return known_trunk(self.transformer)

    @property
    def branches(self) -> SkipBranches | None:
        """The skip branches of the transformer, if it has any."""
        return None if self.trunk is None else self.trunk.branches


def read_outline(
    model: str | Path | None,
    preset_name: str | None = None,
    lone: bool = False,
    conditioning: str | None = None,
    **hub_arguments,
) -> Outline:
    """Read the outline of a pipeline folder, a hub id, or the model that a preset names.

    A model without skip branches gets those of the ``residual`` merge, to show what they would cost.

    Args:
        model: The folder or hub id; without it the preset counts.
        lone: Accept the folder of a transformer alone, too, which cannot be sampled.
        conditioning: As for ``with_conditioning``, of a DiT that a preset names.
        hub_arguments: revision, token, local_files_only, ...
    Raises:
        UsageError: There is no such model, or its configs are damaged.
    """
    preset = load_preset(preset_name) if model is None and preset_name else None
    if conditioning is not None and preset is None:
        raise UsageError(f"Got --conditioning {conditioning} without the --preset of a DiT; give one.")
    preset = preset and with_conditioning(preset, conditioning)
    if preset is not None and preset.model and (preset.weights_path is None or conditioning is not None):
        return Outline(preset.name, _outlined_transformer(preset.name, preset_config(preset), None), False)
    name = named_model(model, preset_name)
    path = Path(name).expanduser()
    if lone and is_part(path):
        skip = path / SKIP
        return Outline(str(model), _outlined_transformer(name, transformer_config(path), skip), skip.is_dir())
    folder = find_folder(name, **hub_arguments)
    index = check_index(name, folder, weights=False)
    transformers = {
        part: _outlined_transformer(name, transformer_config(folder / part, index), folder / skip_folder(part))
        for part in TRANSFORMERS
        if has_part(index, part)
    }
    facts = {"attached": (folder / SKIP).is_dir(), "kind": pipeline_class(name, index), "folder": folder}
    return Outline(str(model or preset_name), config=index, **transformers, **facts)


def _outlined_transformer(name, config: dict, skip: Path | None):
    """Build a transformer on the meta device, with the branches that ``skip/`` describes, or with new ones."""
    settings = branches_config(skip) if skip is not None and skip.is_dir() else None
    branches = None
    with init_empty_weights():
        transformer = build_transformer(config)
        if settings is not None:
            with reading(f"The {SKIP}/config.json of {name}", failed="does not describe skip branches"):
                branches = SkipBranches.from_config(settings)
        trunk = known_trunk(transformer)
        if branches is not None or (trunk is not None and not trunk.backbone.native_skips and len(trunk) > 1):
            add_skip_branches(transformer, branches=branches)
    return transformer
