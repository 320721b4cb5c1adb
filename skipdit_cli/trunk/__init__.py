"""Where the blocks of one model lie, found or declared, and how to stand between them."""

from skipdit_cli.trunk.discover import check_class
from skipdit_cli.trunk.interpose import Interposed, find, interpose, restore
from skipdit_cli.trunk.keep import attached_trunk, keep_trunk, known_trunk, trunk_of
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
    "keep_trunk",
    "known_trunk",
    "refuse_other_cache",
    "restore",
    "trunk_of",
]
