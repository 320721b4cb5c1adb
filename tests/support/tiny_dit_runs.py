"""Forwards and sampling loops of ``tiny_dit`` models in plain PyTorch."""

import copy

import diffusers
import torch

from skipdit_cli import disable_skip_cache, enable_skip_cache


def inputs(batch=2, seed=0):
    """Return the arguments of one forward: seeded noise (batch, 1, 8, 8), timesteps and class labels (batch,)."""
    noise = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return {
        "hidden_states": noise,
        "timestep": torch.full((batch,), 500),
        "class_labels": torch.arange(batch) % 10,
    }


def run(model, **changes):
    """Return the output of one forward on ``inputs()``, with some of its arguments changed."""
    with torch.no_grad():
        return model(**{**inputs(), **changes}, return_dict=False)[0]


def train_a_little(branches, scale=0.1):
    """Give every branch seeded random weights, so that the output depends on it, and return the branches."""
    torch.manual_seed(1)
    for parameter in branches.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return branches


def traces(model):
    """Return what attaching could leave behind: names of attributes of blocks and model, and of weights."""
    of_blocks = [{key for key in block.__dict__} for block in model.transformer_blocks]
    return of_blocks, set(model.__dict__), list(model.state_dict())


def noise(model, x, t, labels):
    """Return the noise that the model predicts, without the learned variance: as large as ``x``."""
    return model(x, timestep=t.expand(len(x)), class_labels=labels).sample[:, :1]


def sample(model, scheduler, steps=10, batch=2, seed=0, call=None, set_timesteps=True):
    """Return the result of a plain sampling loop; ``call(model, x, t)`` replaces its one forward of each step."""
    x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    if set_timesteps:
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = call(model, x, t) if call else noise(model, x, t, torch.arange(batch))
        x = scheduler.step(output, t, x).prev_sample
    return x


def copy_without_cache(model):
    """Return a deep copy of the model whose cache is disabled."""
    copied = copy.deepcopy(model)
    disable_skip_cache(copied)
    return copied


def guided(order):
    """Return a ``call`` for ``sample``: one forward per branch of guidance, in the order ``order(step)``."""
    step = iter(range(1000))

    def call(model, x, t):
        outputs = {}
        for branch in order(next(step)):
            outputs[branch] = noise(model, x, t, torch.full((len(x),), branch))
        return outputs[0] + 0.5 * sum(outputs[0] - other for other in outputs.values())

    return call


def reference(model, order, policy):
    """Return the result of ``guided(order)`` where each branch of guidance has a model and a cache of its own."""
    copies = [copy_without_cache(model) for _ in range(3)]
    scheduler = diffusers.DDIMScheduler()
    for copied in copies:
        enable_skip_cache(copied, policy, scheduler)
    step = iter(range(1000))

    def call(_, x, t):
        outputs = {b: noise(copies[b], x, t, torch.full((len(x),), b)) for b in order(next(step))}
        return outputs[0] + 0.5 * sum(outputs[0] - other for other in outputs.values())

    return sample(model, scheduler, call=call)
