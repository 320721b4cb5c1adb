"""``skipdit calibrate``: its plan, its table, what it refuses, and that it goes on where it was interrupted."""

import json

import pytest
import yaml

from skipdit_cli.planning.searching.search import Search
from tests.support.processes import run_together

QUICK = (
    "--preset",
    "digits",
    "--scheduler",
    "dpm++",
    "--scheduler-spacing",
    "lu",
    "--num-samples",
    2,
    "--num-held-out",
    2,
    "--time-limit",
    0,
)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A plan of the embedded digits model, and what the command printed."""
    from typer.testing import CliRunner

    from skipdit_cli.app import app

    file = tmp_path_factory.mktemp("plans") / "plan.yaml"
    arguments = ("calibrate", *QUICK, "--cost", 3, "-o", file, "--html", file.parent / "report.html", "--json")
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert ran.exit_code == 0, ran.stderr
    return file, json.loads(ran.stdout), ran.stderr


def test_a_plan_is_no_dearer_than_its_budget_and_says_what_it_is_worth(calibrated):
    file, printed, _ = calibrated
    plan = yaml.safe_load(file.read_text())
    best = printed["plans"]["3"]
    assert plan["made_for"]["cost"] <= 3 and plan["made_for"]["class"] == "DiTTransformer2DModel"
    assert best["plan"]["searched_db"] >= best["sampler"]["searched_db"]
    assert plan["made_for"]["measured"]["psnr_exact"] == round(best["plan"]["mean_db"], 2)
    assert not list(file.parent.glob("*.partial*"))


def test_a_report_shows_the_plan_beside_what_it_is_compared_with(calibrated):
    file, printed, _ = calibrated
    page, best = file.with_name("report.html").read_text(), printed["plans"]["3"]
    assert f"the plan has {best['plan']['mean_db']:.1f} dB to the exact solution" in page
    assert "best sampler, no cache" in page and "Compare the pictures" in page
    assert f"skipdit sample --plan {file}" in page.replace("</span>", "").replace("<span>", "")


def test_sample_and_bench_take_the_plan(calibrated, skipdit, tmp_path):
    file, _, _ = calibrated
    out = tmp_path / "a.png"
    ran = skipdit("sample", "--preset", "digits", "--plan", file, "--class-labels", 3, "-o", out)
    assert ran.code == 0 and out.exists(), ran.stderr
    assert skipdit("presets", "check", file).code == 0
    quick = ("--steps", 6, "--rounds", 1, "--warmup", 0, "--class-labels", 3, "--no-exact", "--cache-interval", 2)
    ran = skipdit("bench", "--preset", "digits", "--plan", file, *quick, "--json")
    assert ran.code == 0, ran.stderr
    row = next(row for row in ran.json["rows"] if row["case"] == "plan")
    assert row["cost"] <= 3.01 and row["steps"] == yaml.safe_load(file.read_text())["made_for"]["steps"]


def test_an_interrupted_calibration_goes_on_and_refuses_other_settings(skipdit, tmp_path, monkeypatch):
    whole, cut, count = Search._count, tmp_path / "cut.yaml", [0]

    def interrupted(self):
        whole(self)
        count[0] += 1
        if count[0] == 30:
            raise KeyboardInterrupt

    arguments = ("calibrate", *QUICK, "--cost", 3)
    monkeypatch.setattr(Search, "_count", interrupted)
    assert skipdit(*arguments, "-o", cut).code == 130
    monkeypatch.undo()
    journal = tmp_path / "cut.yaml.partial.json"
    assert journal.exists() and not cut.exists()
    for changed in (("--guidance-scale", 2), ("--dtype", "bf16"), ("--seed", 1)):
        other = skipdit(*arguments, *changed, "-o", cut)
        assert other.code == 2 and "other settings" in other.stderr
    with monkeypatch.context() as other_release:
        other_release.setattr("skipdit_cli.version.__version__", "0.1.0")
        assert "weights or versions" in skipdit(*arguments, "-o", cut).stderr
    assert skipdit(*arguments, "-o", cut).code == 0 and cut.exists() and not journal.exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("-o", "p.yaml"), "no budget"),
        (("--cost", "9", "--speedup", "5", "-o", "p.yaml"), "--cost and --speedup"),
        (("--cost", "0.5", "-o", "p.yaml"), "1 or more"),
        (("--cost", "50", "-o", "p.yaml"), "less than the full run"),
        (("--speedup", "1", "-o", "p.yaml"), "more than 1 and at most 50"),
        (("--cost", "nine", "-o", "p.yaml"), "numbers separated by commas"),
        (("--cost", "9"), "no --output"),
        (("--cost", "9", "-o", "plans"), "a .yaml file"),
        (("--cost", "8,9", "-o", "p.yaml"), "a folder"),
        (("--cost", "9", "--scheduler", "ddpm", "-o", "p.yaml"), "deterministic"),
        (("--cost", "9", "--scheduler", "ddpm", "--dry-run"), "deterministic"),
        (("--cost", "9", "--scheduler", "heun", "-o", "p.yaml"), "evaluates the model more than once a step"),
        (("--cost", "9", "--steps", "1001", "--dry-run"), "the model has 1000 timesteps"),
        (("--cost", "9", "--timesteps", "900,100", "-o", "p.yaml"), "--timesteps"),
    ],
)
def test_bad_budgets(skipdit, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    ran = skipdit("calibrate", "--preset", "digits", *arguments)
    assert ran.code == 2 and words in ran.stderr, ran.stderr
    assert not list(tmp_path.iterdir())


def test_an_accuracy_out_of_reach_is_code_3_and_the_best_plan_is_saved(skipdit, tiny_pipeline, tmp_path):
    flags = ("--scheduler", "dpm++", "--num-samples", 2, "--num-held-out", 2, "--time-limit", 0, "--min-psnr", 190)
    ran = skipdit("calibrate", "-m", tiny_pipeline(num_layers=3), "--steps", 6, *flags, "-o", tmp_path / "plan.yaml")
    measured = yaml.safe_load((tmp_path / "plan.yaml").read_text())["made_for"]["measured"]
    assert ran.code == 3 and f"has {measured['psnr_exact']:.1f} dB on held-out samples" in ran.stderr, ran.stderr
    assert "it was saved" in ran.stderr and not list(tmp_path.glob("*.partial*"))


def test_a_dry_run_says_how_long_and_writes_nothing(skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = skipdit("calibrate", "--preset", "digits", "--cost", 9, "--dry-run", "--json")
    assert ran.code == 0 and ran.json["minutes"] > 0 and not list(tmp_path.iterdir())


def test_a_time_limit_leaves_less_to_try(skipdit):
    run = ("calibrate", "--preset", "digits", "--cost", 9, "--dry-run", "--json")
    long, none = (skipdit(*run, "--time-limit", minutes) for minutes in (1e6, 0))
    assert long.json["tries"] > none.json["tries"] and long.json["forwards"] > none.json["forwards"]
    assert "more than the --time-limit of 0 minutes" in none.stderr and "time-limit" not in long.stderr


def test_a_prompt_for_classes_is_refused_without_a_warning_about_it(skipdit, tiny_pipeline, tmp_path):
    ran = skipdit("calibrate", tiny_pipeline(), "--prompt", "a cat", "--cost", 3, "-o", tmp_path / "plan.yaml")
    assert ran.code == 2 and "which takes none" in ran.stderr and "Warning" not in ran.stderr, ran.stderr


def test_the_help_shows_no_flag_that_calibrate_refuses(skipdit):
    text = skipdit("calibrate", "--help").stdout
    assert not [flag for flag in ("--timesteps", "--image", "--strength", "euler-a", "heun") if flag in text]
    assert "Search with this scheduler alone" in text


def test_several_processes_find_the_plan_of_one(skipdit, tiny_pipeline, tmp_path):
    """Three of them measure candidates; the plan is the same but for its date and the command that it records."""
    flags = ("--scheduler", "dpm++", "--num-samples", 2, "--num-held-out", 2, "--time-limit", 0, "--cost", 2, "--json")
    command = ("calibrate", "-m", tiny_pipeline(num_layers=3), "--steps", 8, *flags)
    alone = skipdit(*command, "-o", tmp_path / "1.yaml")
    assert alone.code == 0, alone.stderr
    ended = run_together(3, *command, "-o", tmp_path / "3.yaml", folder=tmp_path / "logs")
    assert [each.code for each in ended] == [0] * 3, ended
    assert json.loads(ended[0].stdout)["plans"] == alone.json["plans"]
    assert [each.stdout + each.stderr for each in ended[1:]] == ["", ""]
    one, two = (yaml.safe_load((tmp_path / name).read_text()) for name in ("1.yaml", "3.yaml"))
    assert one | {"made_for": {**one["made_for"], "date": ""}} == two | {"made_for": {**two["made_for"], "date": ""}}
    assert not list(tmp_path.glob("*.partial*"))
