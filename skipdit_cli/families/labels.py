"""Class labels: those that a model has, their names, and its null label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from skipdit_cli.errors import UsageError, nearest

LONGEST_RANGE = 10_000
"""The most class labels in one range of ``--class-labels``."""


def null_label(config: Mapping) -> int | None:
    """Return the null label of a class-conditional model, or None if it has none to guide away from.

    It is one past the last class in diffusers' models and ours.

    Args:
        config: The config of the transformer. ``_null_class: false`` says that this row of the label embedding was
            never trained.
    """
    return config.get("num_embeds_ada_norm") if config.get("_null_class", True) else None


def check_labels(class_labels: Sequence[int | str | None], num_classes: int | None) -> None:
    """Refuse class labels that a model was not trained on.

    Args:
        class_labels: One for each sample.
        num_classes: None for an unconditional model, whose labels are None.
    Raises:
        UsageError: There is no label, or one that is a prompt, lies outside of 0..num_classes-1, or is for an
            unconditional model.
    """
    kind = "an unconditional" if num_classes is None else "a class-conditional"
    for label in class_labels:
        if isinstance(label, str):
            raise UsageError(
                f"Got --prompt '{label}', but this is {kind} model, which takes none; leave the flag out."
            )
    if num_classes is None:
        for label in class_labels:
            if label is not None:
                raise UsageError(f"Got --class-labels {label}, but this model has no classes; leave the flag out.")
        return
    if not class_labels:
        raise UsageError(f"Got no --class-labels but expected one or more of 0..{num_classes - 1}.")
    for label in class_labels:
        if not 0 <= label < num_classes:  # type: ignore[operator]  # no prompt is left, and None is for no classes
            raise UsageError(f"Got --class-labels {label} but the model has classes 0..{num_classes - 1}.")


def class_names(id2label: Mapping) -> dict[str, list[int]]:
    """Return the labels of class names. A class has several names where they are separated by commas, as ImageNet's
    "tench, Tinca tinca" in diffusers' ``DiTPipeline``; a name may belong to several classes.

    Args:
        id2label: Names by label, as ``model_index.json`` holds them.
    """
    labels: dict[str, list[int]] = {}
    for label, names in id2label.items():
        for name in {names.strip(), *(part.strip() for part in names.split(","))}:
            labels.setdefault(name, []).append(int(label))
    return labels


def read_labels(text: str, id2label: Mapping | None = None) -> list[int]:
    """Return the class labels of ``--class-labels``: numbers, ranges and names, such as ``0-3,circle``.

    A comma separates; a class whose name has a comma in it goes by one of the parts, or alone by all of it. A number
    is always a label. Names are told apart by case only where that is needed.

    Args:
        text: The labels.
        id2label: Names by label, if the model has them.
    Raises:
        UsageError: A name is unknown or belongs to several classes, or a range descends or is too long.
    """
    labels = class_names(id2label or {})
    parts = [text.strip()] if text.strip() in labels else [part.strip() for part in text.split(",") if part.strip()]
    return [label for part in parts for label in _labels_of(part, labels, text)]


def _labels_of(part: str, labels: Mapping[str, list[int]], text: str) -> Sequence[int]:
    """Return the labels of one number, name or range of a list."""
    if re.fullmatch(r"[+-]?\d{1,18}", part):
        return [int(part)]
    matches = labels.get(part) or [n for name in labels if name.lower() == part.lower() for n in labels[name]]
    if len(set(matches)) > 1:
        classes = " and ".join(map(str, sorted(set(matches))))
        raise UsageError(f"Got --class-labels {part}, which is a name of the classes {classes}; give the number.")
    if matches:
        return matches[:1]
    ends = re.fullmatch(r"(\d{1,9})-(\d{1,9})", part)
    if ends is None and not labels:
        raise UsageError(
            f"Got --class-labels '{text}' but expected integers separated by commas, such as 1,2,3 or 0-3; this model "
            "has no names of classes."
        )
    if ends is None:
        hint = nearest(part, labels) or " 'skipdit info' shows their number."
        raise UsageError(f"Got --class-labels {part}, which is no name of one of the model's classes.{hint}")
    first, last = int(ends[1]), int(ends[2])
    if not first <= last < first + LONGEST_RANGE:
        raise UsageError(
            f"Got --class-labels {part} but expected FIRST-LAST, ascending, of at most {LONGEST_RANGE} classes."
        )
    return range(first, last + 1)
