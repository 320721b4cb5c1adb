"""Class ids: those that a model has, and the one that stands for no class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skipdit_cli.errors import UsageError


def null_label(config: Mapping) -> int | None:
    """The id that stands for "no class": one past the last, in diffusers' and our models of classes.

    Args:
        config: Of the transformer. ``_null_class: false`` there says that this row of its table was never trained.
    Returns:
        None for a model that has no such id, and so nothing to guide away from.
    """
    return config.get("num_embeds_ada_norm") if config.get("_null_class", True) else None


def check_labels(class_labels: Sequence[int | str | None], num_classes: int | None) -> None:
    """Refuse labels the model was not trained on.

    Args:
        num_classes: None for an unconditional model, whose labels are None.
    Raises:
        UsageError: A text, no label at all, one outside 0..num_classes-1, or one for an unconditional model.
    """
    of = "nothing" if num_classes is None else "classes"
    for label in class_labels:
        if isinstance(label, str):
            raise UsageError(f"Got --prompt '{label}', but this is a model of {of}, not of texts; leave the flag out.")
    if num_classes is None:
        for label in class_labels:
            if label is not None:
                raise UsageError(f"Got --class-labels {label}, but this model has no classes; leave the flag out.")
        return
    if not class_labels:
        raise UsageError(f"Got no --class-labels but expected one or more of 0..{num_classes - 1}.")
    for label in class_labels:
        if not 0 <= label < num_classes:
            raise UsageError(f"Got --class-labels {label} but the model has classes 0..{num_classes - 1}.")
