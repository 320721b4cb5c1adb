"""The DiT loss against numbers worked out by hand, and what is drawn for a step."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from skipdit_cli.training.data.order import Choice, Order, draw
from skipdit_cli.training.objective.conditioning import ClassConditioning, NoConditioning
from skipdit_cli.training.objective.loss import DiffusionLoss, discretised_log_likelihood

BETAS = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").betas


def one_pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value)


def test_variational_term_of_one_pixel_by_hand():
    t, x0, noise, epsilon, v = 400, 0.3, -0.7, 0.2, 0.5
    betas = [1e-4 + i * (0.02 - 1e-4) / 999 for i in range(1000)]
    alpha = math.prod(1 - beta for beta in betas[: t + 1])
    before = math.prod(1 - beta for beta in betas[:t])
    xt = math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * noise
    guess = (xt - math.sqrt(1 - alpha) * epsilon) / math.sqrt(alpha)

    def posterior_mean(x):
        from_x = betas[t] * math.sqrt(before) / (1 - alpha) * x
        return from_x + (1 - before) * math.sqrt(1 - betas[t]) / (1 - alpha) * xt

    variance = betas[t] * (1 - before) / (1 - alpha)
    share = (v + 1) / 2
    learned = math.exp(share * math.log(betas[t]) + (1 - share) * math.log(variance))
    distance = (posterior_mean(x0) - posterior_mean(guess)) ** 2
    nats = 0.5 * (math.log(learned / variance) + (variance + distance) / learned - 1)

    output = torch.cat([one_pixel(epsilon), one_pixel(v)], dim=1)
    losses = DiffusionLoss(BETAS)(output, one_pixel(x0), one_pixel(noise), torch.tensor([t]))
    assert float(losses.vb) == pytest.approx(nats / math.log(2), rel=1e-3)
    assert float(losses.mse) == pytest.approx((noise - epsilon) ** 2, rel=1e-5)
    assert float(losses.total) == pytest.approx(float(losses.mse + losses.vb), rel=1e-6)


def test_first_timestep_counts_the_bits_of_8_bit_pixels():
    x, mean, deviation = 0.25, 0.2, 0.1
    normal = torch.distributions.Normal(mean, deviation)
    bin_mass = normal.cdf(torch.tensor(x + 1 / 255)) - normal.cdf(torch.tensor(x - 1 / 255))
    found = discretised_log_likelihood(one_pixel(x), one_pixel(mean), one_pixel(math.log(deviation)))
    assert float(found) == pytest.approx(float(bin_mass.log()), abs=2e-3)
    ends = discretised_log_likelihood(one_pixel(1.0), one_pixel(2.0), one_pixel(math.log(deviation)))
    assert float(ends) == pytest.approx(0.0, abs=1e-3)  # everything above 1 belongs to the last bin

    loss = DiffusionLoss(BETAS)
    x0, noise, t = one_pixel(x), one_pixel(0.5), torch.tensor([0])
    xt = loss.add_noise(x0, noise, t)
    log_scale = 0.5 * loss.tables["log_most"][0].view(1, 1, 1, 1)
    guess = (xt - loss.tables["noise"][0] * 0.1) / loss.tables["signal"][0]
    by_hand = -discretised_log_likelihood(x0, guess, log_scale) / math.log(2)
    output = torch.cat([one_pixel(0.1), one_pixel(1.0)], dim=1)
    assert float(loss(output, x0, noise, t).vb) == pytest.approx(float(by_hand), rel=1e-4)


def test_variance_does_not_pull_at_the_noise_and_plain_epsilon_has_no_bound():
    torch.manual_seed(0)
    output = torch.randn(4, 2, 8, 8, requires_grad=True)
    x0, noise, t = torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 500, 999])
    loss = DiffusionLoss(BETAS)
    with_variance = loss(output, x0, noise, t)
    with_variance.total.backward()
    plain = output.detach()[:, :1].requires_grad_()
    without = loss(plain, x0, noise, t)
    without.total.backward()
    assert torch.equal(output.grad[:, :1], plain.grad)
    assert output.grad[:, 1:].abs().sum() > 0
    assert float(without.vb) == 0 and torch.equal(without.total, without.mse) and without.mse == with_variance.mse


def test_labels_are_dropped_once_for_the_whole_model():
    labels = torch.arange(10).repeat(400)
    drawn = draw((1, 2, 0, 0), (4000, 1, 1, 1), 1000, 0.1)
    assert 0.08 < drawn.dropped.float().mean() < 0.12
    given = (lambda x, **told: [told], torch.zeros(4000, 1, 1, 1), drawn.t)
    told = ClassConditioning(10).predict(*given, labels.tolist(), drawn.dropped)["class_labels"]
    assert torch.equal(told == 10, drawn.dropped) and torch.equal(told[~drawn.dropped], labels[~drawn.dropped])
    assert set(NoConditioning().predict(*given, [None] * 4000, drawn.dropped)) == {"timestep", "return_dict"}
    assert drawn.t.min() < 10 and drawn.t.max() > 990
    again = draw((1, 2, 0, 0), (4000, 1, 1, 1), 1000, 0.1)
    assert torch.equal(again.noise, drawn.noise) and torch.equal(again.dropped, drawn.dropped)
    assert not torch.equal(draw((1, 2, 1, 0), (4000, 1, 1, 1), 1000, 0.1).noise, drawn.noise)


def first(order: Order, count: int) -> list:
    batches = iter(order)
    return [next(batches) for _ in range(count)]


def test_order_is_whole_epochs_and_starts_anywhere():
    images = [choice.index for batch in first(Order(0, 10, 4), 5) for choice in batch]
    assert sorted(images[:10]) == sorted(images[10:]) == list(range(10)) and images[:10] != images[10:]
    assert first(Order(0, 10, 4, accumulation=2, start=1), 3) == first(Order(0, 10, 4, accumulation=2), 5)[2:]
    one, other = (first(Order(0, 10, 2, rank=rank, world=2), 2) for rank in (0, 1))
    both = [choice.index for a, b in zip(one, other) for choice in a + b]
    assert both == images[:8]


def test_every_split_of_a_step_takes_its_rows_of_one_draw():
    whole = Order(0, 10, 8, random_flip=True)
    for batch, accumulation, world in ((4, 2, 1), (2, 2, 2), (2, 1, 4), (1, 4, 2)):
        parts = [Order(0, 10, batch, accumulation, rank, world, random_flip=True) for rank in range(world)]
        micro = [(step * accumulation + m, part) for step in (0, 1) for m in range(accumulation) for part in parts]
        assert [choice for m, part in micro for choice in part.batch(m)] == whole.batch(0) + whole.batch(1)
        rows = [(row.draw, at) for m, part in micro for row in part.rows(m) for at in range(row.start, row.stop)]
        assert rows == [(step, at) for step in (0, 1) for at in range(8)]
    mirrored = [choice.mirrored for choice in first(Order(0, 10, 100, random_flip=True), 1)[0]]
    assert 20 < sum(mirrored) < 80
    assert all(choice == Choice(choice.index) for batch in first(Order(0, 10, 4), 5) for choice in batch)


def test_clips_crops_and_images_beside_them_are_drawn_only_on_request():
    drawn = first(Order(0, 10, 100, random_clip=True, random_crop=True, images=3), 1)[0]
    starts = [choice.start for choice in drawn]
    assert min(starts) < 0.1 and max(starts) > 0.9 and len({choice.crop for choice in drawn}) == 100
    still = [image for choice in first(Order(0, 10, 100, images=3), 1)[0] for image in choice.images]
    assert len(still) == 300 and {image.index for image in still} == set(range(10))
    assert len({image.start for image in still}) == 300 and all(image.crop == (0.5, 0.5) for image in still)
