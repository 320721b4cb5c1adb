"""The demo, as short as it goes: everything it promises is there."""

import json
import math
import re

import pytest
from markupsafe import escape
from PIL import Image

from skipdit_cli import media

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
SHORT = ("--train-steps", 2, "--samples-per-digit", 1, "--rounds", 1, "--num-inference-steps", 13)


@pytest.mark.parametrize("kind", ["still", "moving"])
def test_the_demo_leaves_a_page_with_all_it_shows(skipdit, tmp_path, kind, monkeypatch):
    output, moving = tmp_path / "demo", kind == "moving"
    monkeypatch.setattr("skipdit_cli.commands.demo.EXACT_LIMIT", 0.0 if moving else math.inf)
    ran = skipdit("demo", *SHORT, *(["--video"] if moving else []), "-o", output, "--json")
    assert ran.code == 0, ran.stderr
    rows = ran.json["rows"]
    cases = {"vanilla", "vanilla-cache", "skip", "skip-cache", "fewer-steps"}
    assert cases < {row["case"] for row in rows} <= {*cases, "uniform", "paper", "fewer-steps-best"}
    assert all((row["psnr_exact"] is None) == moving for row in rows)
    assert all((row["temporal_difference"] is not None) == (moving and row["limit"] is not None) for row in rows)
    page = (output / "report.html").read_text()
    assert str(escape(ran.json["verdict"])) in page and str(escape(ran.json["target"] or "")) in page
    assert "stage 1: skip branches only" in page and "Feature similarity by step and block" in page
    compared = json.loads(re.search(r'id="comparison">(.*?)</script>', page, re.DOTALL).group(1))
    assert len(compared["names"]) == len(rows) + (0 if moving else 2) and len(compared["samples"]) == 10
    assert compared["frames"] == (8 if moving else 1)
    for at, row in enumerate(rows):
        picture = output / f"{at:02d}-{row['case']}.{'gif' if moving else 'png'}"
        assert picture.is_file()
        assert 0 <= row["recognised"] <= 1
    assert json.loads((output / "bench.json").read_text())["rows"] == rows
    for part in ("converted", "stage1", "model"):
        assert (output / part / "model_index.json").is_file() and (output / part / "skip").is_dir()
    if moving:
        videos = sorted((output / "videos").rglob("*.mp4"))
        assert len(videos) == 40 and {video.parent.name for video in videos} == set("0123456789")
        assert media.probe_video(videos[0]) == media.VideoFacts(32, 96, 96, 8.0)
        assert "40 videos, 10 classes" in ran.stderr and "waiting for data" in ran.stderr
        with Image.open(output / "00-vanilla.gif") as animation:
            assert animation.n_frames > 1
