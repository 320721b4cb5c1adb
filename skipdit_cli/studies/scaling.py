"""The study of scaling: compute of a forward, of training and of sampling against quality, for every size by patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.studies.compute.curves import checkpointing_steps
from skipdit_cli.studies.compute.model_grid import Model
from skipdit_cli.studies.compute.scaling_findings import find
from skipdit_cli.studies.launch import flags
from skipdit_cli.studies.study import Findings, Study, at_least
from skipdit_cli.studies.study_run import StudyRun
from skipdit_cli.training.sweep import BACKWARD, points_of


@dataclass(frozen=True)
class ScalingSettings:
    """The settings of study ``scaling``.

    Args:
        grid: The preset of ``train --sweep`` with the models.
        train_steps: Optimizer steps of each model.
        checkpoints: Checkpoints of each training, evenly spaced, at which the quality is measured.
        data, vae: ``--data`` and ``--vae`` of the trainings; None for what the grid says.
        held_out, held_out_samples, draws: The held-out loss, see ``training_curves.Measurement``.
        samples: Generated samples to score; 0 for none.
        num_inference_steps: Denoising steps of those samples.
        sampling_steps: Denoising steps of the comparison of sampling compute.
        reference, reference_samples, features, batch_size: As for ``training_curves.Measurement``.
    """

    grid: str
    train_steps: int
    checkpoints: int
    samples: int = at_least(0)
    num_inference_steps: int
    sampling_steps: tuple[int, ...]
    held_out: str
    reference: str
    features: str = "digits"
    held_out_samples: int = at_least(0, 0)
    reference_samples: int = at_least(0, 0)
    draws: int = 4
    batch_size: int = 250
    data: str | None = None
    vae: str | None = None


def commands(settings: ScalingSettings, seeds: tuple[int, ...]) -> dict[str, str]:
    """Return one training for each model and seed.

    Raises:
        UsageError: Samples are to be scored, but no number of denoising steps is named.
    """
    if settings.samples and not settings.sampling_steps:
        raise UsageError("Got no number in 'experiment: sampling_steps'; give one or more, or 'samples: 0'.")
    training = flags(
        max_train_steps=settings.train_steps,
        checkpointing_steps=checkpointing_steps(settings.train_steps, settings.checkpoints),
        data=settings.data,
        vae=settings.vae,
    )
    return {
        f"{point.name}-seed-{seed}": f"train {flags(sweep=settings.grid, points=point.name)} {training} --seed {seed}"
        for seed in seeds
        for point in points_of(load_preset(settings.grid))
    }


def needs(settings: ScalingSettings, seeds: tuple[int, ...]) -> list[str]:
    """Return what is missing on this machine, and how to count the compute of the trainings."""
    from skipdit_cli.studies.compute.required_files import missing_files

    missing = missing_files(_data(settings), settings.features)
    grid = f"'skipdit train --sweep {settings.grid} --dry-run' counts the compute of a seed for the grid's own steps."
    return [grid, *(f"It needs {what}, which is not here." for what in missing)]


def check(settings: ScalingSettings) -> None:
    """Refuse a run whose files or packages are missing."""
    from skipdit_cli.studies.compute.required_files import check_measurable

    check_measurable(_data(settings), settings.features, (settings.samples,), settings.reference_samples)


def _data(settings: ScalingSettings) -> list[str]:
    """Return all data sources of the settings, as ``--data``."""
    return [text for text in (settings.data, settings.held_out, settings.reference) if text is not None]


def measure(run: StudyRun) -> Findings:
    """Measure all models over training and over sampling steps, and compare them."""
    models, floor = _models(run)
    return find(sorted(models, key=lambda model: model.macs), floor, run.settings.num_inference_steps)


def _models(run: StudyRun) -> tuple[list[Model], dict[str, float]]:
    """Return the models with all that is measured of them, and the scores of the held-out samples themselves."""
    from skipdit_cli.studies import training_curves

    settings: ScalingSettings = run.settings
    measurement = training_curves.measurement_of(settings)
    shared = {"measurement": measurement, "device": run.device}
    names = [point.name for point in points_of(load_preset(settings.grid))]
    folders = {(name, seed): run.folder(f"{name}-seed-{seed}") / name for name in names for seed in run.seeds}
    curves = training_curves.curves_of(
        run,
        {f"{name}-seed-{seed}": folder for (name, seed), folder in folders.items()},
        measurement,
        checkpointing_steps(settings.train_steps, settings.checkpoints),
    )
    scores: dict[str, Any] = {}
    if settings.samples:
        scores = run.measured_all(
            training_curves.scores,
            {
                f"{name}-seed-{seed}-sampling-{count}": {
                    "run": str(folder),
                    "step": curves[f"{name}-seed-{seed}"][-1]["step"],
                    **shared,
                    "measurement": {**measurement, "num_inference_steps": count},
                }
                for (name, seed), folder in folders.items()
                for count in settings.sampling_steps
            },
        )
    models = []
    for name in names:
        (facts,) = run.result(f"{name}-seed-{run.seeds[0]}")["points"]
        of_seeds = [curves[f"{name}-seed-{seed}"] for seed in run.seeds]
        sampling = [
            {count: scores[f"{name}-seed-{seed}-sampling-{count}"]["fid"] for count in settings.sampling_steps}
            for seed in run.seeds
            if scores
        ]
        batch = facts["training_macs"] // (BACKWARD * facts["macs"] * settings.train_steps)
        models.append(Model(name, facts["macs"], facts["parameters"], batch, of_seeds, sampling))
    floor = {}
    if settings.samples:
        any_run = str(folders[names[0], run.seeds[0]])
        floor = run.measured("held-out", training_curves.scores_of_held_out, run=any_run, **shared)
    return models, floor


STUDY = Study(
    name="scaling",
    summary="does more compute per forward give better samples?",
    claim=(
        "the more GFLOPs a forward takes, by more blocks, more width or smaller patches, the lower is the FID; larger "
        "models use training compute better, and more sampling steps do not make up for a smaller model (DiT, arXiv "
        "2212.09748, figures 8 to 10)."
    ),
    settings=ScalingSettings,
    commands=commands,
    measure=measure,
    needs=needs,
    check=check,
)
