"""DiT with each of the four ways of conditioning that its paper compares; diffusers' class has the last alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.adaln_zero import initialise
from skipdit_cli.families.declarations import one_list
from skipdit_cli.families.family import Family, PipelineAround, Training
from skipdit_cli.presets import Preset

CONDITIONINGS = IN_CONTEXT, CROSS_ATTENTION, ADALN, ADALN_ZERO = "in-context", "cross-attention", "adaln", "adaln-zero"
KEYS = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "num_layers",
    "sample_size",
    "patch_size",
    "activation_fn",
    "num_embeds_ada_norm",
    "norm_eps",
)
"""The keys of the config that diffusers' ``DiTTransformer2DModel`` has as well."""

FAMILY = Family(
    "ConditionedDiTTransformer2DModel",
    trunk=one_list(),
    classes=("skipdit_cli.families.conditioned_dit_model.ConditionedDiTTransformer2DModel",),
    pipeline=PipelineAround("DiTPipeline", sample_flags="--class-labels 0,1"),
    training=Training(("DiTPipeline",)),
    initialise=initialise,
)


def with_conditioning(preset: Preset, conditioning: str | None) -> Preset:
    """Return a preset of a DiT whose model has another way of conditioning.

    Args:
        conditioning: One of ``CONDITIONINGS``; None leaves the preset as it is.

    Raises:
        UsageError: There is no such conditioning, or the preset is of another model.
    """
    if conditioning is None:
        return preset
    if conditioning not in CONDITIONINGS:
        hint = nearest(conditioning, CONDITIONINGS)
        raise UsageError(f"Got --conditioning '{conditioning}' but expected one of {', '.join(CONDITIONINGS)}.{hint}")
    name = preset.model.get("class", "no model")
    if name not in ("DiTTransformer2DModel", FAMILY.name):
        raise UsageError(
            f"Got --conditioning {conditioning}, but preset {preset.name} describes {name}; expected a preset of a "
            "DiT, such as digits or dit-xl-2-256."
        )
    return replace(preset, model={**preset.model, **_model(preset.model["config"], conditioning)})


def _model(config: Mapping[str, Any], conditioning: str) -> dict[str, Any]:
    shared = {key: config[key] for key in KEYS if key in config}
    return {"class": FAMILY.name, "config": {"conditioning": conditioning, **shared}}
