"""Every transformer class of the installed diffusers, and how its trunk is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.families.declarations import BACKBONES

RECORD = Path(__file__).with_name("record.json")
"""What came of trying every class out; made anew by tests/record_families.py."""


@dataclass(frozen=True)
class Family:
    """One class.

    Args:
        name: Of the class.
        known: ``declared``, ``own skips`` (declared, cached as it is, gets no branches), ``found`` (in one forward,
            and recorded to work), ``refused`` (recorded not to work), or ``not tried``.
        blocks: Attribute names of its block lists, in running order; empty where they are not recorded.
        note: Why it is refused, or what was not tried.
    """

    name: str
    known: str
    blocks: tuple[str, ...] = ()
    note: str = ""


def recorded_with() -> str:
    """The version of diffusers that the record was made with."""
    return _record()["diffusers"]


def all_families() -> list[Family]:
    """Every transformer class of diffusers, in order of name."""
    recorded = _record()["classes"]
    return [_family(name, recorded.get(name)) for name in sorted({*transformer_classes(), *BACKBONES})]


def transformer_classes() -> list[str]:
    """Names of the transformer classes that the installed diffusers exports."""
    import diffusers
    from diffusers.models import transformers

    found = [value for value in vars(transformers).values() if isinstance(value, type)]
    return [each.__name__ for each in found if issubclass(each, diffusers.ModelMixin)]


def _family(name: str, recorded: dict | None) -> Family:
    declared = BACKBONES.get(name)
    note = "" if recorded is None else recorded["note"]
    if recorded is not None and not recorded["works"]:
        return Family(name, "refused", note=note)
    if declared is not None:
        known = "own skips" if declared.native_skips else "declared"
        return Family(name, known, tuple(listing.name for listing in declared.lists), note)
    return Family(name, "not tried") if recorded is None else Family(name, "found", tuple(recorded["blocks"]), note)


def _record() -> dict:
    return json.loads(RECORD.read_text(encoding="utf-8"))
