"""What the card of a trained model says of its training."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.data.samples import EMBEDDED
from skipdit_cli.training.run.loop import Outcome, Trainer
from skipdit_cli.training.training_settings import FREE_TO_CHANGE, TrainingSettings

ALWAYS = ("learning_rate", "lr_scheduler", "mixed_precision", "label_dropout", "seed")
IN_WORDS = ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "use_ema", "ema_decay")


def training_facts(trainer: Trainer, outcome: Outcome, samples, source: str) -> dict[str, str]:
    """Rows of a table. Of the data it names the folder, not where that lies.

    Args:
        source: The model that the run began with; empty for one from scratch.
    """
    settings, recorded = trainer.settings, trainer.recorded
    trained = "the skip branches alone, the trunk frozen" if recorded["only_branches"] else "everything"
    batch = settings.train_batch_size * settings.gradient_accumulation_steps * recorded["processes"]
    data = settings.data if settings.data in EMBEDDED else Path(settings.data).resolve().name
    facts = {
        "trained": f"{trained} ({outcome.trained_parameters:,} parameters)" + ", from scratch" * (not source),
        "data": f"{data}: {samples}",
        "steps": f"{outcome.step:,} of {batch:,} samples each",
        "weights": f"moving average, decay {settings.ema_decay:g}" if settings.use_ema else "of the last step",
    }
    if trainer.expert is not None:
        facts["expert"] = f"{trainer.expert} noise ({EXPERTS[trainer.expert]}), at its timesteps alone"
    if outcome.last:
        facts["loss of the last step"] = f"{outcome.last['loss']:.4f}"
    return {**facts, **_settings(settings)}


def _settings(settings: TrainingSettings) -> dict[str, str]:
    """The settings that matter most, and those that are not at their default."""
    said = {field.name: getattr(settings, field.name) for field in fields(settings)}
    held = {name for name in said if name not in (*FREE_TO_CHANGE, *IN_WORDS)}
    changed = {field.name for field in fields(settings) if said[field.name] != field.default}
    return {name.replace("_", " "): f"{said[name]}" for name in said if name in held & ({*ALWAYS} | changed)}
