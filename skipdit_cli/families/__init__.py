"""The transformer classes that are known by name: one file a family."""

from skipdit_cli.families.declarations import BACKBONES, FORMER_NAMES, Backbone, BlockList, class_name

__all__ = ["BACKBONES", "FORMER_NAMES", "Backbone", "BlockList", "class_name"]
