"""The facts about a training run in the card of the trained model."""

from __future__ import annotations

from dataclasses import fields

from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.data_source import parse_data
from skipdit_cli.training.run.loop import Outcome, Trainer
from skipdit_cli.training.training_settings import TrainingSettings, free_to_change

ALWAYS_SHOWN = ("learning_rate", "lr_scheduler", "mixed_precision", "label_dropout", "seed")
SHOWN_IN_FACTS = ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "use_ema", "ema_decay")


def training_facts(trainer: Trainer, outcome: Outcome, source: str) -> dict[str, str]:
    """Return the rows of the card's table about training.

    They name the folder of the data without the path to it.

    Args:
        source: The model that the run began with; empty from scratch.
    """
    settings, recorded, session = trainer.settings, trainer.recorded, trainer.session
    trained = "the skip branches alone, the trunk frozen" if recorded["only_branches"] else "everything"
    batch = settings.batch(recorded["processes"])
    data = parse_data(settings.data).title
    facts = {
        "trained": f"{trained} ({outcome.trained_parameters:,} parameters)" + ", from scratch" * (not source),
        "data": f"{data}: {session.samples}",
        "steps": f"{outcome.step:,} of {batch:,} samples each",
        "weights": f"moving average, decay {settings.ema_decay:g}" if settings.use_ema else "of the last step",
    }
    if session.expert is not None:
        facts["expert"] = f"{session.expert} noise ({EXPERTS[session.expert]}), at its timesteps alone"
    if outcome.last:
        facts["loss of the last step"] = f"{outcome.last['loss']:.4f}"
    return {**facts, **_settings(settings)}


def _settings(settings: TrainingSettings) -> dict[str, str]:
    """Return the most important settings, and those that are not at their default."""
    rows = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        shown = field.name in ALWAYS_SHOWN or value != field.default
        if shown and field.name not in {*free_to_change(), *SHOWN_IN_FACTS}:
            rows[field.name.replace("_", " ")] = f"{value}"
    return rows
