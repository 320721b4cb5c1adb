"""The package as installed, and the rules of the house: four floors, no circle, short files."""

import ast
import re
import shutil
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skipdit_cli

PACKAGE = Path(skipdit_cli.__file__).parent
TESTS = Path(__file__).parent
ROOT = TESTS.parent
FLOORS = [
    {"errors", "console", "files", "formats", "quiet", "finite", "presets", "processes", "settings", "version"}
    | {"media", "columns"},
    {"families", "trunk", "skip", "cache"},
    {
        "models",
        "conversion",
        "sampling",
        "cards",
        "training",
        "bench",
        "evaluation",
        "planning",
        "pipelines",
        "play",
        "guide",
        "reports",
        "adapters",
        "studies",
        "studies/compute",
        "studies/released_weights",
    },
    {"commands", "app", "__main__"},
]
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def name_of(module: str) -> str | None:
    """A module's name below the package, or None where there is no such file."""
    return next((name for name in (module, f"{module}.__init__".lstrip(".")) if name in FILES), None)


def imports_of(path: Path) -> set[str]:
    """Every module of ours that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [m if name_of(m.removeprefix("skipdit_cli.")) else node.module for m in modules]
        else:
            continue
        ours = [m.removeprefix("skipdit_cli").lstrip(".") for m in modules if m.split(".")[0] == "skipdit_cli"]
        found |= {name_of(module) for module in ours if name_of(module)}
    return found


IMPORTS = {name: imports_of(path) for name, path in FILES.items()}


def floor(name: str) -> int:
    return next(at for at, rooms in enumerate(FLOORS) if name.split(".")[0] in rooms)


def test_every_file_has_a_floor_and_imports_only_from_it_or_below():
    for name, imported in IMPORTS.items():
        upwards = [other for other in imported - {"__init__"} if name != "__init__" and floor(other) > floor(name)]
        assert not upwards, f"{name} imports {upwards}"


def test_no_circle_between_files_or_packages():
    list(TopologicalSorter(IMPORTS).static_order())
    rooms: dict[str, set[str]] = {}
    for name, imported in IMPORTS.items():
        room = name.split(".")[0]
        rooms.setdefault(room, set()).update(other.split(".")[0] for other in imported - {"__init__"})
        rooms[room].discard(room)
    list(TopologicalSorter(rooms).static_order())


def test_folders_stay_small_and_file_names_mean_one_thing():
    """A folder has at most 12 files, the rooms with one file a family or a command aside. No file name is used twice,
    but for a command beside the room that it is the face of."""
    files = [name.split(".") for name in FILES if not name.endswith("__init__") and name != "__main__"]
    folders = Counter(".".join(parts[:-1]) for parts in files)
    assert not {room: n for room, n in folders.items() if n > 12 and room not in ("families", "commands")}
    places: dict[str, list[str]] = {}
    for parts in files:
        places.setdefault(parts[-1], []).append(parts[0])
    assert not {stem: rooms for stem, rooms in places.items() if len(rooms) > 1 + ("commands" in rooms)}


def test_files_stay_short():
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > 350}
    assert not long


def test_only_declared_packages_are_imported():
    text = (ROOT / "pyproject.toml").read_text()
    imports = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    imports |= {"huggingface_hub": "huggingface-hub", "imageio_ffmpeg": "imageio-ffmpeg"}
    imports |= {"cache_dit": "cache-dit", "SmoothCache": "dit-smoothcache"}
    optional = {"torchmetrics", "tensorboard", "torchvision", "deepspeed"}
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"skipdit_cli"}:
                declared = re.search(rf'"{imports.get(top, top)}[>=;\]"]', text)
                assert declared or top in optional, f"{name} imports {top}, which pyproject.toml does not name"


def test_public_names_resolve():
    for name in skipdit_cli.__all__:
        assert getattr(skipdit_cli, name) is not None
    assert set(skipdit_cli.__all__) <= set(dir(skipdit_cli))
    with pytest.raises(AttributeError):
        skipdit_cli.nothing  # noqa: B018


def test_the_console_script_and_the_module_are_the_same_command():
    script = shutil.which("skipdit", path=str(Path(sys.executable).parent)) or shutil.which("skipdit")
    assert script, "the console script is not installed: pip install -e '.[test]'"
    for command in ([script], [sys.executable, "-m", "skipdit_cli"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"skipdit {skipdit_cli.__version__}\n"


def test_no_test_imports_another():
    """What test files share is in ``tests/support``; fixtures are in ``conftest.py`` and need no import."""
    paths = [*TESTS.rglob("*.py")]
    tests = {path.stem for path in paths if path.stem.startswith("test_")} | {"conftest"}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported = {part for name in names for part in name.split(".")} & tests
            assert not imported, f"{path.relative_to(ROOT)} imports {sorted(imported)}"


def test_tests_mirror_the_rooms():
    """One folder is of all rooms: ``strangers``, files that are mutated for every reader."""
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {Path("strangers")}
    assert not {folder for folder in folders if not (PACKAGE / folder).is_dir()}


def test_version_is_the_one_of_the_project():
    assert f'version = "{skipdit_cli.__version__}"' in (ROOT / "pyproject.toml").read_text()
