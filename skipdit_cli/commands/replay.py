"""What ``skipdit sample`` records of a run, and what ``--from`` takes from a record: the same closed list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skipdit_cli import console, media
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.formats import is_number
from skipdit_cli.presets import embedded_folder, embedded_names, load_preset, preset_names
from skipdit_cli.sampling.sample_settings import SampleSettings
from skipdit_cli.settings import plain_type, setting_fields, values_of
from skipdit_cli.version import versions_of_results

_JSON_TYPES = {
    field.name: str if plain_type(kind) is Path else plain_type(kind)
    for field, kind in setting_fields(SampleSettings)
    if field.metadata["recorded"]
}
RECORDED = {"model": str, "weights": str, **_JSON_TYPES}
"""Names and JSON types of what is recorded: ``weights`` names a model embedded in the package, ``model`` any other.
No name says where to write or what file of prompts to read, so a stranger's image cannot ask for it."""
TYPE_NAMES = {str: "a text", list: "a list of texts", int: "a whole number", float: "a number", bool: "true or false"}


def make_record(
    settings: SampleSettings, model: str | Path, conditions: Sequence[int | str | None]
) -> dict[str, object]:
    """Return the record of a run: parameters of the command that make the same samples again.

    Args:
        settings: The settings, with all defaults filled in.
        model: The model that ``-m`` or ``--preset`` comes to.
        conditions: One prompt or class label per sample, or None for an unconditional model.
    """
    values = {name: value for name, value in values_of(settings).items() if name in RECORDED and value is not None}
    record = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    record.pop("num_images", None)
    folder = Path(model).expanduser()
    embedded = folder.resolve().parent == embedded_folder().resolve()
    record |= {"weights": folder.name} if embedded else {"model": str(model)}
    record |= record_conditions(conditions)
    return dict(sorted(record.items()))  # in one order, so that a replay writes the same bytes


def describe_run(settings: SampleSettings, name, conditions: list, outline) -> dict:
    """Return all that the files of a run depend on, as plain data: what a resumed run has to share."""
    record, npz = make_record(settings, name, conditions), settings.npz
    weights = max((path.stat().st_mtime_ns for path in outline.folder.glob("*/*.safetensors")), default=0)
    facts = {"weights of the model": weights, "versions": versions_of_results()}
    facts["num_images"] = len(conditions)
    return {**record, "npz": npz and str(npz), "format": settings.format, **facts}


def record_conditions(conditions: Sequence[int | str | None]) -> dict[str, object]:
    """Return the parameters that give these samples their conditions."""
    if isinstance(conditions[0], str):
        return {"prompt": list(conditions), "num_images": 1}
    if conditions[0] is None:
        return {"num_images": len(conditions)}
    return {"class_labels": ",".join(map(str, conditions))}


def read_record(path: Path) -> dict[str, object]:
    """Return what an image or video of ``skipdit sample`` records of its run: parameter name to value.

    A record is complete: a setting that it lacks was not given. It is None here, which stands for the default,
    whatever the environment and a preset say now.

    Raises:
        UsageError: There is no record, a setting has the wrong type, or its model is not embedded any more.
    """
    settings = media.read_metadata(path).get("settings")
    if not settings:
        raise UsageError(f"Got --from {path}, which does not say how it was sampled; give a file of 'skipdit sample'.")
    settings = dict(settings)
    preset = settings.pop("preset", None)  # of older versions, which recorded all that it set
    unknown = [name for name in settings if name not in RECORDED]
    if unknown:
        names = ", ".join(name[:40] for name in unknown[:20])
        names += f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
        console.warn(f"the record of {path} holds {names}, which --from does not take: left out.")
    values = {name: _check_type(path, name, settings.get(name)) for name in RECORDED}
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


def _check_type(path: Path, name: str, value: object) -> object:
    """Return a value of the record; raise ``UsageError`` if it has another type than its setting, or is infinite."""
    kind = RECORDED[name]
    if value is None:
        return None
    if name == "cache_layers" and type(value) is int:  # as versions before 0.3 wrote it
        return str(value)
    if kind is list:
        value = [value] if isinstance(value, str) else value
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    elif kind is float:
        fits = is_number(value)
    else:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise UsageError(f"The record of {path} says {name}: {str(value)[:60]!r}, but expected {TYPE_NAMES[kind]}.")
    return value
