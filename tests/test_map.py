"""The map for contributors, ``skipdit_cli/README.md``: it names every room and file of the package, and no other."""

import re
from pathlib import Path

import skipdit_cli

PACKAGE = Path(skipdit_cli.__file__).parent
MAP = (PACKAGE / "README.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([\w/]+(?:\.py|/))`", MAP))


def test_every_file_and_folder_that_the_map_names_exists():
    assert NAMED
    assert not [name for name in NAMED if not (PACKAGE / name).exists() and not (PACKAGE.parent / name).exists()]


def test_the_map_leaves_out_no_file_and_no_folder():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    assert not {path.as_posix() for path in files} - NAMED
    folders = {f"{parent.as_posix()}/" for path in files for parent in path.parents} - {"./"}
    assert not folders - NAMED
