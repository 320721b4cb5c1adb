"""How many classes an official file's label table is of, and whether its last row stands for "no class".

``LabelEmbedder`` in the DiT repository's models.py makes that row only where labels are dropped in training; without
it there is nothing to guide away from. diffusers' classes always have it: it is added as zeros, and never told.
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
    """
    Args:
        number: None for a Latte without classes.
        has_null: A row stands for "no class".
        why: Why that is known or assumed, or what was put in the place of a table.
    """

    number: int | None
    has_null: bool = True
    why: str = ""

    def __str__(self) -> str:
        if self.number is None:
            return "none"
        null = "and a row for 'no class'" if self.has_null else "and no row for 'no class', so no guidance"
        return f"{self.number} {null} ({self.why})"

    @property
    def config(self) -> dict:
        """As keys of a config: diffusers leaves those that begin with an underscore alone, and keeps them."""
        return {"num_embeds_ada_norm": self.number} | ({} if self.has_null else {"_null_class": False})


def read_classes(
    path, state: dict[str, torch.Tensor], arguments: Mapping, given: int | None, needs_table: bool
) -> Classes:
    """Read the classes of a state dict, and make its table one with a last row for "no class".

    Args:
        state: In the official layout.
        arguments: What the training script saved of its own, ``args``.
        given: What ``--num-classes`` says.
        needs_table: diffusers has no model of this class without one: a file that has none gets one class, of zeros.
    Raises:
        UsageError: The table has another number of rows than what is said.
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
    classes = _told(path, table.shape[0], arguments, given)
    if not classes.has_null:
        state[TABLE] = torch.cat([table, table.new_zeros(1, table.shape[1])])
    return classes


def _told(path, rows: int, arguments: Mapping, given: int | None) -> Classes:
    if not rows:
        raise UsageError(f"Checkpoint {path} has a label table without rows; fetch it again.")
    said, dropped = arguments.get("num_classes"), arguments.get("class_dropout_prob")
    for number, why in ((given, "as --num-classes says"), (said, "its args say num_classes")):
        if type(number) is not int or number < 1:
            continue
        if rows in (number, number + 1):
            return Classes(number, rows > number, why)
        if number is given:
            raise UsageError(f"Got --num-classes {given}, but {path} has a label table of {rows} rows.")
        raise UsageError(
            f"Checkpoint {path} has a label table of {rows} rows, but its args say {number} classes; give "
            f"--num-classes {rows - 1} if the last row is for 'no class', or --num-classes {rows} if there is none."
        )
    if rows == 1:
        return Classes(1, False, "the table has one row")
    if isinstance(dropped, (int, float)):
        return Classes(rows - (dropped > 0), dropped > 0, f"its args say class_dropout_prob {dropped:g}")
    return Classes(rows - 1, True, f"assumed, for the file does not say; --num-classes {rows} if every row is a class")
