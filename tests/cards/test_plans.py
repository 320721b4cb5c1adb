"""A model folder carries plans: its card lists them, and they are uploaded with it; what is no plan is not."""

import pytest

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.cards.plans import put_plans
from skipdit_cli.cards.publish import pipeline_patterns, upload_command
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler


@pytest.fixture
def folder(tiny_pipeline):
    """A model folder with two plans, a preset that is none, and notes."""
    folder = tiny_pipeline()
    (folder / "plans").mkdir()
    pipe = load_pipeline(folder)
    for name, full in {"fast": (0, 1), "fine": (0, 1, 3)}.items():
        candidate = Candidate(Sampler("dpm++", "lu"), 6, CachePolicy((1, 0), full_steps=full))
        made_for = make_made_for(pipe, candidate, 1.5, len(full) + 0.5, {"psnr_exact": 38.5})
        save_plan(Plan(candidate, made_for), folder / "plans" / f"{name}.yaml")
    (folder / "plans" / "own.yaml").write_text("sample: {seed: 1}")
    (folder / "plans" / "notes.txt").write_text("private")
    return folder


def test_the_card_lists_the_plans_once(folder):
    assert not put_plans(folder)
    (folder / "README.md").write_text("# A model\n\nMine.\n")
    assert put_plans(folder) and put_plans(folder)
    text = (folder / "README.md").read_text()
    assert text.startswith("# A model\n\nMine.\n\n## Plans\n") and text.count("## Plans") == 1
    row = "| `plans/fast.yaml` | dpm++ lu, 6 steps, 2 full, 1:0 live, taylor2 of the residual | 2.5 | 38.5 |"
    assert row in text and "plans/fine.yaml" in text and "own" not in text


def test_plans_are_uploaded_and_nothing_else_beside_them(folder):
    patterns = pipeline_patterns(folder)
    assert {"plans/fast.yaml", "plans/fine.yaml"} <= set(patterns)
    assert not [pattern for pattern in patterns if "own" in pattern or "notes" in pattern or pattern == "plans/*"]
    command = upload_command(folder, "me/model")
    assert "--exclude plans/notes.txt" in command and "--exclude plans/own.yaml" in command
    assert "plans/fast" not in command and "plans/*" not in command


def test_a_folder_without_plans_uploads_none(tiny_pipeline):
    folder = tiny_pipeline()
    (folder / "plans").mkdir()
    (folder / "plans" / "notes.txt").write_text("private")
    assert not [pattern for pattern in pipeline_patterns(folder) if pattern.startswith("plans")]
    assert "--exclude 'plans/*'" in upload_command(folder, "me/model")
