"""A run from its first step to the finished pipeline in the output folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from skipdit_cli import files
from skipdit_cli.cards.card import CARD, Origin, is_own_card, write_card
from skipdit_cli.errors import reading
from skipdit_cli.models import save_branches, save_pipeline
from skipdit_cli.models.folder import drop_paths, drop_variant, name_as_now
from skipdit_cli.skip import skip_folder
from skipdit_cli.training.data.class_folders import record_names
from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.objective.text_conditioning import text_conditioning_of
from skipdit_cli.training.run.card_facts import training_facts
from skipdit_cli.training.run.loop import Diverged, Outcome, Trainer
from skipdit_cli.training.run.run_folder import INDEX, RUN_FILES, unlisted_pipeline_files
from skipdit_cli.training.run.session import Session
from skipdit_cli.training.run.state import METRICS


def train(session: Session, pipe, origin: Origin, model: Path | None = None, only_branches: bool = False) -> Outcome:
    """Train, and unless the run is interrupted leave the finished pipeline in the output folder.

    Args:
        pipe: The pipeline to train, in float32.
        origin: What the card of the pipeline takes over.
        model: The pipeline folder that the run begins with, whose untrained parts are copied; None from scratch.
        only_branches: Whether to train the skip branches alone.
    """
    settings, accelerator = session.settings, session.accelerator
    trainer = Trainer(session, pipe, only_branches)
    _resume(trainer)
    family = text_conditioning_of(pipe)
    if family is not None and family.note:
        session.observer.say(family.note)
    accelerator.wait_for_everyone()  # all have read their checkpoint before the main process moves later ones
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return trainer.run()
    unlisted = [] if files.read_marker(settings.output) else unlisted_pipeline_files(settings.output, model)
    with files.work_in(settings.output, files.RUN, settings.resume_from_checkpoint is not None, Diverged) as work:
        files.note(settings.output, METRICS, *unlisted)
        _set_aside_later_checkpoints(trainer)
        accelerator.wait_for_everyone()
        outcome = trainer.run()
        work.finished = not outcome.interrupted
        if not outcome.interrupted:
            _install_pipeline(trainer, outcome, origin, model)
    return outcome


def _resume(trainer: Trainer) -> None:
    checkpoint = trainer.session.checkpoint
    if checkpoint is not None:
        with reading(f"Checkpoint {checkpoint}", "resume from an earlier one"):
            trainer.resume(checkpoint)
        trainer.session.observer.say(f"resumed from {checkpoint} at step {trainer.step}")


def _set_aside_later_checkpoints(trainer: Trainer) -> None:
    """Move the checkpoints of later steps, which the run makes anew, out of the way, and delete superfluous ones."""
    folder = trainer.checkpoints.set_aside(trainer.step)
    if folder is not None:
        trainer.session.observer.warn(
            f"the run goes on from step {trainer.step}, so its later checkpoints were moved to {folder}."
        )
    trainer.checkpoints.prune(trainer.step)


def _install_pipeline(trainer: Trainer, outcome: Outcome, origin: Origin, model: Path | None) -> None:
    """Write the finished pipeline and its card into the output folder."""
    session, output = trainer.session, trainer.settings.output
    with files.install(output, last=INDEX) as part:
        if model is None:
            save_pipeline(trainer.pipe, part)
        else:
            name = EXPERTS[session.expert or "high"]
            copy_with_trained(trainer.transformer, model, part, name, trainer.recorded["only_branches"])
        record_names(part / INDEX, session.samples.classes)
        write_card(part, origin, {}, training_facts(trainer, outcome, origin.source))
        if (output / CARD).exists() and not is_own_card(output / CARD):
            (part / CARD).unlink()
            session.observer.warn(f"{output / CARD} is not from skipdit, so it was kept and no card was written.")
    if origin.note:
        session.observer.say(origin.note)


def copy_with_trained(transformer, model: Path, folder: Path, name: str, only_branches: bool) -> None:
    """Copy a pipeline folder with the trained transformer, or its trained branches, in the place of the former.

    Args:
        name: The name of the transformer in the pipeline.
    """
    ignored = shutil.ignore_patterns(*RUN_FILES, skip_folder(name), *([] if only_branches else [name]), CARD)
    shutil.copytree(model, folder, ignore=ignored, dirs_exist_ok=True)
    for path in filter(Path.is_dir, folder.iterdir()):
        drop_variant(path)
    if only_branches:
        save_branches(transformer.skip_branches, folder, name, transformer.state_dict())
    else:
        transformer.save_pretrained(folder / name)
        drop_paths(folder)
    name_as_now(folder)
