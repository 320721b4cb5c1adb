"""The notebook of the package: its code cells run in order, with few steps, and it stores the pictures they show."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import skipdit_cli

NOTEBOOK = json.loads((Path(skipdit_cli.__file__).parent / "examples" / "skipdit.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_notebook_runs_top_to_bottom(monkeypatch, tmp_path):
    shown, namespace = [], {}
    monkeypatch.setenv("SKIPDIT_NOTEBOOK_QUICK", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    for number, cell in enumerate(CODE):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
    assert len(shown) == 3 and all(isinstance(image, Image.Image) and image.width > 400 for image in shown)
