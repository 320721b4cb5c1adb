"""The messages, the progress and the report of a training run, for the two commands that train."""

from __future__ import annotations

from contextlib import AbstractContextManager

import typer

from skipdit_cli import console
from skipdit_cli.commands.upload import upload
from skipdit_cli.errors import INTERRUPTED
from skipdit_cli.training.observer import Observer
from skipdit_cli.training.training_settings import TrainingSettings


class ConsoleObserver(Observer):
    """Writes the messages and the progress of a training run to the console."""

    def say(self, message: str) -> None:
        """Print a line of information."""
        console.say(message)

    def warn(self, message: str, topic: str | None = None) -> None:
        """Print a warning, but only the first one of a topic."""
        console.warn(message) if topic is None else console.warn_once(topic, message)

    def progress(self, description: str, total: int) -> AbstractContextManager[console.Advance]:
        """Show a progress bar, or lines where there is no terminal."""
        return console.progress(description, total)


def report(command: str, session, outcome) -> None:
    """Report the end of a training run and upload its pipeline if the settings say so.

    Args:
        command: The name of the command.
        session: The ``Session`` of the run.
        outcome: The ``Outcome`` of the run.
    Raises:
        typer.Exit: The run was interrupted (code 130).
    """
    settings, samples = session.settings, session.samples
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
        raise typer.Exit(INTERRUPTED)


def _say_trained(settings: TrainingSettings, outcome) -> None:
    steps = console.count(outcome.step, "step")
    loss = f", loss {outcome.last['loss']:.4f}" if outcome.last else ""
    console.say(f"Steps took {outcome.seconds:.1f} s, {outcome.data_seconds:.1f} s of it waiting for data.")
    console.say(
        f"Trained {outcome.trained_parameters:,} parameters for {steps}{loss}. The pipeline is in {settings.output}."
    )
