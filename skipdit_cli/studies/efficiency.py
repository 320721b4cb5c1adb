"""The study of efficiency: training from scratch with and without skip branches, at equal steps, clock and FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipdit_cli.console import count
from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.studies.compute.curves import checkpointing_steps
from skipdit_cli.studies.compute.training_pair import SKIP, VARIANTS, Pair
from skipdit_cli.studies.launch import flags
from skipdit_cli.studies.study import Findings, Study, at_least
from skipdit_cli.studies.study_run import StudyRun
from skipdit_cli.training.sweep import BACKWARD


@dataclass(frozen=True)
class EfficiencySettings:
    """The settings of study ``efficiency``; each tuple has one value for each preset.

    Args:
        presets: The presets of the models, whose ``train`` flags are used.
        train_steps: Optimizer steps.
        batch_sizes: Samples of a step of one process.
        data: The ``--data`` of the trainings.
        held_out: The data of the held-out loss, as ``--data``.
        references: The data that samples are scored against, as ``--data``.
        samples: Generated samples to score; 0 for none.
        checkpoints: Checkpoints at which the quality is measured, evenly spaced.
        num_inference_steps: Denoising steps of the samples.
        lr_scheduler, lr_warmup_steps, ema_decay: Flags of the trainings. The schedule must not depend on the number of
            steps, for each checkpoint stands for a training of its length.
        learning_rate: ``--learning-rate`` of the trainings; None for those of the presets.
        timing_rounds: Training steps that are timed, of each model.
        held_out_samples, reference_samples, draws, features, batch_size: As for ``training_curves.Measurement``.
        vae: ``--vae`` of the trainings; None for models of pixels.
    """

    presets: tuple[str, ...]
    train_steps: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    data: tuple[str, ...]
    held_out: tuple[str, ...]
    references: tuple[str, ...]
    samples: tuple[int, ...] = field(metadata=at_least(0))
    checkpoints: int
    num_inference_steps: int
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = field(default=20, metadata=at_least(0))
    ema_decay: float = 0.99
    learning_rate: float | None = None
    timing_rounds: int = 10
    held_out_samples: int = field(default=0, metadata=at_least(0))
    reference_samples: int = field(default=0, metadata=at_least(0))
    draws: int = 4
    features: str = "digits"
    batch_size: int = 250
    vae: str | None = None


@dataclass(frozen=True)
class Task:
    """One model and its data.

    Args:
        name: The name of the preset, without the folder and the suffix of a file.
        preset: The preset of the model.
        measured: The fields of ``training_curves.Measurement`` that are its own.
    """

    name: str
    preset: str
    train_steps: int
    batch_size: int
    data: str
    measured: dict[str, Any]


def tasks(settings: EfficiencySettings) -> Iterator[Task]:
    """Yield the models and their data.

    Raises:
        UsageError: A list of the settings has another length than ``presets``, or two presets have one name.
    """
    if not settings.presets:
        raise UsageError("Got no preset in 'experiment: presets' but expected one or more.")
    for name in ("train_steps", "batch_sizes", "data", "held_out", "references", "samples"):
        if len(getattr(settings, name)) != len(settings.presets):
            raise UsageError(
                f"Got {count(len(getattr(settings, name)), 'value')} of 'experiment: {name}' but expected "
                f"{len(settings.presets)}, one for each preset."
            )
    names = [Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset for preset in settings.presets]
    for at, (name, preset) in enumerate(zip(names, settings.presets)):
        if name in names[:at]:
            raise UsageError(f"Got two presets of the name {name} in 'experiment: presets'; rename one of the files.")
        own = {
            "held_out": settings.held_out[at],
            "reference": settings.references[at],
            "samples": settings.samples[at],
        }
        yield Task(name, preset, settings.train_steps[at], settings.batch_sizes[at], settings.data[at], own)


def commands(settings: EfficiencySettings, seeds: tuple[int, ...]) -> dict[str, str]:
    """Return two trainings, with and without skip branches, for each model and seed."""
    return {
        f"{task.name}-{variant}-seed-{seed}": "train "
        + flags(
            preset=task.preset,
            skip_branches=variant == SKIP,
            data=task.data,
            train_batch_size=task.batch_size,
            gradient_accumulation_steps=1,
            max_train_steps=task.train_steps,
            checkpointing_steps=checkpointing_steps(task.train_steps, settings.checkpoints),
            lr_scheduler=settings.lr_scheduler,
            lr_warmup_steps=settings.lr_warmup_steps,
            ema_decay=settings.ema_decay,
            learning_rate=settings.learning_rate,
            checkpoints_total_limit=settings.checkpoints + 1,
            vae=settings.vae,
            seed=seed,
        )
        for task in tasks(settings)
        for seed in seeds
        for variant in VARIANTS
    }


def needs(settings: EfficiencySettings, seeds: tuple[int, ...]) -> list[str]:
    """Return what is missing on this machine."""
    from skipdit_cli.studies.compute.required_files import missing_files

    return [f"It needs {what}, which is not here." for what in missing_files(_data(settings), settings.features)]


def check(settings: EfficiencySettings) -> None:
    """Refuse a run whose files or packages are missing."""
    from skipdit_cli.studies.compute.required_files import check_measurable

    check_measurable(_data(settings), settings.features, settings.samples, settings.reference_samples)


def _data(settings: EfficiencySettings) -> tuple[str, ...]:
    """Return all data sources, as ``--data``."""
    return (*settings.data, *settings.held_out, *settings.references)


def measure(run: StudyRun) -> Findings:
    """Measure both models of each task over training, and how much training each needs for the same quality."""
    from skipdit_cli.studies.compute.efficiency_findings import find

    return find([_pair(run, task) for task in tasks(run.settings)])


def _pair(run: StudyRun, task: Task) -> Pair:
    """Return the curves of both models of a task, and what a training step of each costs."""
    from skipdit_cli.studies import training_curves
    from skipdit_cli.studies.compute.step_time import step_seconds

    names = {variant: [f"{task.name}-{variant}-seed-{seed}" for seed in run.seeds] for variant in VARIANTS}
    folders = {name: run.folder(name) for each in names.values() for name in each}
    measurement = training_curves.measurement_of(run.settings, **task.measured)
    every = checkpointing_steps(task.train_steps, run.settings.checkpoints)
    by_name = training_curves.curves_of(run, folders, measurement, every)
    curves = {variant: [by_name[name] for name in each] for variant, each in names.items()}
    seconds = run.measured(
        f"{task.name}-step-seconds",
        step_seconds,
        preset=task.preset,
        batch_size=task.batch_size,
        rounds=run.settings.timing_rounds,
        device=run.device,
    )
    batch = task.batch_size * run.num_processes
    step_macs = {name: float(BACKWARD * batch * _macs(task.preset, name == SKIP)) for name in VARIANTS}
    return Pair(task.name, {"steps": dict.fromkeys(VARIANTS, 1.0), "seconds": seconds, "macs": step_macs}, curves)


def _macs(preset: str, branches: bool) -> int:
    """Return the multiply-adds of a forward of a preset's model."""
    from skipdit_cli.training.sweep import cost_of
    from skipdit_cli.training.training_settings import TrainingSettings

    macs = cost_of(load_preset(preset), TrainingSettings(), branches).macs
    if macs is None:
        raise UsageError(f"Got preset {preset}, whose multiply-adds cannot be counted; give one of a DiT or Latte.")
    return macs


STUDY = Study(
    name="efficiency",
    summary="do skip branches from the start save training?",
    claim=(
        "Skip-DiT, with branches from the start, reaches the quality of DiT-XL/2 with 4.4 times less training: FID "
        "9.07 after 1.6 million steps, against 9.49 after 7.0 million (labels of Skip-DiT's stability figure)."
    ),
    settings=EfficiencySettings,
    commands=commands,
    measure=measure,
    needs=needs,
    check=check,
)
