"""The notebook of the package: its code cells run in order, with fewer steps, and it stores what they show."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import skipdit_cli
from skipdit_cli import load_pipeline
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.presets import load_preset
from skipdit_cli.sampling.schedulers import Sampler

NOTEBOOK = json.loads((Path(skipdit_cli.__file__).parent / "examples" / "skipdit.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def plan_file(tmp_path):
    candidate, measured = Candidate(Sampler("unipc", timesteps=(999, 500, 20)), 3), {"psnr_exact": 20.0}
    made_for = make_made_for(load_pipeline(load_preset("digits").weights_path), candidate, 1.5, 3, measured)
    save_plan(Plan(candidate, made_for), tmp_path / "plan.yaml", "skipdit calibrate --cost 3 -o plan.yaml")
    return tmp_path / "plan.yaml"


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_notebook_runs_top_to_bottom(monkeypatch, tmp_path, plan_file):
    """The cell of parameters is replaced, as papermill does; the search for a plan is tested in tests/planning."""
    shown, namespace = [], {"steps": 4, "train_steps": 2, "num_samples": 2, "plan_file": plan_file}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    parameters = {}
    for number, cell in enumerate(CODE):
        is_parameters = "parameters" in cell["metadata"].get("tags", ())
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), parameters if is_parameters else namespace)
    assert set(parameters) - {"__builtins__"} == {"steps", "train_steps", "num_samples", "plan_file"}
    assert len(shown) == 4 and all(isinstance(image, Image.Image) and image.width > 400 for image in shown)


def test_the_notebook_stores_its_outputs():
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not any(output["output_type"] == "error" for output in outputs)
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
