"""Samplers: spacings, arguments of schedulers, explicit timesteps; which are deterministic, which a model takes."""

import json

import diffusers
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from skipdit_cli import CachePolicy, load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.media import read_metadata
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.refusals import check_steps
from skipdit_cli.sampling.run_settings import RunSettings
from skipdit_cli.sampling.schedulers import (
    SCHEDULERS,
    Sampler,
    candidates,
    check_deterministic,
    is_deterministic,
    make_scheduler,
)
from tests.support.measurements import relative_l2


@pytest.fixture
def pipe(tiny_pipeline):
    return load_pipeline(tiny_pipeline())


@pytest.fixture
def flow_pipe(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return pipe


def timesteps_of(name, pipe, steps):
    """The timesteps that a scheduler sets by itself; those that Heun evaluates twice once."""
    scheduler = make_scheduler(name, pipe)
    scheduler.set_timesteps(steps)
    return list(dict.fromkeys(scheduler.timesteps.tolist()))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_its_own_timesteps_given_explicitly_change_no_bit(name, pipe):
    settings = {"policy": CachePolicy(1, forecast="linear"), "decode": False}
    expected = generate(pipe, [1, 2], num_inference_steps=6, scheduler=name, **settings)
    made = generate(pipe, [1, 2], scheduler=Sampler(name, timesteps=timesteps_of(name, pipe, 6)), **settings)
    assert torch.equal(made.latents, expected.latents)
    assert made.report == expected.report and made.report.reused_steps > 0


@pytest.mark.parametrize("name", [None, "ddim", "dpm++", "unipc", "heun"])
def test_explicit_timesteps_of_a_text_pipeline(name, text_pipeline):
    pipe, settings = load_pipeline(text_pipeline), {"seed": 3, "batch_size": 1, "decode": False}
    expected = generate(pipe, ["a cat"], num_inference_steps=4, scheduler=name, **settings).latents
    sampler = Sampler(name, timesteps=timesteps_of(name, pipe, 4))
    assert relative_l2(generate(pipe, ["a cat"], scheduler=sampler, **settings).latents, expected) < 1e-5
    uneven = Sampler(name, timesteps=(990, 700.5, 90))
    assert torch.isfinite(generate(pipe, ["a cat"], scheduler=uneven, **settings).latents).all()


def test_explicit_timesteps_of_a_flow(flow_pipe):
    """The noise levels are the timesteps over 1000, and the last bit of the quotient may differ."""
    expected = generate(flow_pipe, [1], num_inference_steps=5, decode=False).latents
    sampler = Sampler(timesteps=timesteps_of(None, flow_pipe, 5))
    assert relative_l2(generate(flow_pipe, [1], scheduler=sampler, decode=False).latents, expected) < 1e-5
    shifted = Sampler(arguments={"shift": 3})
    expected = generate(flow_pipe, [1], num_inference_steps=5, scheduler=shifted, decode=False).latents
    sampler = Sampler(timesteps=timesteps_of(shifted, flow_pipe, 5))
    assert relative_l2(generate(flow_pipe, [1], scheduler=sampler, decode=False).latents, expected) < 1e-5


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler"])
def test_a_fraction_of_a_timestep_lies_between_its_neighbours(name, pipe):
    def noise_level(t):
        scheduler = make_scheduler(Sampler(name, timesteps=(900, t)), pipe)
        scheduler.set_timesteps(2)
        assert scheduler.timesteps[1] == t
        return scheduler.sigmas[1] if hasattr(scheduler, "sigmas") else -scheduler.alphas_of[t][0]

    assert noise_level(400) < noise_level(400.25) < noise_level(400.75) < noise_level(401)


def test_a_spacing_switches_the_others_off(pipe):
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    for spacing, switch in {"lu": "use_lu_lambdas", "exponential": "use_exponential_sigmas"}.items():
        config = make_scheduler(Sampler(spacing=spacing), pipe).config
        assert config[switch] and not config.use_karras_sigmas
    config = make_scheduler(Sampler(spacing="trailing"), pipe).config
    assert config.timestep_spacing == "trailing" and not config.use_karras_sigmas
    assert not make_scheduler(Sampler(timesteps=(900, 100)), pipe).config.use_karras_sigmas
    assert make_scheduler(None, pipe).config.use_karras_sigmas


@pytest.mark.parametrize(
    "sampler, steps, message",
    [
        ({"spacing": "karas"}, 4, "expected one of lu, .* Did you mean 'karras'"),
        ({"name": "deis", "spacing": "lu"}, 4, "takes karras, exponential, beta, leading, linspace, trailing"),
        ({"name": "dpm++", "arguments": {"solver_ordr": 3}}, 4, "Did you mean 'solver_order'"),
        ({"name": "dpm++", "arguments": {"solver_order": "three"}}, 4, "with which a DPMSolver"),
        ({"name": "dpm++", "arguments": {"algorithm_type": "magic"}}, 4, "magic is not implemented"),
        ({"name": "dpm++", "arguments": {"timestep_spacing": "magic"}}, 4, "finds no timesteps: magic"),
        ({"name": "dpm++", "spacing": "linspace"}, 1000, "two the same timestep"),
        ({"timesteps": (900, 100)}, 3, "3 and 2 --timesteps"),
        ({"timesteps": ()}, 0, "empty --timesteps"),
        ({"timesteps": (900, 900)}, 2, "each below the one before"),
        ({"timesteps": (900, -1)}, 2, "0 or more"),
        ({"timesteps": (1000, 1)}, 2, "timesteps up to 999"),
        ({"timesteps": (900, 100), "spacing": "karras"}, 2, "one of the two"),
        ({"name": "ddpm", "timesteps": (900.5, 100)}, 2, "takes whole timesteps"),
    ],
)
def test_what_does_not_fit_is_refused(sampler, steps, message, pipe):
    with pytest.raises(UsageError, match=message):
        generate(pipe, [1], num_inference_steps=steps, scheduler=Sampler(**sampler), decode=False)


def test_a_strength_beside_explicit_timesteps_is_refused(text_pipeline):
    scheduler = Sampler("ddim", timesteps=(900, 100))
    run = RunSettings(num_inference_steps=2, scheduler=scheduler, strength=0.5)
    with pytest.raises(UsageError, match="one of the two"):
        check_steps(run, make_scheduler(scheduler, load_pipeline(text_pipeline)))


def test_which_schedulers_are_deterministic(pipe, flow_pipe):
    stochastic = {"ddpm", "dpm++-sde", "euler-a"}
    pipe.scheduler = diffusers.DDIMScheduler()
    assert {name for name in SCHEDULERS if not is_deterministic(make_scheduler(name, pipe))} == stochastic
    ddim = make_scheduler("ddim", pipe)
    assert is_deterministic(ddim, {"eta": 0.0}) and not is_deterministic(ddim, {"eta": 0.5})
    assert is_deterministic(diffusers.FlowMatchEulerDiscreteScheduler())
    assert not is_deterministic(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    with pytest.raises(UsageError, match="--scheduler ddim, dpm"):
        check_deterministic(make_scheduler("ddpm", pipe))
    with pytest.raises(UsageError, match="eta above 0"):
        check_deterministic(ddim, {"eta": 1})


def test_candidates_run_and_are_all_different(pipe):
    found = candidates(pipe)
    assert len({sampler.describe() for sampler in found}) == len(found) == len(set(found))
    assert {"dpm++ lu order 2", "unipc karras order 3", "deis trailing order 2"} <= {s.describe() for s in found}
    noise = {tuple(generate(pipe, [1], num_inference_steps=5, scheduler=s, decode=False).latents.flatten().tolist())
             for s in found}  # fmt: skip
    assert len(noise) > 0.9 * len(found)


def test_candidates_of_a_flow(flow_pipe):
    found = [sampler.describe() for sampler in candidates(flow_pipe)]
    assert "own scheduler shift 3.0" in found and "own scheduler karras" in found
    assert not [name for name in found if "dpm++" in name]
    flow_pipe.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    found = candidates(flow_pipe)
    assert {"dpm++ order 2 flow_shift 3.0", "unipc order 3"} <= {sampler.describe() for sampler in found}
    for sampler in found:
        made = generate(flow_pipe, [1], num_inference_steps=3, scheduler=sampler, decode=False)
        assert torch.isfinite(made.latents).all()
    with pytest.raises(UsageError, match="two the same timestep"):
        generate(flow_pipe, [1], num_inference_steps=1000, decode=False)


def test_the_flags_of_a_sampler_describe_it(skipdit, tiny_pipeline, tmp_path):
    """What ``Sampler.flags`` says makes the same sampler again, by hand, from a preset and from a record."""
    model, first, again = tiny_pipeline(), tmp_path / "a.png", tmp_path / "b.png"
    run = ("sample", "-m", model, "--class-labels", 1, "--guidance-scale", 1.5, "--cache-layers", 1)
    for sampler in (
        Sampler("dpm++", "lu", {"solver_order": 3, "euler_at_final": True}),
        Sampler("unipc", timesteps=(999, 700.25, 1 / 3)),
        Sampler(
            "fitted", None, {"coefficients": [[1.0, 3e-05], [0.9, -0.5, 0.1], [1.0, 0.2, 1e-09, -0.7]]}, (999, 600, 0)
        ),
    ):
        steps = 5 if sampler.timesteps is None else 3
        preset = tmp_path / "plan.yaml"
        preset.write_text(yaml.safe_dump({"sample": sampler.flags()}))
        flags = []
        for flag, value in sampler.flags().items():
            for text in [value] if isinstance(value, str) else value:
                flags += [f"--{flag}", text]
        flags += ["--steps", 5] if sampler.timesteps is None else []
        ran = skipdit(*run, *flags, "-o", first, "--overwrite", "--json")
        assert ran.code == 0, ran.stderr
        assert json.loads(ran.stdout)["settings"]["num_inference_steps"] == steps
        assert skipdit("sample", "--from", first, "-o", again, "--overwrite").code == 0
        assert again.read_bytes() == first.read_bytes()
        ran = skipdit(*run, "--preset", preset, *(flags[-2:] if steps == 5 else ()), "-o", again, "--overwrite")
        assert ran.code == 0, ran.stderr
        assert again.read_bytes() == first.read_bytes()
        settings = {"num_inference_steps": steps, "guidance_scale": 1.5, "policy": CachePolicy(1)}
        made = [generate(load_pipeline(model), [1], scheduler=each, **settings).images[0] for each in (sampler, None)]
        image = np.asarray(Image.open(first).convert("RGB"))
        assert (made[0] == image).all() and not (made[1] == image).all()


def test_steps_that_are_typed_win_over_the_timesteps_of_a_record(skipdit, tiny_pipeline, tmp_path):
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    run = ("--guidance-scale", 1, "-o")
    assert skipdit("sample", "-m", tiny_pipeline(), "--timesteps", "900,500,20", *run, first).code == 0
    assert skipdit("sample", "--from", first, "--steps", 2, *run, again).code == 0
    settings = read_metadata(again)["settings"]
    assert settings["num_inference_steps"] == 2 and "timesteps" not in settings


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--timesteps 999,five", "expected numbers separated by commas"),
        ("--timesteps 999,500 --steps 50", "Got --steps 50 and 2 --timesteps"),
        ("--timesteps 500,999", "each below the one before"),
        ("--timesteps nan", "finite"),
        ("--timesteps ,", "empty --timesteps"),
        ("--scheduler-spacing lo", "Did you mean 'lu'"),
        ("--scheduler dpm++ --scheduler-arg solver_order", "expected KEY=VALUE, such as solver_order=3"),
        ("--scheduler dpm++ --scheduler-arg solver_order=2 --scheduler-arg solver_order=3", "twice"),
        ("--scheduler dpm++ --scheduler-arg solver_order=99999999999", "at most"),
        ("--scheduler dpm++ --scheduler-arg magic=1", "does not take"),
    ],
)
def test_flags_of_a_sampler_that_do_not_fit(flags, message, skipdit, tiny_pipeline, tmp_path):
    for command, output in (("sample", "a.png"), ("bench", "bench")):
        ran = skipdit(command, "-m", tiny_pipeline(), *flags.split(), "-o", tmp_path / output)
        assert ran.code == 2 and message in ran.stderr, ran.stderr
        assert not (tmp_path / output).exists()


def test_bench_takes_a_sampler(skipdit, tiny_pipeline):
    flags = ("--scheduler", "dpm++", "--timesteps", "999,800,500,200,20", "--scheduler-arg", "solver_order=3")
    ran = skipdit("bench", "-m", tiny_pipeline(), *flags, "--cache-interval", 2, "--rounds", 1, "--no-exact", "--json")
    assert ran.code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["scheduler"] == "DPMSolverMultistepScheduler" and report["timesteps"] == flags[3]
    assert report["num_inference_steps"] == 5 and report["scheduler_arg"] == ["solver_order=3"]
    assert {row["steps"] for row in report["rows"]} > {5}  # those of fewer steps space their own


def test_bench_takes_a_fitted_sampler(skipdit, tiny_pipeline):
    coefficients = "coefficients=[[1.0, -0.5], [1.0, -0.2, 0.1], [1.0, 0.1, 0.1, 0.1]]"
    flags = ("--scheduler", "fitted", "--timesteps", "999,500,20", "--scheduler-arg", coefficients)
    ran = skipdit("bench", "-m", tiny_pipeline(), *flags, "--cache-interval", 2, "--rounds", 1, "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["scheduler"] == "FittedScheduler"


def test_candidates_have_the_noise_schedule_of_the_model(pipe):
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=1.0)
    assert [sampler.name for sampler in candidates(pipe)] == [None, None, None]
