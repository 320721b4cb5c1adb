"""How a model's trunk and its streams are found, and the one way to stand between its blocks."""

from skipdit_cli.backbones.declarations import BACKBONES, Backbone, backbone_of
from skipdit_cli.backbones.example import example_inputs
from skipdit_cli.backbones.interpose import Interposed, find, interpose, restore
from skipdit_cli.backbones.trunk import Trunk, trunk_of

__all__ = [
    "BACKBONES",
    "Backbone",
    "Interposed",
    "Trunk",
    "backbone_of",
    "example_inputs",
    "find",
    "interpose",
    "restore",
    "trunk_of",
]
