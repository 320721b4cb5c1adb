"""Imports within training go one way: settings and observer, data, objective, run."""

import ast
from pathlib import Path

import skipdit_cli.training

ROOT = Path(skipdit_cli.training.__file__).parent
LAYERS = (
    (
        *("training_settings", "finetune_settings", "prepare_settings", "data_settings"),
        *("data_source", "fingerprints", "weighting", "observer"),
    ),
    ("encoded",),
    ("data",),
    ("sources", "recorded_settings"),
    ("objective",),
    ("distributed", "run"),
    ("sweep", "preparation"),
)


def layer(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def test_a_part_of_training_imports_only_those_below_it():
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if part == "__init__" or not isinstance(node, ast.ImportFrom):
                continue
            package, _, below = f"{node.module}.{node.names[0].name}".partition("skipdit_cli.training.")
            if not package and below:
                assert layer(below.split(".")[0]) <= layer(part), f"{path} imports {node.module}"


def test_no_part_of_training_prints():
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "console":
                assert node.attr == "to_json", f"{path} calls console.{node.attr}"
            assert not (isinstance(node, ast.Name) and node.id == "print"), path
