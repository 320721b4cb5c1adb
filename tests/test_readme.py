"""The README: short, true, and what it tells people to type works. ``tests/guide`` parses its commands."""

import re

import diffusers
import pytest
from PIL import Image

from skipdit_cli.bench.results.picture import choose_rows
from skipdit_cli.commands.calibrate_report import NAMES
from skipdit_cli.media import read_metadata
from tests.support.markdown_blocks import GUIDE, README, blocks

TEXT = README.read_text(encoding="utf-8")
PICTURES = [GUIDE / "pictures" / name for name in ("digits.png", "digits-dark.png")]


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 200


def test_ci_runs_what_the_readme_says():
    script = (README.parent / ".ci" / "run").read_text()
    for command in ('pip install -e ".[test]"', "python -m pytest -n 2"):
        assert command in TEXT and command in script


def test_the_results_have_the_columns_of_calibrate_and_the_figures_of_the_guide():
    head, *rows = [cells(line) for line in TEXT.splitlines() if re.match(r"\| (cost|\d+) \|", line)]
    columns = ["output-branch", "fitted", "timesteps", "sampler", "same-sampler"]
    assert head == ["cost", *(NAMES[name] for name in columns)]
    guide = (GUIDE / "plans.md").read_text().splitlines()
    costs, plan, branch, *others = [cells(line) for line in guide if line.startswith("|") and "---" not in line][:6]
    by_cost = {}
    for at, cost in enumerate(costs[1:], 1):
        by_cost[cost] = [line[at].split(" ")[0] or "-" for line in (branch, plan, *others)]
    assert rows and all(by_cost[row[0]] == row[1:] for row in rows)


def test_the_picture_is_small_and_its_figures_are_those_of_the_bench_that_made_it():
    described = re.search(r'alt="(.*?)"', TEXT, re.DOTALL)[1]
    for path in PICTURES:
        assert path.relative_to(README.parent).as_posix() in TEXT
        assert path.stat().st_size < 200_000 and Image.open(path).width == 1660
        record = read_metadata(path)
        shown = [record["rows"][at] for at, _ in choose_rows(record["rows"], record["macs"])]
        assert len(shown) == 6
        for row in shown:
            assert f"{row['psnr_exact']:.1f} dB" in described and f"{row['cost']:.3g}" in described


@pytest.mark.parametrize("page", [README, GUIDE / "python.md"], ids=lambda page: page.stem)
def test_the_python_example_runs(page, tiny_dit, tmp_path, capsys):
    from skipdit_cli.models import save_pipeline

    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    transformer = tiny_dit(num_layers=28, in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    pipe = diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler())
    save_pipeline(pipe, tmp_path / "model")
    example = next(block.text for block in blocks(page) if block.language == "python")
    said = re.search(r"# (\d+ of .* run)", example).group(1)
    exec(re.sub('"(dit-xl|facebook/DiT-XL-2-256)"', repr(str(tmp_path / "model")), example), {})
    assert said in capsys.readouterr().out
