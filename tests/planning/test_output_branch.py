"""Output branches: fitted on tiny models, read back, put on and taken off; and what is refused."""

from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from skipdit_cli import load_pipeline
from skipdit_cli.cards.plans import plan_files
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.accuracy import accuracy_db
from skipdit_cli.planning.calibrate import Calibrator
from skipdit_cli.planning.fit_branch import branch_samples, fit_output_branch
from skipdit_cli.planning.fit_sampler import SamplerFitter
from skipdit_cli.planning.plan import Plan, load_plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.planning.searching.effort import Effort
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import Sampler, make_scheduler
from skipdit_cli.skip.output_branch import disable_output_branch, enable_output_branch, load_output_branch
from tests.support.tiny_pipelines import write_pipeline

SETTINGS = {"guidance_scale": 1.5, "decode": False}
NODES = [0, 20, 45]


def fit(pipe, folder, conditions, **settings):
    """A sampler, the same with an output branch in a file of ``folder``, and the branch and the fitter."""
    fitter = SamplerFitter(pipe, conditions, **settings)
    plain = fitter.fit(NODES).sampler
    sampler, branch = fit_output_branch(fitter, plain)
    named = {
        "output_branch": str(folder / "b.safetensors"),
        "output_branch_sha256": branch.save(folder / "b.safetensors"),
    }
    return plain, Sampler("fitted", None, {**sampler.arguments, **named}, sampler.timesteps), branch, fitter


@pytest.fixture
def pipe(tiny_pipeline):
    return load_pipeline(tiny_pipeline(in_channels=4, out_channels=8))  # with a learned variance


@pytest.fixture
def fitted(pipe, tmp_path):
    return fit(pipe, tmp_path, [0, 1, 2] * 8, guidance_scale=1.5)


@pytest.fixture
def plan(pipe, fitted, tmp_path):
    """The file of a plan with an output branch, for ``model``."""
    (tmp_path / "plans").mkdir()
    candidate = Candidate(fitted[1], 3)
    made_for = make_made_for(pipe, candidate, 1.5, 3.1, {"psnr_exact": 30.0})
    save_plan(Plan(candidate, made_for), tmp_path / "plans" / "plan.yaml")
    return tmp_path / "plans" / "plan.yaml"


def test_it_is_nearer_to_the_exact_solution_and_leaves_the_model_as_it_was(pipe, fitted):
    plain, sampler, branch, fitter = fitted
    assert branch.module == "proj_out_2" and branch.calls == (2,) and branch.steps == 3
    before = generate(pipe, [1, 2], num_inference_steps=3, **SETTINGS).latents
    accuracies = [
        accuracy_db(pipe, generate(pipe, fitter.conditions, scheduler=each, **SETTINGS), fitter.path.samples)
        for each in (plain, sampler)
    ]
    assert accuracies[1] > accuracies[0], accuracies
    assert torch.equal(generate(pipe, [1, 2], num_inference_steps=3, **SETTINGS).latents, before)
    assert not any(
        "forward" in vars(module) for module in pipe.transformer.modules() if module is not pipe.transformer
    )


def test_no_channel_of_the_learned_variance_is_changed(pipe, fitted):
    outputs = fitted[2].weights[0][0].view(2, 2, 8, -1)  # a patch of 2 by 2
    assert outputs[:, :, :4].abs().max() > 0 and outputs[:, :, 4:].abs().max() == 0


def test_zero_maps_change_no_bit_and_a_second_run_equals_the_first(pipe, fitted, tmp_path):
    plain, sampler, branch, _ = fitted
    runs = [generate(pipe, [1, 2], scheduler=sampler, **SETTINGS).latents for _ in range(2)]
    assert torch.equal(*runs)
    for maps in (branch.weights, branch.biases):
        for step in maps:
            step[0].zero_()
    file = str(tmp_path / "zero.safetensors")
    branch.save(tmp_path / "zero.safetensors")
    zero = Sampler("fitted", None, {**plain.arguments, "output_branch": file}, plain.timesteps)
    assert torch.equal(
        generate(pipe, [1, 2], scheduler=zero, **SETTINGS).latents,
        generate(pipe, [1, 2], scheduler=plain, **SETTINGS).latents,
    )


def test_the_call_of_a_pipeline_takes_it_and_says_if_it_is_missing(pipe, fitted):
    scheduler = make_scheduler(fitted[1], pipe)
    x, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    scheduler.set_timesteps(3)
    with pytest.raises(UsageError, match="call enable_output_branch"):
        scheduler.step(x, scheduler.timesteps[0], x)
    plain = pipe.transformer(x, timestep=torch.tensor([999, 999]), class_labels=labels).sample
    for _ in range(2):
        enable_output_branch(pipe.transformer, scheduler)
    scheduler.set_timesteps(3)
    corrected = pipe.transformer(x, timestep=torch.tensor([999, 999]), class_labels=labels).sample
    assert not torch.equal(corrected, plain)
    disable_output_branch(pipe.transformer)
    assert torch.equal(pipe.transformer(x, timestep=torch.tensor([999, 999]), class_labels=labels).sample, plain)


def test_a_run_without_guidance_is_refused(pipe, fitted):
    with pytest.raises(UsageError, match="fitted to, with guidance; sample with the guidance"):
        generate(pipe, [1, 2], scheduler=fitted[1], guidance_scale=1, decode=False)


def test_a_plan_takes_it_along(pipe, plan, skipdit, tmp_path):
    loaded = load_plan(plan)
    assert loaded.candidate.describe() == "fitted with an output branch at 3 timesteps, 3 steps"
    assert [path.name for path in plan_files(tmp_path)] == ["plan.yaml", "plan.safetensors"]
    assert skipdit("presets", "check", plan).code == 0
    assert generate(pipe, [1], scheduler=loaded.sampler, **SETTINGS).steps == 3
    moved = tmp_path / "elsewhere"
    plan.parent.rename(moved)
    save_plan(load_plan(moved / "plan.yaml"), tmp_path / "again.yaml")
    assert load_plan(tmp_path / "again.yaml").made_for == loaded.made_for


def test_sample_and_bench_take_it(plan, skipdit, tmp_path):
    folder = next(path for path in tmp_path.iterdir() if (path / "model_index.json").exists())
    out = tmp_path / "a.png"
    ran = skipdit("sample", "-m", folder, "--plan", plan, "--class-labels", "1,2", "-o", out)
    assert ran.code == 0 and out.exists(), ran.stderr
    ran = skipdit("sample", "--from", out, "-o", tmp_path / "b.png")
    assert ran.code == 0 and (tmp_path / "b.png").read_bytes() == out.read_bytes(), ran.stderr
    quick = ("--steps", 4, "--rounds", 1, "--warmup", 0, "--class-labels", 1, "--no-exact", "--guidance-scale", 1.5)
    ran = skipdit("bench", "-m", folder, "--plan", plan, *quick, "--cache-interval", 2, "--json")
    assert ran.code == 0 and "plan" in [row["case"] for row in ran.json["rows"]], ran.stderr


def cut(file):
    file.write_bytes(file.read_bytes()[:-8])


def foreign(file):
    save_file({"a": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    "damage, message",
    [(lambda file: file.unlink(), "is no file"), (cut, "is not the file"), (foreign, "is not the file")],
)
def test_a_missing_cut_or_foreign_file_is_refused(plan, skipdit, tmp_path, damage, message):
    damage(plan.with_suffix(".safetensors"))
    folder = next(path for path in tmp_path.iterdir() if (path / "model_index.json").exists())
    ran = skipdit("sample", "-m", folder, "--plan", plan, "--class-labels", 1, "-o", tmp_path / "a.png")
    assert ran.code == 2 and message in ran.stderr and ran.stderr.count("Error: ") == 1, ran.stderr
    assert not (tmp_path / "a.png").exists() and skipdit("presets", "check", plan).code == 3


def test_a_file_that_is_no_branch_or_of_another_size_is_refused(pipe, fitted, tmp_path):
    file = tmp_path / "b.safetensors"
    tensors = load_file(file)
    foreign(tmp_path / "other.safetensors")
    cut_short = tmp_path / "cut.safetensors"
    cut_short.write_bytes(file.read_bytes()[:-8])
    for path, message in {"other": "holds no output branch", "cut": "cannot be read", "none": "is no file"}.items():
        with pytest.raises(UsageError, match=message):
            load_output_branch(tmp_path / f"{path}.safetensors")
    metadata = {"output_branch": '{"module": "proj_out_2", "calls": [2], "rows": 1, "tokens": 16}'}
    for name in ("1.0.weight", "0.0.bias"):
        save_file({**tensors, name: tensors[name][:-1].contiguous()}, tmp_path / "bad.safetensors", metadata)
        with pytest.raises(UsageError, match="holds no output branch"):
            load_output_branch(tmp_path / "bad.safetensors")
    wide = {name: tensor.repeat(2, *[1] * (tensor.ndim - 1)) for name, tensor in tensors.items()}
    save_file(wide, tmp_path / "wide.safetensors", metadata)
    sampler = Sampler("fitted", None, {**fitted[1].arguments, "output_branch": str(tmp_path / "wide.safetensors")})
    sampler.arguments.pop("output_branch_sha256")
    scheduler = make_scheduler(Sampler("fitted", None, sampler.arguments, fitted[1].timesteps), pipe)
    with pytest.raises(UsageError, match="outputs, but 'proj_out_2' of"):
        enable_output_branch(pipe.transformer, scheduler)
    with pytest.raises(UsageError, match="3 steps, but coefficients for 2"):
        make_scheduler(Sampler("fitted", None, {**fitted[1].arguments, "coefficients": [[1, 1], [1, 1, 1]]}), pipe)


def test_a_branch_elsewhere_than_beside_its_plan_is_refused(plan):
    plan.write_text(plan.read_text().replace('output_branch="plan', 'output_branch="../plan'))
    with pytest.raises(UsageError, match="expected the name of a file beside it"):
        load_plan(plan)


def test_a_flow_of_a_text_conditional_pipeline(text_pipeline, tmp_path):
    pipe = load_pipeline(text_pipeline)
    plain, sampler, branch, fitter = fit(pipe, tmp_path, ["a dog"] * 8)
    assert sum(branch.calls) == 2
    exact = fitter.path.samples
    with_branch, without = (
        accuracy_db(pipe, generate(pipe, ["a dog"] * 8, scheduler=each, decode=False), exact)
        for each in (sampler, plain)
    )
    assert with_branch >= without - 0.1


def test_a_video_model(latte_pipeline, tmp_path):
    pipe = load_pipeline(latte_pipeline())
    plain, sampler, _, fitter = fit(pipe, tmp_path, [0, 1] * 8, guidance_scale=1.5)
    exact = fitter.path.samples
    with_branch, without = (
        accuracy_db(pipe, generate(pipe, fitter.conditions, scheduler=each, **SETTINGS), exact)
        for each in (sampler, plain)
    )
    assert with_branch >= without


def test_a_flow(tiny_pipeline, tmp_path):
    pipe = load_pipeline(tiny_pipeline())
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    _, sampler, _, fitter = fit(pipe, tmp_path, [0, 1, 2] * 4, guidance_scale=1.5)
    samples = generate(pipe, fitter.conditions, scheduler=sampler, **SETTINGS)
    assert accuracy_db(pipe, samples, fitter.path.samples) > 20


def test_guidance_of_some_channels_is_no_weighted_sum(tiny_pipeline, tmp_path):
    pipe = load_pipeline(tiny_pipeline(in_channels=4, out_channels=4))
    with pytest.raises(UsageError, match="does not get a weighted sum"):
        fit(pipe, tmp_path, [0, 1] * 4, guidance_scale=3.0, cfg_channels="3")


@pytest.fixture(scope="module")
def calibrated(tiny_dit, tmp_path_factory):
    """A calibrator, and the plan that it found: a fitted sampler of 3 steps."""
    pipe = load_pipeline(write_pipeline(tmp_path_factory.mktemp("tiny"), tiny_dit(in_channels=4, out_channels=8)))
    calibrator = Calibrator(pipe, [0, 1, 2, 3], [4, 5, 6], steps=8, guidance_scale=1.5)
    calibrator.samplers = [Sampler("dpm++", "lu")]
    return calibrator, calibrator.for_costs([3], Effort(samplers=0, starts=0, passes=0, fits=6))


def test_a_plan_gets_a_branch_that_wins_on_held_out_samples_and_its_cost(calibrated, tmp_path):
    calibrator, found = calibrated
    calibrator.check_output_branch()
    best = calibrator.with_output_branches(found, tmp_path).plans[3]
    assert best["plan"] == max(best["fitted"], best["output-branch"], key=lambda each: each.mean_db)
    assert 3 < best["output-branch"].cost < 3.5
    assert best["output-branch"].candidate.sampler.timesteps == best["fitted"].candidate.sampler.timesteps


def test_a_branch_that_loses_is_not_kept_and_that_is_said(calibrated, tmp_path, monkeypatch):
    calibrator, found = calibrated

    def harmful(fitter, sampler):
        fitted, branch = fit_output_branch(fitter, sampler)
        for step in branch.biases:
            step[0].add_(1)
        return fitted, branch

    monkeypatch.setattr("skipdit_cli.planning.calibrate.fit_output_branch", harmful)
    after = calibrator.with_output_branches(found, tmp_path)
    assert after.plans[3]["plan"] == found.plans[3]["plan"]
    assert "has no output branch: with one it has" in after.notes[0]
    plain = replace(found, plans={3: {**found.plans[3], "plan": found.plans[3]["sampler"]}})
    after = calibrator.with_output_branches(plain, tmp_path)
    assert after.plans == plain.plans and "it is no fitted sampler" in after.notes[0]


def test_a_batch_of_few_samples_is_refused(pipe):
    assert branch_samples(pipe, 24, {}) == 128
    with pytest.raises(UsageError, match="--batch-size 2, but a branch is fitted to one batch of 8"):
        branch_samples(pipe, 24, {"batch_size": 2})
