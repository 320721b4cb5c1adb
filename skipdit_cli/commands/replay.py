"""What ``skipdit sample`` records of a run, and what ``--from`` takes of a record: the same closed list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from skipdit_cli import console, media
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import embedded_folder, embedded_names, load_preset, preset_names

RECORDED = {
    "model": str, "weights": str, "revision": str, "vae": str, "lora": str, "class_labels": str, "prompt": list,
    "negative_prompt": str, "num_images": int, "num_frames": int, "fps": float, "num_inference_steps": int,
    "guidance_scale": float, "cfg_channels": str, "scheduler": str, "seed": int, "batch_size": int,
    "cache_layers": int, "cache_interval": int, "cache_window": str, "full_steps": str, "forecast": str,
    "cache_target": str, "height": int, "width": int, "image": str, "strength": float, "pipeline_arg": list,
    "vae_tiling": bool, "dtype": str, "device": str, "compile": bool,
}  # fmt: skip
"""Settings and their JSON types, under their parameters' names; ``weights`` is an embedded model's. Nothing that says
where to write, or that a text be read, is among them; so a stranger's picture cannot ask for it."""
SAID = {str: "a text", list: "a list of texts", int: "a whole number", float: "a number", bool: "true or false"}


def recorded(given: Mapping[str, object], named: str | Path) -> dict[str, object]:
    """The settings to record of a run.

    Args:
        given: The command's parameters.
        named: The model that they come to.
    """
    settings = {name: given[name] for name in RECORDED if given.get(name) is not None}
    settings |= {name: str(value) for name, value in settings.items() if isinstance(value, Path)}
    settings.pop("model", None)
    folder = Path(named).expanduser()
    embedded = folder.resolve().parent == embedded_folder().resolve()
    return {**settings, **({"weights": folder.name} if embedded else {"model": str(named)})}


def read_record(path: Path) -> dict[str, object]:
    """What a picture or video of ours says of how it was made: parameter name to value.

    A record is whole: a setting that it lacks was not given, and is None here for the default, whatever the
    environment and a preset say now.

    Raises:
        UsageError: There is no record, or one of its settings is of another type; or its model is no longer embedded.
    """
    settings = media.read_metadata(path).get("settings")
    if not settings:
        raise UsageError(f"Got --from {path}, which does not say how it was sampled; give a file of 'skipdit sample'.")
    settings = dict(settings)
    preset = settings.pop("preset", None)  # of older versions, which recorded all that it set
    left = [name for name in settings if name not in RECORDED]
    if left:
        console.warn(f"the record of {path} holds {', '.join(left)}, which --from does not take: left out.")
    values = {name: _checked(path, name, settings.get(name)) for name in RECORDED}
    weights = values.pop("weights") or (None if values["model"] else _embedded_in(preset))
    if weights is not None:
        values["model"] = str(embedded_folder() / _known(path, weights))
    elif values["model"] is None:
        del values["model"]  # made with a preset of one's own, which has to be given again
    return values


def _known(path: Path, weights: str) -> str:
    names = embedded_names()
    if weights not in names:
        raise UsageError(
            f"The record of {path} names the embedded model '{weights}', which is not one of {', '.join(names)}."
            f"{nearest(weights, names)}"
        )
    return weights


def _embedded_in(preset: object) -> str | None:
    return load_preset(preset).weights or None if preset in preset_names() else None


def _checked(path: Path, name: str, value: object) -> object:
    """
    Raises:
        UsageError: It is of another type than what is recorded under this name, or not finite.
    """
    kind = RECORDED[name]
    if value is None:
        return None
    if kind is list:
        value = [value] if isinstance(value, str) else value
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif kind is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise UsageError(f"The record of {path} says {name}: {str(value)[:60]!r}, but expected {SAID[kind]}.")
    return value
