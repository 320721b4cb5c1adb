"""What a study is: the commands that it runs, what it measures on their outputs, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from skipdit_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    from skipdit_cli.reports import Comparison, HeatMaps, Plot, Table


@dataclass(frozen=True)
class Findings:
    """What a study finds: the sections of its report, and its numbers.

    Args:
        lead: The answer in one or two sentences.
        details: Further sentences of the answer.
        numbers: Every number behind it, one per seed where there are seeds, as JSON.
        plots, tables, curves, maps, comparison, notes, warnings: As for ``reports.Report``.
    """

    lead: str
    details: Sequence[str] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    curves: Sequence[Plot] = ()
    maps: Sequence[HeatMaps] = ()
    comparison: Comparison | None = None
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """An experiment.

    Args:
        name: The name in ``skipdit study NAME``.
        summary: What it asks, in a few words.
        claim: What the paper claims, in a sentence with its source.
        settings: A frozen dataclass with this study's own settings, which presets hold.
        commands: Returns the command lines by name, in their order, for the settings and the seeds. A line has no
            "skipdit" and no ``--output``; ``{run}/NAME`` in it is the output of an earlier one.
        measure: Takes the ``StudyRun`` whose commands have run, and measures what they made.
        needs: Returns what the study needs, one sentence each, before anything runs; it may refuse with
            ``UsageError``.
        check: Refuses with ``UsageError`` settings whose files or packages are missing, before anything is written; a
            dry run does without it.
    """

    name: str
    summary: str
    claim: str
    settings: type[Any]
    commands: Callable[[Any, tuple[int, ...]], dict[str, str]]
    measure: Callable[[Any], Findings]
    needs: Callable[[Any, tuple[int, ...]], Sequence[str]] | None = None
    check: Callable[[Any], None] | None = None


def at_least(minimum: int, default: Any = MISSING) -> Any:
    """Declare a field of a settings class whose numbers have another minimum than 1."""
    return field(default=default, metadata={"minimum": minimum})


def read_settings(study: Study, experiment: Mapping[str, Any], source: str, folder: Path = Path()) -> Any:
    """Return the settings of a study from the ``experiment`` of a preset.

    Args:
        experiment: ``study``, which must name this study, and the values of its settings class. Lists become tuples,
            and a text that ends in .yaml, a further preset, becomes an absolute path.
        source: The preset, for messages.
        folder: The folder of the preset, to which the files of further presets are relative.

    Raises:
        UsageError: It is empty or of another study, a key is unknown or missing, a value has another type, a whole
            number is too small, or there is no such further preset.
    """
    if not experiment:
        raise UsageError(f"{source} has no experiment; give one of study '{study.name}', or leave --preset out.")
    if experiment.get("study") != study.name:
        raise UsageError(
            f"{source} has an experiment of study '{experiment.get('study')}' but expected '{study.name}'; give "
            "another --preset or the name of that study."
        )
    types, values = get_type_hints(study.settings), {}
    minima = {each.name: each.metadata.get("minimum", 1) for each in fields(study.settings)}
    for key, value in experiment.items():
        if key == "study":
            continue
        if key not in types:
            raise UsageError(f"{source} has an unknown key 'experiment: {key}'.{nearest(key, types)}")
        what = f"{source} has 'experiment: {key}: {str(value)[:60]}'"
        values[key] = _checked(_converted(value, types[key], what), minima[key], folder, what)
    for each in fields(study.settings):
        if each.name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise UsageError(f"{source} has no 'experiment: {each.name}', which study {study.name} needs.")
    return study.settings(**values)


def _converted(value: Any, kind: Any, what: str) -> Any:
    """Return a value as its type: a list as a tuple, a whole number as a float where a float is expected."""
    options = [option for option in get_args(kind) if option is not type(None)] if _is_optional(kind) else [kind]
    if value is None and options != [kind]:
        return None
    (option,) = options
    if get_origin(option) is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{what} but expected a list.")
        return tuple(_converted(item, get_args(option)[0], what) for item in value)
    if option is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, option) or (isinstance(value, bool) and option is not bool):
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise UsageError(f"{what} but expected {names.get(option, 'a mapping')}.")
    if isinstance(value, str) and not _is_word(value):
        raise UsageError(f"{what} but expected one word without quotes.")  # it must not add a flag to a command line
    return value


def _checked(value: Any, minimum: int, folder: Path, what: str) -> Any:
    """Return a value whose whole numbers are large enough, with the absolute paths of further presets."""
    if isinstance(value, tuple):
        return tuple(_checked(item, minimum, folder, what) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value < minimum:
        raise UsageError(f"{what} but expected {minimum} or more.")
    if isinstance(value, str) and Path(value).suffix in (".yaml", ".yml"):
        path = (folder / value).absolute()
        if not path.is_file():
            raise UsageError(f"{what}, but there is no {path}; expected a path relative to the preset that names it.")
        return str(path)
    return value


def _is_word(value: str) -> bool:
    """Return whether a command line reads a value as itself: a quote or a backslash in it may hide a flag."""
    return value.isprintable() and value[:1] != "-" and not set(value) & set("'\"\\") and value.split() == [value]


def _is_optional(kind: Any) -> bool:
    return type(None) in get_args(kind)
