"""Class labels: those that a model has, and its null label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skipdit_cli.errors import UsageError


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
