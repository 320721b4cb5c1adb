"""The transformer families that the package knows by name: one file for each, and a registry for more."""

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import Backbone, BlockList
from skipdit_cli.families.family import ExampleSize, Family, OfficialFiles, PipelineAround, Training
from skipdit_cli.families.registry import (
    FAMILIES,
    class_name,
    class_name_of,
    class_named,
    declared_trunk,
    family_of,
    register,
    unregister,
)

__all__ = [
    "FAMILIES",
    "Backbone",
    "BlockList",
    "ExampleSize",
    "Family",
    "OfficialFiles",
    "PipelineAround",
    "TextConditioning",
    "Training",
    "class_name",
    "class_name_of",
    "class_named",
    "declared_trunk",
    "family_of",
    "register",
    "unregister",
]
