"""The trunk of a model: its declaration, how it is found and verified, and the wrappers between its blocks."""

from skipdit_cli.backbones.declarations import BACKBONES, FORMER_NAMES, Backbone, BlockList, class_name
from skipdit_cli.backbones.discover import check_class
from skipdit_cli.backbones.example import example_inputs
from skipdit_cli.backbones.interpose import Interposed, find, interpose, restore, unwrap_compiled
from skipdit_cli.backbones.keep import (
    attached_trunk,
    keep_wrapped,
    known_trunk,
    remember_trunk,
    trunk_of,
    update_wrappers,
)
from skipdit_cli.backbones.other_caches import refuse_other_cache
from skipdit_cli.backbones.probe import Trial
from skipdit_cli.backbones.trunk import Trunk

__all__ = [
    "BACKBONES",
    "FORMER_NAMES",
    "Backbone",
    "BlockList",
    "Interposed",
    "Trial",
    "Trunk",
    "attached_trunk",
    "check_class",
    "class_name",
    "example_inputs",
    "find",
    "interpose",
    "keep_wrapped",
    "known_trunk",
    "refuse_other_cache",
    "remember_trunk",
    "restore",
    "trunk_of",
    "unwrap_compiled",
    "update_wrappers",
]
