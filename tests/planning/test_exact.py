"""The exact solution of the sampling ODE: against a closed form, on the embedded model, and what has none."""

import math

import diffusers
import pytest
import torch

from skipdit_cli import load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.models import open_model
from skipdit_cli.planning.accuracy import accuracy_db
from skipdit_cli.planning.exact import solve_exactly
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import make_scheduler
from skipdit_cli.sampling.schedulers.explicit_timesteps import noise_to_signal

MEAN, DEVIATION = 0.1, 0.25


@pytest.fixture
def gaussian(tiny_pipeline):
    """A pipeline whose denoiser is the ideal one of pixels from N(MEAN, DEVIATION^2)."""
    pipe = load_pipeline(tiny_pipeline())
    table = make_scheduler("dpm++", pipe).alphas_cumprod

    def predict_noise(hidden_states, timestep, class_labels, return_dict):
        level = torch.tensor(noise_to_signal(table, [float(timestep[0])])[0])
        alpha, sigma = 1 / (1 + level**2).sqrt(), level / (1 + level**2).sqrt()
        noise = sigma * (hidden_states - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
        return (noise.float(),)

    pipe.transformer.forward = predict_noise
    return pipe


def noise_of(pipe, count):
    """The noise that samples of seeds 0, 1, ... start from."""
    config = pipe.transformer.config
    shape = config.in_channels, config.sample_size, config.sample_size
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(count)])


def closed_form(pipe, count):
    """The solution from seeds 0, 1, ...: (x - alpha MEAN) / its deviation is constant along the ODE."""
    alphas = make_scheduler("dpm++", pipe).alphas_cumprod
    alpha, sigma = alphas[-1].sqrt(), (1 - alphas[-1]).sqrt()
    return MEAN + DEVIATION * (noise_of(pipe, count) - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2).sqrt()


@pytest.mark.parametrize("accuracy", [50, 70])
def test_a_linear_denoiser_is_solved_to_the_accuracy_that_is_requested(accuracy, gaussian):
    steps = []
    exact = solve_exactly(gaussian, [1, 2], accuracy_db=accuracy, guidance_scale=1.0, advance=lambda: steps.append(1))
    error = (exact.latents - closed_form(gaussian, 2)).clamp(-2, 2).square().mean()
    assert exact.agreement_db >= accuracy and 10 * math.log10(4 / error) >= accuracy - 3
    assert exact.steps < 1000 and len(steps) == 2 * exact.steps - 25
    assert exact.images.shape[0] == 2 and exact.sampler.describe() == f"dpm++ order 3 at {exact.steps} timesteps"
    few = generate(gaussian, [1, 2], num_inference_steps=10, guidance_scale=1.0)
    many = generate(gaussian, [1, 2], num_inference_steps=exact.steps, guidance_scale=1.0, scheduler=exact.sampler)
    assert torch.equal(many.latents, exact.latents) and accuracy_db(gaussian, few, many) < accuracy


def test_a_solution_goes_on_from_an_earlier_one(gaussian):
    first = solve_exactly(gaussian, [1, 2], accuracy_db=30, guidance_scale=1.0)
    steps = []
    run = {"accuracy_db": 70, "guidance_scale": 1.0}
    further = solve_exactly(gaussian, [1, 2], begin=first, advance=lambda: steps.append(1), **run)
    whole = solve_exactly(gaussian, [1, 2], **run)
    assert first.steps < further.steps == whole.steps and torch.equal(further.latents, whole.latents)
    assert further.agreement_db == whole.agreement_db and len(steps) == 2 * (further.steps - first.steps)


def test_the_embedded_model_converges():
    pipe = open_model(None, "digits", dtype=torch.float32)
    exact = solve_exactly(pipe, [3, 5], accuracy_db=55, guidance_scale=1.5)
    assert exact.agreement_db >= 55 and exact.steps <= 400
    ddim = generate(pipe, [3, 5], num_inference_steps=50, guidance_scale=1.5)
    assert 30 < accuracy_db(pipe, ddim, exact) < 55


@pytest.mark.parametrize(
    "scheduler, agreement",
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), 50),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
            65,
        ),
    ],
)
def test_a_linear_flow_is_solved_to_the_accuracy_that_is_requested(scheduler, agreement, tiny_pipeline):
    pipe = load_pipeline(tiny_pipeline())
    pipe.scheduler = scheduler

    def predict_velocity(hidden_states, timestep, class_labels, return_dict):
        sigma = timestep[0] / 1000
        deviation = (1 - sigma) * DEVIATION**2 * (hidden_states - (1 - sigma) * MEAN)
        variance = (1 - sigma) ** 2 * DEVIATION**2 + sigma**2
        noise = sigma * (hidden_states - (1 - sigma) * MEAN) / variance
        return (noise - (MEAN + deviation / variance),)

    pipe.transformer.forward = predict_velocity
    exact = solve_exactly(pipe, [1, 2], accuracy_db=agreement, guidance_scale=1.0)
    error = (exact.latents - MEAN - DEVIATION * noise_of(pipe, 2)).square().mean()
    assert exact.agreement_db >= agreement and 10 * math.log10(4 / error) >= agreement - 1


def test_it_ends_at_the_timesteps_of_the_model(gaussian):
    exact = solve_exactly(gaussian, [1], accuracy_db=1000, guidance_scale=1.0, num_inference_steps=7)
    assert exact.steps == gaussian.scheduler.config.num_train_timesteps and exact.agreement_db > 60


def test_what_has_no_exact_solution_is_refused(gaussian, text_pipeline):
    for scheduler in ("ddpm", "dpm++-sde", "euler-a"):
        with pytest.raises(UsageError, match="adds noise at each step"):
            solve_exactly(gaussian, [1], accuracy_db=50, scheduler=scheduler)
    pipe = load_pipeline(text_pipeline)
    with pytest.raises(UsageError, match="eta above 0"):
        solve_exactly(pipe, ["a cat"], accuracy_db=50, arguments={"eta": 0.5})
    forward = pipe.transformer.forward
    pipe.transformer.forward = lambda *args, **kwargs: tuple(x + torch.rand(()) for x in forward(*args, **kwargs))
    with pytest.raises(UsageError, match="Two equal calls of this LattePipeline"):
        solve_exactly(pipe, ["a cat"], accuracy_db=50, decode=False)
