"""Plans: what is saved is loaded, what was edited is refused, and a plan knows the model it was made for."""

import numpy as np
import pytest
import torch
import yaml

import skipdit_cli
from skipdit_cli import CachePolicy, disable_skip_cache, enable_skip_cache, generate, load_pipeline, load_plan
from skipdit_cli.errors import UsageError
from skipdit_cli.models.outline import read_outline
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler

CACHED = Candidate(
    Sampler("dpm++", "lu", {"solver_order": 3}), 6, CachePolicy((1, 0), full_steps=(0, 1, 3), damping=0.75)
)
PLAIN = Candidate(Sampler("unipc", timesteps=(999, 600.25, 300, 20)), 4)
MEASURED = {"psnr_exact": np.float64(38.5), "deviation": 2.0, "seeds": (24, 25), "worst": float("nan")}


@pytest.fixture
def pipe(tiny_pipeline):
    return load_pipeline(tiny_pipeline())


@pytest.fixture
def saved(pipe, tmp_path):
    """``saved(candidate, key=value)``: the file of a plan for the tiny model, with other values of ``made_for``."""

    def write(candidate=CACHED, **changes):
        made_for = {**make_made_for(pipe, candidate, 1.5, 3.625, MEASURED), **changes}
        save_plan(Plan(candidate, made_for), tmp_path / "plan.yaml", "skipdit calibrate --cost 4 -o plan.yaml")
        return tmp_path / "plan.yaml"

    return write


@pytest.fixture
def edited(saved):
    """``edited(change)``: the file of a plan after ``change`` was applied to its mapping of keys."""

    def write(change, candidate=CACHED):
        path = saved(candidate)
        data = yaml.safe_load(path.read_text())
        change(data)
        path.write_text(yaml.safe_dump(data))
        return path

    return write


@pytest.mark.parametrize(
    "candidate",
    [
        CACHED,
        PLAIN,
        Candidate(Sampler(), 3, CachePolicy(1, full_steps=(0,), forecast="reuse")),
        Candidate(Sampler("ddim", "trailing"), 9, CachePolicy((0, 0), full_steps=(0, 2, 4), axis="sqrt")),
        Candidate(Sampler("dpm++", None, {"flow_shift": 2.5, "lower_order_final": False}), 2),
    ],
)
def test_what_is_saved_is_loaded(candidate, saved):
    plan = load_plan(saved(candidate))
    assert plan.candidate.key() == candidate.key()
    assert (plan.sampler, plan.steps, plan.name) == (candidate.sampler, candidate.steps, "plan")
    if candidate.policy is None:
        assert plan.policy is None
    else:
        assert plan.policy.steps == candidate.steps and plan.policy.layers == candidate.policy.layers


def test_a_person_can_read_it(saved):
    text = saved().read_text()
    assert text.startswith("# skipdit calibrate --cost 4 -o plan.yaml\n# skipdit sample -m MODEL --plan FILE")
    data = yaml.safe_load(text)
    assert data["about"].startswith("dpm++ lu order 3, 6 steps, 3 full, 1:0 live")
    made_for = data["made_for"]
    assert (made_for["class"], made_for["blocks"], made_for["branches"]) == ("DiTTransformer2DModel", 6, "none")
    assert (made_for["steps"], made_for["guidance_scale"], made_for["cost"]) == (6, 1.5, 3.625)
    assert made_for["measured"] == {"psnr_exact": 38.5, "deviation": 2.0, "seeds": [24, 25], "worst": None}
    assert set(made_for["versions"]) == {"skipdit", "torch", "diffusers"}


def test_python_takes_a_plan(pipe, saved):
    plan = load_plan(saved())
    run = {"policy": plan.policy, "scheduler": plan.sampler, "num_inference_steps": plan.steps}
    result = generate(pipe, [1, 2], guidance_scale=1.5, **run)
    assert result.report.reused_steps == 3
    with pytest.raises(UsageError, match="plan made for 6 steps but the run has 7"):
        generate(pipe, [1], guidance_scale=1.5, **{**run, "num_inference_steps": 7})
    enable_skip_cache(pipe.transformer, policy=skipdit_cli.load_plan(saved()).policy, scheduler=pipe.scheduler)
    disable_skip_cache(pipe.transformer)


def test_the_fingerprint_tells_architectures_apart_and_not_weights(pipe, saved, tiny_pipeline):
    plan = load_plan(saved())
    plan.check_run(read_outline(tiny_pipeline()), plan.sampler, 6)
    plan.check_run(load_pipeline(tiny_pipeline("other", seed=1)), plan.sampler, 6)
    with pytest.raises(UsageError, match="made for 6 blocks, but the model has 7; calibrate again"):
        plan.check_run(read_outline(tiny_pipeline("deep", num_layers=7)), plan.sampler, 6)
    with pytest.raises(UsageError, match="another config than that of the model"):
        plan.check_run(read_outline(tiny_pipeline("wide", num_attention_heads=3)), plan.sampler, 6)
    load_plan(saved(PLAIN)).check_run(read_outline(tiny_pipeline("deep")), Sampler(), 50)


def test_another_class_is_refused(saved, latte_pipeline):
    plan = load_plan(saved())
    with pytest.raises(UsageError, match="for a DiTTransformer2DModel, but the model is a LatteClass"):
        plan.check_run(read_outline(latte_pipeline()), plan.sampler, 6)


def test_other_weights_and_guidance_are_told(pipe, saved, tiny_pipeline):
    plan = load_plan(saved())
    assert plan.difference(pipe, 1.5) is None
    pipe.transformer.to(torch.bfloat16)
    assert plan.difference(pipe, 1.5) is None
    assert "a guidance scale of 1.5 (the run has 4.0)" in plan.difference(pipe, 4.0)
    other = load_pipeline(tiny_pipeline("other", seed=1))
    assert "other weights of this architecture" in plan.difference(other, 1.5)
    skipdit_cli.add_skip_branches(other.transformer)
    assert "no skip branches (the model has skip branches of the merge residual)" in plan.difference(other, 1.5)


def in_sample(**flags):
    return lambda data: data["sample"].update({name.replace("_", "-"): value for name, value in flags.items()})


def in_made_for(**values):
    return lambda data: data["made_for"].update(values)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (in_sample(full_steps="0,3,6"), "has the full step 6, but its 6 steps end with 5"),
        (in_sample(full_steps="0,3,1"), "expected ascending steps from 0"),
        (in_sample(full_steps="1,3"), "expected ascending steps from 0"),
        (in_sample(full_steps="3"), "expected ascending steps from 0"),
        (in_sample(full_steps="0,a"), "expected the indices of steps"),
        (in_sample(full_steps="0,1,4"), "it was saved with: it is cut short or edited; calibrate"),
        (in_sample(num_inference_steps="8"), "was made for steps '6', but its flags say '8'"),
        (in_sample(num_inference_steps="0"), "expected 1 or more"),
        (in_sample(num_inference_steps="six"), "expected a whole number"),
        (in_sample(scheduler="ddim"), "was made for sampler 'dpm\\+\\+ lu order 3'"),
        (in_sample(scheduler="dmp++"), "Did you mean 'dpm\\+\\+'"),
        (in_sample(scheduler_arg="solver_order=2"), "expected a list of KEY=VALUE"),
        (in_sample(scheduler_arg=["solver_order"]), "expected KEY=VALUE"),
        (in_sample(cache_layers="5:1"), "leaves nothing to cache: the model has 6 blocks"),
        (in_sample(cache_layers="1:2:3"), "Plan plan cannot be used: Got --cache-layers"),
        (in_sample(forecast="taylor9"), "Plan plan cannot be used: Got --forecast 'taylor9'"),
        (in_sample(forecast_damping="nan"), "expected one value"),
        (in_sample(cache_layer="1"), "'sample: cache-layer', which no plan does. Did you mean 'cache-layers'"),
        (in_sample(seed="3"), "'sample: seed', which no plan does"),
        (in_sample(output="a.png"), "says where to write"),
        (lambda data: data["sample"].pop("cache-layers"), "'full-steps' without 'cache-layers'"),
        (lambda data: data["sample"].pop("num-inference-steps"), "expected a whole number"),
        (lambda data: data.pop("sample"), "has no 'sample'"),
        (lambda data: data.update(train={"seed": "1"}), "has the key 'train', which no plan has"),
        (lambda data: data.update(model={"class": "A", "config": {}}), "has the key 'model'"),
        (lambda data: data.pop("made_for"), "is no plan"),
        (lambda data: data.update(made_for=3), "expected a mapping of keys"),
        (lambda data: data["made_for"].pop("date"), "has no 'date'; the file is cut short"),
        (in_made_for(measured={"psnr_exact": 99.0}), "other flags or figures than those it was saved with"),
        (in_made_for(blokcs=3), "unknown key 'blokcs'. Did you mean 'blocks'"),
        (in_made_for(steps="6"), "'steps: 6' but expected a whole number"),
        (in_made_for(steps=True), "'steps: True' but expected a whole number"),
        (in_made_for(cost=float("inf")), "expected a finite number"),
        (in_made_for(measured={"a": "x" * 20_000}), "characters but expected at most 20,000"),
    ],
)
def test_an_edited_plan_is_refused_in_a_sentence(edited, change, says):
    with pytest.raises(UsageError, match=says):
        load_plan(edited(change))


def test_timesteps_are_as_many_as_steps(edited):
    with pytest.raises(UsageError, match="'num-inference-steps: 5' and 4 timesteps"):
        load_plan(edited(in_sample(num_inference_steps="5"), PLAIN))


def test_a_plan_that_is_cut_short_is_refused_wherever_it_ends(saved):
    path = saved()
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        with pytest.raises(UsageError):
            load_plan(path)


def test_a_missing_plan_is_refused(tmp_path):
    for name in ("none.yaml", "none"):
        with pytest.raises(UsageError, match="is no file"):
            load_plan(tmp_path / name)
