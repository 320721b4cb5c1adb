"""The classes of an official file: their number, and whether its label embedding has a row for the null class.

``LabelEmbedder`` in the DiT repository's models.py makes that row only where labels are dropped in training; a model
without it cannot be guided. diffusers' classes always have the row, so one of zeros is added, which no label selects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.dit import OFFICIAL

TABLE, _ = OFFICIAL.label_table
"""Official name of the label embedding, for DiT and Latte."""


@dataclass(frozen=True)
class Classes:
    """The classes of an official file.

    Args:
        number: Number of classes; None for an unconditional Latte.
        has_null: The label embedding has a row for the null class.
        why: Why that is known or assumed.
    """

    number: int | None
    has_null: bool = True
    why: str = ""

    def __str__(self) -> str:
        if self.number is None:
            return "none"
        null = "and a row for the null class" if self.has_null else "and no row for the null class, so no guidance"
        return f"{self.number} {null} ({self.why})"

    @property
    def config(self) -> dict:
        """Keys of the transformer's config; diffusers keeps those with an underscore and ignores them."""
        return {"num_embeds_ada_norm": self.number} | ({} if self.has_null else {"_null_class": False})


def read_classes(
    path, state: dict[str, torch.Tensor], arguments: Mapping, given: int | None, needs_table: bool
) -> Classes:
    """Return the classes of a state dict, and give its label embedding a row for the null class in place.

    Args:
        path: The checkpoint, for errors.
        state: Its state dict in the official layout.
        arguments: Arguments that the training script saved (``args``).
        given: Value of ``--num-classes``.
        needs_table: diffusers' class always has a label embedding; a file without one gets a class of zeros.
    Raises:
        UsageError: The label embedding has another number of rows than ``given`` or ``arguments`` say.
    """
    table = state.get(TABLE)
    if table is None:
        if given is not None:
            raise UsageError(f"Got --num-classes {given}, but {path} has no label table; leave it out.")
        if not needs_table:
            return Classes(None)
        width, like = state["x_embedder.proj.weight"].shape[0], state["x_embedder.proj.weight"]
        state[TABLE] = like.new_zeros(2, width)
        return Classes(1, False, "the file has no label table: class 0 adds nothing")
    classes = _classes(path, table.shape[0], arguments, given)
    if not classes.has_null:
        state[TABLE] = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return classes


def _classes(path, rows: int, arguments: Mapping, given: int | None) -> Classes:
    if not rows:
        raise UsageError(f"Checkpoint {path} has a label table without rows; fetch it again.")
    recorded, dropout = arguments.get("num_classes"), arguments.get("class_dropout_prob")
    for number, why in ((given, "as --num-classes says"), (recorded, "its args say num_classes")):
        if type(number) is not int or number < 1:
            continue
        if rows in (number, number + 1):
            return Classes(number, rows > number, why)
        if number is given:
            raise UsageError(f"Got --num-classes {given}, but {path} has a label table of {rows} rows.")
        raise UsageError(
            f"Checkpoint {path} has a label table of {rows} rows, but its args say {number} classes; give "
            f"--num-classes {rows - 1} if the last row is for the null class, or --num-classes {rows} if none is."
        )
    if rows == 1:
        return Classes(1, False, "the table has one row")
    if isinstance(dropout, (int, float)):
        return Classes(rows - (dropout > 0), dropout > 0, f"its args say class_dropout_prob {dropout:g}")
    return Classes(rows - 1, True, f"assumed, for the file does not say; --num-classes {rows} if every row is a class")
