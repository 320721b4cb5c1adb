"""The table of all transformer classes of the installed diffusers, and of how the package knows their trunks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.families.registry import FAMILIES, declared_trunk

RECORD = Path(__file__).with_name("record.json")
"""Result of trying every class, written by ``python -m skipdit_cli.families.record``."""


@dataclass(frozen=True)
class Row:
    """The row of one transformer class.

    Args:
        name: Name of the class.
        known: ``declared``, ``own skips`` (declared, cached without skip branches), ``found`` (in one forward, and
            recorded to work), ``refused`` (recorded not to work), or ``not tried``.
        blocks: Attribute names of its block lists, in running order; empty if they are not recorded.
        note: Why the class is refused, or what was not tried.
    """

    name: str
    known: str
    blocks: tuple[str, ...] = ()
    note: str = ""


def recorded_with() -> str:
    """Return the version of diffusers that the record was made with."""
    return _record()["diffusers"]


def family_rows() -> list[Row]:
    """Return the rows of all transformer classes, in order of name."""
    recorded = _record()["classes"]
    return [_row(name, recorded.get(name)) for name in sorted({*transformer_classes(), *FAMILIES})]


def transformer_classes() -> list[str]:
    """Return the names of the transformer classes that the installed diffusers exports."""
    import diffusers
    from diffusers.models import transformers

    classes = [value for value in vars(transformers).values() if isinstance(value, type)]
    return [kind.__name__ for kind in classes if issubclass(kind, diffusers.ModelMixin)]


def _row(name: str, recorded: dict | None) -> Row:
    trunk = declared_trunk(name)
    note = "" if recorded is None else recorded["note"]
    if recorded is not None and not recorded["works"]:
        return Row(name, "refused", note=note)
    if trunk is not None:
        known = "own skips" if trunk.native_skips else "declared"
        return Row(name, known, tuple(listing.name for listing in trunk.lists), note)
    return Row(name, "not tried") if recorded is None else Row(name, "found", tuple(recorded["blocks"]), note)


def _record() -> dict:
    return json.loads(RECORD.read_text(encoding="utf-8"))
