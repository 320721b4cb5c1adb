"""The trunk of a model: where its blocks lie, found or declared, and the wrappers between them."""

from skipdit_cli.trunk.discover import check_class
from skipdit_cli.trunk.interpose import Interposed, find, interpose, restore
from skipdit_cli.trunk.keep import (
    attached_trunk,
    keep_wrapped,
    known_trunk,
    remember_trunk,
    trunk_of,
    update_wrappers,
)
from skipdit_cli.trunk.other_caches import refuse_other_cache
from skipdit_cli.trunk.probe import Trial
from skipdit_cli.trunk.trunk import Trunk

__all__ = [
    "Interposed",
    "Trial",
    "Trunk",
    "attached_trunk",
    "check_class",
    "find",
    "interpose",
    "keep_wrapped",
    "known_trunk",
    "refuse_other_cache",
    "remember_trunk",
    "restore",
    "trunk_of",
    "update_wrappers",
]
