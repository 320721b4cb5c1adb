"""Sweeps: the grid of a preset's ``sweep``, one preset for each of its points, and what each of them costs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.conditioned_dit import with_conditioning
from skipdit_cli.formats import is_number, parse_yaml, read_json_lines
from skipdit_cli.presets import Preset, yaml_loader
from skipdit_cli.settings import flag_name
from skipdit_cli.training.training_settings import TrainingSettings

MOST_POINTS = 1000
LONGEST_NAME = 100
"""Characters in the name of a point, which is that of its folder."""
BACKWARD = 3
"""A training step costs three forwards, its backward pass two of them (section 4 of arXiv 2212.09748)."""
LAST = 10
"""The final loss is the mean of the last one in this many steps."""
WORDS = {flag_name(each.name)[2:] for each in fields(TrainingSettings)} | {"conditioning"}
"""Flags of ``train``; every other key without a hyphen is of the model's config."""


@dataclass(frozen=True)
class Cost:
    """The cost of one point.

    Args:
        parameters: The parameters of the model, with its skip branches if it has any.
        macs: Multiply-adds of a forward of one sample, as the DiT paper counts its Gflops; None if not counted.
        training_macs: Those of the whole training; None where ``macs`` is, or the number of steps depends on the data.
    """

    parameters: int
    macs: int | None
    training_macs: int | None


def points_of(preset: Preset) -> list[Preset]:
    """Return one preset for each point of a sweep, named after its values, in the order of the grid.

    Raises:
        UsageError: The preset has no sweep, or one with too many points, a key set twice or unknown, or two points of
            one name.
    """
    if not preset.sweep:
        raise UsageError(f"Preset {preset.name} has no 'sweep'; give it one, or train it with --preset {preset.name}.")
    count = 1
    for variants in preset.sweep.values():
        count *= len(variants)
    if count > MOST_POINTS:
        raise UsageError(f"Preset {preset.name} has a sweep of {count:,} points but expected at most {MOST_POINTS:,}.")
    points: dict[str, Preset] = {}
    for choice in product(*(variants.items() for variants in preset.sweep.values())):
        name = "-".join(re.sub(r"[^\w.+-]+", "_", label) for label, _ in choice).strip(".-") or "point"
        if len(name) > LONGEST_NAME:
            raise UsageError(
                f"Preset {preset.name} has a sweep with a point of the name '{name[:30]}...', of {len(name)} "
                f"characters but expected at most {LONGEST_NAME}; rename a variant."
            )
        if name.lower() in points:  # of a file system that does not tell the case
            raise UsageError(
                f"Preset {preset.name} has a sweep with two points of the name '{name}'; rename a variant."
            )
        points[name.lower()] = _resolved(preset, name, [values for _, values in choice])
    return list(points.values())


def _resolved(preset: Preset, name: str, chosen: list[dict[str, str]]) -> Preset:
    """Return the preset of a point: that of the sweep, with the values of the point in their places."""
    values: dict[str, str] = {}
    for part in chosen:
        twice = next((key for key in part if key in values), None)
        if twice is not None:
            raise UsageError(f"Preset {preset.name} has a sweep that sets '{twice}' twice; leave one of the two out.")
        values |= part
    model, flags = dict(preset.model), dict(preset.flags.get("train", {}))
    config: dict[str, Any] = {}
    for key, text in values.items():
        if is_flag(key):
            flags[key] = text
        else:
            config[key] = parse_yaml(text, f"Preset {preset.name}: sweep", yaml_loader())
    if config and not model:
        raise UsageError(f"Preset {preset.name} sweeps '{next(iter(config))}' but names no model; add 'model'.")
    if config:
        _check_keys(preset, config)
        model["config"] = {**model["config"], **config}
    conditioning = str(flags.pop("conditioning")) if "conditioning" in flags else None
    about = f"The point {name} of the sweep {preset.name}: {', '.join(f'{k} {v}' for k, v in values.items())}."
    point = replace(preset, name=name, about=about, weights="", flags={**preset.flags, "train": flags}, sweep={})
    return with_conditioning(replace(point, model=model), conditioning)


def _check_keys(preset: Preset, keys: Iterable[str]) -> None:
    """Check that the model of a preset takes the keys of its config that a sweep varies: diffusers ignores others."""
    from skipdit_cli.models.build import config_keys, is_transformer

    if not is_transformer(preset.model["class"]):  # said where the model is built
        return
    known = config_keys(preset.model["class"])
    for key in keys:
        if key not in known:
            raise UsageError(
                f"Preset {preset.name} sweeps '{key}', which is neither a flag that a sweep may vary nor a value of a "
                f"{preset.model['class']}.{nearest(key, {*known, *WORDS})}"
            )


def is_flag(key: str) -> bool:
    """Return whether a key of a sweep is a flag of ``train``, and not of the model's config."""
    return "-" in key or key in WORDS


def preset_text(preset: Preset, command: str) -> str:
    """Return the YAML file of a point's preset.

    Args:
        command: The command line that trains the point alone, for the first line.
    """
    import yaml

    parts = {"about": preset.about, "source": preset.source, "model": preset.model, **preset.flags}
    content = yaml.safe_dump({key: value for key, value in parts.items() if value}, sort_keys=False, width=110)
    return f"# {command}\n{content}"


def cost_of(preset: Preset, settings: TrainingSettings, branches: bool, processes: int = 1) -> Cost:
    """Return the cost of a point, counted on its model without weights.

    Args:
        settings: The settings of its training.
        branches: Whether its model has skip branches.
        processes: Processes that train.
    Raises:
        UsageError: diffusers cannot build the model.
    """
    from skipdit_cli.families import class_named
    from skipdit_cli.models.build import preset_config
    from skipdit_cli.planning.flops import count_step, meta_transformer
    from skipdit_cli.skip.parameters import count_parameters

    config = preset_config(preset)
    model = meta_transformer(class_named(config["_class_name"]), config, "residual" if branches else None)
    flops, parameters = count_step(model), count_parameters(model)
    macs = None if flops is None else flops.full - flops.copies
    steps = None if settings.num_train_epochs else settings.with_steps(0, 1).max_train_steps
    training = None if macs is None or steps is None else BACKWARD * macs * settings.batch(processes) * steps
    return Cost(parameters.model + parameters.skip, macs, training)


def final_loss(run: Path) -> tuple[float | None, float]:
    """Return the mean loss at the end of a run, and the seconds of all its steps, from its metrics."""
    file = run / "metrics.jsonl"
    rows = read_json_lines(file) if file.is_file() else []
    losses = [row["loss"] for row in rows[-max(1, len(rows) // LAST) :] if is_number(row.get("loss"))]
    seconds = sum(row["seconds"] for row in rows if is_number(row.get("seconds")))
    return fmean(losses) if losses else None, seconds
