"""The time of one training step with and without skip branches, measured in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from skipdit_cli.families.labels import null_label
from skipdit_cli.presets import load_preset
from skipdit_cli.training.data.order import generator
from skipdit_cli.training.data.pixel_dataset import Batch
from skipdit_cli.training.objective.objective import Objective
from skipdit_cli.training.run.base_model import new_pipeline
from skipdit_cli.training.run.prepare import set_train_mode

WARM_UP = 2
DRAW = 9
"""The purpose of the random batch, see ``training/data/order.py``."""


def step_seconds(preset: str, batch_size: int, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Return the median seconds of a training step of ``vanilla`` and of ``skip``, the model with skip branches.

    Steps of the two models alternate, so that what else the machine does slows both. On a CPU the seconds are those of
    the process, on other devices those of the clock.

    Args:
        preset: The preset of the model.
        batch_size: Samples of a step.
        rounds: Steps of each model that are timed.
        device: The device.
    """
    steps = {name: _stepper(preset, name == "skip", batch_size, device) for name in ("vanilla", "skip")}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARM_UP + rounds):
        for name, step in steps.items():
            start = _now(device)
            step(number)
            if number >= WARM_UP:
                seconds[name].append(_now(device) - start)
    return {name: median(values) for name, values in seconds.items()}


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def _stepper(preset: str, branches: bool, batch_size: int, device: str) -> Callable[[int], None]:
    """Return a function that takes one optimizer step, on a batch of noise."""
    pipe = new_pipeline(load_preset(preset), branches).to(device)
    model, config = pipe.transformer, pipe.transformer.config
    set_train_mode(model, False)
    objective = Objective(pipe, torch.device(device), seed=0, label_dropout=0.0 if null_label(config) is None else 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    frames = [config.video_length] if "video_length" in config else []
    shape = (batch_size, config.in_channels, *frames, config.sample_size, config.sample_size)
    samples = torch.randn(shape, generator=generator(0, DRAW)).clamp(-1, 1)
    classes = config.num_embeds_ada_norm
    batch = Batch(samples, [None if classes is None else i % classes for i in range(batch_size)], None, [])

    def step(number: int) -> None:
        objective(model, batch, number).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
