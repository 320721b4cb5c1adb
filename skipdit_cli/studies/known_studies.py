"""The studies by name: one line for each, and one file of this folder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from skipdit_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    from skipdit_cli.studies.study import Study

STUDIES: dict[str, str] = {
    "conditioning": "skipdit_cli.studies.conditioning_strategies",
    "efficiency": "skipdit_cli.studies.efficiency",
    "released": "skipdit_cli.studies.released",
    "scaling": "skipdit_cli.studies.scaling",
    "branches": "skipdit_cli.studies.branch_effect.branch_study",
    "smoothness": "skipdit_cli.studies.smoothness.smoothness",
}
"""Name of each study to the module that holds its ``STUDY``."""


def load_study(name: str) -> Study:
    """Return a study.

    Raises:
        UsageError: There is none of this name; the message names the closest.
    """
    if name not in STUDIES:
        raise UsageError(f"Got study '{name}' but expected one of {', '.join(STUDIES)}.{nearest(name, STUDIES)}")
    return import_module(STUDIES[name]).STUDY
