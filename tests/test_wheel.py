"""The wheel, built from this tree without a network."""

import subprocess
import sys
import zipfile
from fnmatch import filter as matching
from pathlib import Path

ROOT = Path(__file__).parent.parent
HELD = ("*.py", "guide/*.md", "guide/pictures/*.png", "examples/*.ipynb", "embedded/*.safetensors", "embedded/*.pt")
HELD += ("reports/assets/*", "py.typed", "_presets/*.yaml")


def test_the_wheel_holds_the_package_its_presets_and_licence_and_no_more(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr  # hatchling is in the extra [test]
    (wheel,) = tmp_path.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    files = [path for path in (ROOT / "skipdit_cli").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    package = {path.relative_to(ROOT).as_posix() for path in files}
    presets = {f"skipdit_cli/_presets/{path.name}" for path in (ROOT / "presets").iterdir()}
    metadata = {name for name in names if ".dist-info/" in name}
    assert {*names} - metadata == package | presets
    for pattern in HELD:
        assert matching(names, f"skipdit_cli/{pattern}"), pattern
    assert {name.partition("/")[2] for name in metadata} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}
