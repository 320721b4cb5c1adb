"""Quality over training: the held-out loss and the scores of samples at the checkpoints of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from skipdit_cli.bench.digit_accuracy import SIDE, brightest_square
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.media import to_uint8
from skipdit_cli.models import load_pipeline
from skipdit_cli.sampling.generate import generate_batches
from skipdit_cli.studies.study_run import StudyRun
from skipdit_cli.training.data.demand import Demand, demand_of
from skipdit_cli.training.data.order import NOISE, Choice, Draws, generator
from skipdit_cli.training.data.pixel_dataset import Batch, Pixels, collate
from skipdit_cli.training.data.samples import SampleSet, read_samples
from skipdit_cli.training.objective.objective import Objective
from skipdit_cli.training.run.state import AVERAGE, WEIGHTS, Checkpoints, check_whole
from skipdit_cli.training.run.training_data import image_shape

logger = logging.getLogger(__name__)
READ_AT_ONCE = 250
METRICS = ("fid", "kid")
"""The scores of samples, from ``evaluation.score``."""
GOLDEN_RATIO = (5**0.5 - 1) / 2
"""The step of the sequence that spreads timesteps evenly over any number of samples."""


@dataclass(frozen=True)
class Measurement:
    """How the quality of a model is measured.

    Args:
        held_out: The data of the held-out loss, as ``--data``; it must not be trained on.
        held_out_samples: The number of samples of it to use, evenly spaced; 0 uses all.
        draws: Pairs of a timestep and noise per held-out sample.
        samples: Generated samples to score; 0 scores none.
        num_inference_steps: Denoising steps of each sample, by the pipeline's own scheduler and without guidance.
        reference: The data that samples are scored against, as ``--data``.
        reference_samples: The number of samples of it to use, evenly spaced; 0 uses all.
        features: The network of the scores: ``digits``, or the path of a TorchScript file.
        batch_size: Samples in one forward.
    """

    held_out: str = "digits:test"
    held_out_samples: int = 0
    draws: int = 4
    samples: int = 500
    num_inference_steps: int = 20
    reference: str = "digits"
    reference_samples: int = 0
    features: str = "digits"
    batch_size: int = 250


def measurement_of(settings: Any, **changes: Any) -> dict[str, Any]:
    """Return the fields of a ``Measurement``, as the settings of a study have them.

    Args:
        settings: A settings object; fields that it does not have keep their defaults.
        changes: Fields with other values.
    """
    names = [each.name for each in fields(Measurement) if hasattr(settings, each.name)]
    return {**{name: getattr(settings, name) for name in names}, **changes}


def curves_of(
    run: StudyRun, folders: Mapping[str, Path], measurement: dict[str, Any], every: int
) -> dict[str, list[dict[str, float]]]:
    """Return the quality of trainings at each of their checkpoints, in the order of their steps.

    Args:
        run: The study, which keeps each measurement.
        folders: The folder of each training by its name; all are equally long.
        measurement: The fields of ``Measurement``.
        every: The steps between two checkpoints. One between them, which an interruption left, is passed over.

    Raises:
        SkipditError: One training lacks a checkpoint that another has.
    """
    steps = {name: planned_steps(folder, every) for name, folder in folders.items()}
    most = max(steps.values(), key=len)
    for name, own in steps.items():
        if own != most:
            lost = next(step for step in most if step not in own)
            raise SkipditError(f"{folders[name]} has no checkpoint of step {lost}; run the study anew.")
    calls = {
        (name, step): {"run": str(folder), "step": step, "measurement": measurement, "device": run.device}
        for name, folder in folders.items()
        for step in steps[name]
    }
    qualities = run.measured_all(quality, {f"{name}-step-{step}": call for (name, step), call in calls.items()})
    return {name: [qualities[f"{name}-step-{step}"] for owner, step in calls if owner == name] for name in folders}


def planned_steps(run: Path, every: int) -> list[int]:
    """Return the steps of the checkpoints in the folder of a training run that lie ``every`` steps apart, in ascending
    order, and of the last one."""
    steps = Checkpoints(run).steps()
    return [step for step in steps if step % every == 0 or step == steps[-1]]


@torch.no_grad()
def averaged_pipeline(run: Path | str, step: int, device: str = "cpu"):
    """Return the pipeline of a finished training run with the weights of one of its checkpoints.

    They are the averaged weights, or the trained ones of a run without an average.

    Raises:
        UsageError: There is no such checkpoint, it is damaged, or it is of another model.
    """
    folder = Checkpoints(Path(run)).folder(step)
    check_whole(folder)
    weights = load_file(folder / (AVERAGE if (folder / AVERAGE).is_file() else WEIGHTS))
    pipe = load_pipeline(run)
    parameters = dict(transformer_of(pipe).named_parameters())
    for name, tensor in weights.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise UsageError(f"Checkpoint {folder} holds '{name}', which the model in {run} has not; train it anew.")
        parameters[name].copy_(tensor)
    return pipe.to(device)


def quality(run: str, step: int, measurement: dict[str, Any], device: str = "cpu") -> dict[str, float]:
    """Return the quality of a training run at one of its checkpoints.

    Args:
        run: The folder of the run.
        step: The step of the checkpoint.
        measurement: The fields of ``Measurement``.
        device: The device of the model.

    Returns:
        The ``step``, the held-out ``loss``, and the scores of generated samples (``fid``, ``kid``, ...).
    """
    settings, pipe = Measurement(**measurement), averaged_pipeline(run, step, device)
    return {"step": step, "loss": held_out_loss(pipe, settings), **sample_scores(pipe, settings)}


def scores(run: str, step: int, measurement: dict[str, Any], device: str = "cpu") -> dict[str, float]:
    """Return the scores of samples of a training run at one of its checkpoints, without its held-out loss.

    Args:
        run, step, measurement, device: As for ``quality``.
    """
    return sample_scores(averaged_pipeline(run, step, device), Measurement(**measurement))


def scores_of_held_out(run: str, measurement: dict[str, Any], device: str = "cpu") -> dict[str, float]:
    """Return the scores of the held-out samples themselves: what a perfect model would have, of as many samples.

    Args:
        run: The folder of a training run, whose model says what the samples are.
        measurement: The fields of ``Measurement``.
        device: The device of the feature network.
    """
    settings, pipe = Measurement(**measurement), load_pipeline(run).to(device)
    return _scores(_real_images(pipe, settings.held_out, settings.held_out_samples), pipe, settings)


@torch.no_grad()
def held_out_loss(pipe, settings: Measurement) -> float:
    """Return the mean squared error of a model's prediction on samples that it was not trained on.

    Every model gets the same noise and the same timesteps, which are spread evenly over the noise schedule.
    """
    device = transformer_of(pipe).device
    demand, samples = _samples(pipe, settings.held_out)
    used = min(settings.held_out_samples or len(samples), len(samples))
    size, channels = image_shape(pipe)
    pixels = Pixels(samples, size, channels, demand.video_length)
    objective = Objective(pipe, device, seed=0, label_dropout=0.0)
    total, count = 0.0, 0
    for first, batch in _batches(pixels, settings.batch_size, used):
        for draw in range(settings.draws):
            source = generator(0, NOISE, first, draw, 1)
            x0 = objective.encode(batch.pixels.to(device), partial(_normal, source))
            numbers = torch.arange(first, first + len(x0), dtype=torch.float64) + draw * used
            t = (numbers * GOLDEN_RATIO % 1 * objective.loss.num_timesteps).long()
            noise = torch.randn(x0.shape, generator=generator(0, NOISE, first, draw))
            dropped = torch.zeros(len(x0), dtype=torch.bool)
            losses = objective.losses(pipe.transformer, x0, Draws(noise, t, dropped), batch.conditions)
            total, count = total + float(losses.mse) * len(x0), count + len(x0)
    return total / count


def _normal(source: torch.Generator, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=source, dtype=dtype)


def sample_scores(pipe, settings: Measurement) -> dict[str, float]:
    """Return the scores of generated samples, such as ``fid``; none where the settings ask for no samples.

    A class-conditional model generates as many samples of each class. Frames of videos are scored as images.
    """
    if not settings.samples:
        return {}
    classes = _samples(pipe, settings.reference)[0].num_classes
    labels = [None if classes is None else i * classes // settings.samples for i in range(settings.samples)]
    generated = generate_batches(
        pipe,
        labels,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=1.0,
        batch_size=settings.batch_size,
        seed=0,
        on_halved=lambda halving: logger.warning(halving.sentence),
    )
    images = (np.asarray(batch.images) for _, batch in generated)
    return _scores(images, pipe, settings, None if classes is None else labels)


def _scores(
    images: Iterable[np.ndarray], pipe, settings: Measurement, labels: list[Any] | None = None
) -> dict[str, float]:
    """Return the scores of batches of images or videos against the reference, and with class labels their
    ``agreement`` with the classes that the network finds, where it has these classes. Memory holds one batch."""
    from skipdit_cli.evaluation import features, load_features, score
    from skipdit_cli.evaluation.scores import agreement_of

    crops = settings.features == "digits"
    network = load_features(settings.features, device=transformer_of(pipe).device)
    real = _real_images(pipe, settings.reference, settings.reference_samples)
    samples, reference = (features(network, (_frames(each, crops) for each in batches)) for batches in (images, real))
    values = score(samples, reference, network, METRICS) | agreement_of(samples, labels)[0]
    return {name: values[name] for name in (*METRICS, "agreement") if values[name] is not None}


def _real_images(pipe, data: str, count: int) -> Iterator[np.ndarray]:
    """Return batches of samples of a data source, one at a time, as uint8 (N, [F,] H, W, 3).

    Args:
        count: The number of samples, evenly spaced; 0 for all.
    """
    demand, samples = _samples(pipe, data)
    size, channels = image_shape(pipe)
    pixels = Pixels(samples, size, channels, demand.video_length)
    batches = _batches(pixels, READ_AT_ONCE, min(count or len(pixels), len(pixels)))
    return (to_uint8(batch.pixels) for _, batch in batches)


def _samples(pipe, data: str) -> tuple[Demand, SampleSet]:
    """Return what a pipeline's model requires of its data, and the samples of a data source."""
    transformer = transformer_of(pipe)
    return _read(data, json.dumps({**transformer.config, "_class_name": type(transformer).__name__}, default=str))


@lru_cache(maxsize=4)
def _read(data: str, config: str) -> tuple[Demand, SampleSet]:
    """Return the same for the config of a model, as JSON. They are kept: each file of a data set is opened to list it,
    and all checkpoints are measured with the same ones."""
    demand = demand_of(json.loads(config), data)
    return demand, read_samples(data, demand, demand.video_length or 1)


def _batches(pixels: Pixels, batch_size: int, count: int) -> Iterator[tuple[int, Batch]]:
    """Yield batches of ``count`` samples, evenly spaced, each with the number of those before it."""
    for first in range(0, count, batch_size):
        numbers = range(first, min(first + batch_size, count))
        yield first, collate([pixels[Choice(number * len(pixels) // count)] for number in numbers])


def _frames(images: np.ndarray, crops: bool) -> np.ndarray:
    """Return images, or the frames of videos, (N, H, W, 3); ``crops`` cuts the digit out of a larger frame."""
    frames = images.reshape(-1, *images.shape[-3:])
    if not crops or frames.shape[1] == SIDE:
        return frames
    return np.repeat(np.stack([brightest_square(frame[..., 0]) for frame in frames])[..., None], 3, axis=-1)
