"""``sample --plan``: over the preset and below what is typed, refused where it does not fit, recorded as flags."""

import json

import pytest
import yaml

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.media import read_metadata
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler

CACHED = Candidate(Sampler("dpm++", "lu"), 4, CachePolicy((1, 0), full_steps=(0, 1)))
PLAIN = Candidate(Sampler("dpm++", timesteps=(999, 600.5, 20)), 3)


@pytest.fixture
def model(tiny_pipeline):
    return tiny_pipeline("model")


@pytest.fixture
def plan(model, tmp_path):
    """``plan(candidate)`` is the file of a plan for ``model``."""

    def write(candidate=CACHED, name="plan.yaml"):
        made_for = make_made_for(load_pipeline(model), candidate, 1.5, 2.3, {"psnr_exact": 30.0})
        save_plan(Plan(candidate, made_for), tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def sample(skipdit, model, tmp_path):
    """``sample("--plan", file)`` runs ``skipdit sample`` on ``model`` into ``a.png``."""

    def run(*arguments, output="a.png", folder=model, env=None):
        chosen = () if "--from" in arguments else ("-m", folder, "--class-labels", "1,2")
        return skipdit("sample", *chosen, *arguments, "-o", tmp_path / output, "--overwrite", "--json", env=env)

    return run


def test_a_plan_makes_what_its_flags_make_and_is_recorded_as_flags(sample, plan, tmp_path):
    first = sample("--plan", plan())
    assert first.code == 0 and "Warning" not in first.stderr, first.stderr
    assert first.json["cache"]["reused_steps"] == 2
    settings = read_metadata(tmp_path / "a.png")["settings"]
    assert (settings["full_steps"], settings["cache_layers"], settings["scheduler"]) == ("0,1", "1:0", "dpm++")
    assert settings["num_inference_steps"] == 4 and settings["guidance_scale"] == 1.5 and "plan" not in settings
    flags = [word for name, value in CACHED.flags().items() for word in (f"--{name}", value)]
    assert sample(*flags, "--guidance-scale", 1.5, output="b.png").code == 0
    assert sample("--preset", plan(), output="c.png").code == 0
    plan().unlink()
    assert sample("--from", tmp_path / "a.png", output="d.png").code == 0
    made = (tmp_path / "a.png").read_bytes()
    assert all((tmp_path / name).read_bytes() == made for name in ("b.png", "c.png", "d.png"))


def test_a_plan_stands_between_the_preset_and_the_environment(sample, plan, tmp_path):
    preset = tmp_path / "own.yaml"
    flags = {"cache-layers": "2", "cache-interval": "3", "forecast-damping": "0.5", "scheduler": "ddim", "seed": "7"}
    preset.write_text(yaml.safe_dump({"sample": {**flags, "guidance-scale": "3"}}))
    settings = sample("--preset", preset, "--plan", plan(), env={"SKIPDIT_SAMPLE_GUIDANCE_SCALE": "2"}).json[
        "settings"
    ]
    assert settings["cache_layers"] == "1:0" and "cache_interval" not in settings
    assert (settings["forecast_damping"], settings["scheduler"], settings["seed"]) == (1.0, "dpm++", 7)
    assert settings["guidance_scale"] == 2
    from_environment = sample("--preset", preset, env={"SKIPDIT_SAMPLE_PLAN": str(plan())}).json["settings"]
    assert from_environment["full_steps"] == "0,1"
    without_cache = sample("--preset", preset, "--plan", plan(PLAIN)).json
    assert without_cache["cache"] is None and without_cache["settings"]["timesteps"] == "999,600.5,20"


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--steps", 30), "made for 4 steps, but the run has 30; give --steps 4, or calibrate for 30"),
        (("--scheduler", "ddim"), "made for the sampler 'dpm++ lu', but the run has 'ddim lu'"),
        (("--scheduler-arg", "solver_order=3"), "but the run has 'dpm++ lu order 3'"),
        (("--scheduler-spacing", "karras"), "but the run has 'dpm++ karras'"),
    ],
)
def test_another_sampler_or_number_of_steps_is_refused(sample, plan, tmp_path, typed, says):
    for source in ("--plan", "--preset"):
        ended = sample(source, plan(), *typed)
        assert ended.code == 2 and says in ended.stderr, ended.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "typed", [("--cache-layers", 1), ("--full-steps", 2), ("--forecast", "reuse"), ("--forecast-damping", 0.5)]
)
def test_a_plan_and_cache_flags_are_refused(sample, plan, typed):
    ended = sample("--plan", plan(), *typed)
    assert ended.code == 2 and f"Got {typed[0]} and --plan" in ended.stderr and "give one of the two" in ended.stderr
    ended = sample("--plan", plan(), env={"SKIPDIT_SAMPLE_CACHE_INTERVAL": "3"})
    assert ended.code == 2 and "Got --cache-interval and --plan" in ended.stderr


def test_another_cache_over_a_preset_that_is_a_plan_is_no_plan(sample, plan):
    ended = sample("--preset", plan(), "--cache-interval", 2, "--steps", 6)
    assert ended.code == 0 and ended.json["cache"]["reused_steps"] == 3, ended.stderr


def test_a_plan_without_a_cache_runs_with_other_steps(sample, plan):
    assert sample("--plan", plan(PLAIN), "--steps", 5).json["settings"]["num_inference_steps"] == 5


def test_another_depth_is_refused_before_weights_are_read(sample, plan, tiny_pipeline):
    deep = tiny_pipeline("deep", num_layers=7)
    weights = deep / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])  # which only reading them would notice
    ended = sample("--plan", plan(), folder=deep)
    assert ended.code == 2 and "made for 6 blocks, but the model has 7" in ended.stderr, ended.stderr


def test_other_weights_and_guidance_are_warned_of_once(sample, plan, tiny_pipeline):
    ended = sample("--plan", plan(), "--guidance-scale", 2, folder=tiny_pipeline("other", seed=1))
    assert ended.code == 0 and ended.stderr.count("Warning") == 1, ended.stderr
    assert "other weights of this architecture and a guidance scale of 1.5 (the run has 2.0)" in ended.stderr


def test_a_damaged_plan_is_one_sentence(sample, plan, tmp_path):
    path = plan()
    text = path.read_text()
    for damaged in ("", "[", "sample: {steps: 3}", text[: len(text) // 2], text.replace("0,1", "0,9"), "\x00"):
        path.write_text(damaged)
        ended = sample("--plan", path)
        assert ended.code == 2 and ended.exception is None and ended.stderr.count("Error: ") == 1, ended.stderr
    path.write_bytes(b"\xff\xfe\x00")
    assert sample("--plan", path).code == 2
    assert sample("--plan", tmp_path / "none.yaml").code == 2 and sample("--plan", tmp_path).code == 2
    assert not (tmp_path / "a.png").exists()


def test_a_plan_has_any_suffix(sample, plan, tmp_path, monkeypatch):
    plan().rename(tmp_path / "fast")
    monkeypatch.chdir(tmp_path)
    assert sample("--plan", "fast").json["settings"]["full_steps"] == "0,1"


def test_a_preset_names_no_plan(sample, plan, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({"sample": {"plan": str(plan())}}))
    ended = sample("--preset", own)
    assert ended.code == 2 and "unknown key 'sample: plan'" in ended.stderr


def test_a_typed_plan_wins_over_a_record_and_one_of_the_environment_does_not(sample, plan, tmp_path):
    assert sample("--steps", 3, "--seed", 5, "--cache-layers", 2, output="first.png").code == 0
    first = ("--from", tmp_path / "first.png")
    settings = sample(*first, "--plan", plan()).json["settings"]
    assert (settings["seed"], settings["num_inference_steps"], settings["cache_layers"]) == (5, 4, "1:0")
    ended = sample(*first, env={"SKIPDIT_SAMPLE_PLAN": str(plan())})
    assert ended.json["settings"]["num_inference_steps"] == 3
    assert "the plan plan says --num-inference-steps" in ended.stderr
