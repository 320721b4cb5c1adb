"""The flags of the two training commands, made from ``TrainingSettings``, and how both report."""

from __future__ import annotations

import typer

from skipdit_cli import console
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.upload import upload
from skipdit_cli.training.training_settings import TrainingSettings

with_training_settings = with_settings(TrainingSettings)


def report(command: str, settings: TrainingSettings, samples, outcome) -> None:
    """The end of a training command: what was trained and where it is, or how to go on (exit code 130). Pushes it."""
    if not outcome.main:
        return
    address = None
    if not outcome.interrupted:
        _say_trained(settings, outcome)
        address = upload(settings.output, settings.push_to_hub, settings.private)
    console.emit(
        {
            "command": command,
            "output": str(settings.output),
            "interrupted": outcome.interrupted,
            "steps": outcome.step,
            "samples": len(samples),
            "samples_skipped": samples.skipped,
            "trained_parameters": outcome.trained_parameters,
            "checkpoint": outcome.checkpoint,
            "seconds": outcome.seconds,
            "data_seconds": outcome.data_seconds,
            **{key: outcome.last.get(key) for key in ("loss", "mse", "vb", "lr", "grad_norm")},
            "pushed_to": address,
        }
    )
    if outcome.interrupted:
        console.warn(
            f"stopped at step {outcome.step} of {settings.max_train_steps}; to go on, give the same command with "
            "--resume-from-checkpoint latest."
        )
        raise typer.Exit(130)


def _say_trained(settings: TrainingSettings, outcome) -> None:
    count = f"{outcome.trained_parameters:,} parameters"
    loss = f", loss {outcome.last['loss']:.4f}" if outcome.last else ""
    console.say(f"Steps took {outcome.seconds:.1f} s, {outcome.data_seconds:.1f} s of it waiting for data.")
    console.say(f"Trained {count} for {outcome.step:,} steps{loss}. The pipeline is in {settings.output}.")
