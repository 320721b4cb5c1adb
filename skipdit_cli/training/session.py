"""A run from its flags to its finished folder: what stands before the loop and after it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from accelerate import Accelerator

from skipdit_cli import console, files
from skipdit_cli.backbones import BACKBONES
from skipdit_cli.checkpoints import named_model, open_model, save_branches, save_pipeline
from skipdit_cli.checkpoints.card import CARD, Origin, find_origin, is_own_card, write_card
from skipdit_cli.checkpoints.folder import drop_paths, drop_variant, name_as_now
from skipdit_cli.checkpoints.index import check_index, transformer_config
from skipdit_cli.checkpoints.pipeline import find_folder
from skipdit_cli.checkpoints.weights import read_json
from skipdit_cli.errors import UsageError, reading
from skipdit_cli.skip import skip_folder
from skipdit_cli.training.class_folders import record_names
from skipdit_cli.training.demand import EXPERTS, Demand, demand_of
from skipdit_cli.training.facts import training_facts
from skipdit_cli.training.families import as_trained, family_of
from skipdit_cli.training.loop import Diverged, Outcome, Trainer
from skipdit_cli.training.prepare import make_accelerator
from skipdit_cli.training.samples import SampleSet, read_samples
from skipdit_cli.training.settings import TrainingSettings
from skipdit_cli.training.state import ASIDE, METRICS, SAMPLES, Checkpoints

INDEX = "model_index.json"
TEXT_PARTS = ("text_encoder*", "tokenizer*", "image_encoder", "feature_extractor", "safety_checker")
TRAINED_PARTS = ("transformer", "transformer_2", "skip", "skip_2")
PIPELINE_FILES = (INDEX, *TRAINED_PARTS, "scheduler", "vae", *TEXT_PARTS)
RUN_FILES = ("checkpoint-*", SAMPLES, "logs", METRICS, f"{ASIDE}-*", files.MARKER, "*.tmp-*")


@dataclass(frozen=True)
class Session:
    """A run whose flags, data and checkpoint are known to be good; no weights are loaded yet.

    Args:
        expert: Which of two transformers is trained; None where there is one.
    """

    settings: TrainingSettings
    samples: SampleSet
    num_frames: int | None
    checkpoint: Path | None
    accelerator: Accelerator
    expert: str | None = None


def model_folder(model: str | None, preset: str | None, **arguments) -> Path:
    """The folder of the model that ``--model``, or without it ``--preset``, names.

    Args:
        arguments: As for ``from_pretrained``: revision, local_files_only, ...
    Raises:
        UsageError: There is none, it is damaged, or quantised.
    """
    named = named_model(model, preset)
    folder = find_folder(named, **arguments)
    check_index(named, folder, weights=False, plain=True)
    return folder


def demand(folder: Path, expert: str | None = None) -> Demand:
    """What the model in a pipeline folder asks of its data.

    Args:
        expert: Which of two transformers is trained; None where there is one.
    Raises:
        UsageError: The config of its transformer is missing, or of a kind that is not trained here.
    """
    part, vae = folder / "transformer", folder / "vae" / "config.json"
    index, own = read_json(folder / INDEX), read_json(vae) if vae.is_file() else None
    return demand_of(transformer_config(part, index), part / "config.json", index, own, expert)


def open_to_train(folder: Path, asked: Demand, whole: bool):
    """The pipeline of a folder, float32; without the transformer that is not trained, unless it is to be ``whole``."""
    others = [] if asked.expert is None else [part for name, part in EXPERTS.items() if name != asked.expert]
    left = {} if whole else dict.fromkeys(others)
    return as_trained(open_model(str(folder), dtype=torch.float32, **left))


def way_out(folder: Path) -> str:
    """What to do about a model without branches."""
    backbone = BACKBONES.get(transformer_config(folder / "transformer", read_json(folder / INDEX))["_class_name"])
    if backbone is not None and backbone.native_skips:
        return "it has long skips of its own: give --train all"
    return f"run 'skipdit convert -m {folder} -o FOLDER'"


def begin(settings: TrainingSettings, demand: Demand) -> Session:
    """Check all that can be checked without weights, and read the data.

    Args:
        demand: What the model asks of it.

    Raises:
        UsageError: A setting, the output, the checkpoint or the data cannot be used.
    """
    settings.check()
    if not demand.has_null:
        settings = settings.without_dropout()
    checkpoint = Checkpoints(settings.output).find(settings.resume_from_checkpoint)
    if settings.resume_from_checkpoint is not None:
        check_run(settings.output)
    accelerator = make_accelerator(settings)
    num_frames = settings.clip_frames(demand)
    span = ((num_frames or 1) - 1) * settings.frame_stride + 1
    samples = read_samples(settings.data, demand, span, settings.fps_target, settings.allow_outside)
    if accelerator.is_main_process:
        console.say(str(samples))
        if samples.classes is not None:
            console.say(str(samples.classes))
    samples.check_labels(demand.num_classes)
    return Session(settings, samples, num_frames, checkpoint, accelerator, demand.expert)


def check_run(output: Path) -> None:
    """
    Raises:
        UsageError: The finished pipeline would take the place of something that no run wrote.
    """
    held = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if files.read_marker(output) is None and held and not Checkpoints(output).steps():
        raise UsageError(f"Output {output} holds {held[0]} and no checkpoint, so no run is in it; give another -o.")
    for path in files.unlisted_files(output) if files.read_marker(output) else ():
        if _of_pipeline(path.relative_to(output)):
            raise UsageError(
                f"Output {output} holds {path.relative_to(output)}, which no run wrote and whose place the finished "
                "pipeline would take; move it elsewhere."
            )


def left_by_first(output: Path, model: Path | None) -> list[str]:
    """The files of a finished pipeline that version 0.1.0, which listed none, left in a run's folder."""
    names = files.names_in(output)
    of_model = {name for name in names if model is not None and (model / name).is_file() and name != CARD}
    of_run = {CARD} if is_own_card(output / CARD) else {}
    return [name for name in names if name in of_model or name in of_run or _of_pipeline(Path(name))]


def _of_pipeline(path: Path) -> bool:
    return any(fnmatchcase(path.parts[0], pattern) for pattern in PIPELINE_FILES)


def origin_of(settings: TrainingSettings, command: str, model=None, folder: Path | None = None) -> Origin:
    """What the card of a run takes over: from the model it begins with, if any, and from its own when it is resumed.

    Args:
        command: The command line, as typed.
        model: As given, a path or hub id; ``folder``: where it lies.
    """
    former = settings.output if settings.resume_from_checkpoint else None
    return find_origin(settings.output, settings.push_to_hub, command, model, folder, former)


def train(session: Session, pipe, origin: Origin, model: Path | None = None, only_branches: bool = False) -> Outcome:
    """Run the loop, and unless it was interrupted leave the finished pipeline in the output folder.

    Args:
        origin: For its card.
        model: The pipeline folder that the run begins with; the files of what is not trained stay as they are.
    """
    settings, accelerator, expert = session.settings, session.accelerator, session.expert
    trainer = Trainer(pipe, session.samples, session.num_frames, settings, accelerator, only_branches, expert)
    if session.checkpoint is not None:
        with reading(f"Checkpoint {session.checkpoint}", "resume from an earlier one"):
            trainer.resume(session.checkpoint)
        if accelerator.is_main_process:
            console.say(f"resumed from {session.checkpoint} at step {trainer.step}")
    family = family_of(pipe)
    if accelerator.is_main_process and family is not None and family.note:
        console.say(family.note)
    accelerator.wait_for_everyone()  # all have read their checkpoint, before the main process moves others
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return trainer.run()
    unlisted = [] if files.read_marker(settings.output) else left_by_first(settings.output, model)
    with files.work_in(settings.output, files.RUN, settings.resume_from_checkpoint is not None, Diverged) as work:
        files.note(settings.output, METRICS, *unlisted)
        _set_aside(trainer)
        accelerator.wait_for_everyone()
        outcome = trainer.run()
        work.finished = not outcome.interrupted
        if not outcome.interrupted:
            with files.install(settings.output, last=INDEX) as part:
                if model is None:
                    save_pipeline(pipe, part)
                else:
                    copy_with_trained(trainer.transformer, model, part, EXPERTS[expert or "high"], only_branches)
                record_names(part / INDEX, session.samples.classes)
                write_card(part, origin, {}, training_facts(trainer, outcome, session.samples, origin.source))
                _keep_card(settings.output / CARD, part / CARD)
    return outcome


def _set_aside(trainer: Trainer) -> None:
    """Move the checkpoints out of the way that this run makes anew."""
    aside = trainer.checkpoints.set_aside(trainer.step)
    if aside is not None:
        console.warn(f"the run goes on from step {trainer.step}, so its later checkpoints were moved to {aside}.")


def copy_with_trained(transformer, model: Path, folder: Path, part: str, only_branches: bool) -> None:
    """The files of ``model`` as they are, but for one transformer's, or its branches' alone.

    Args:
        part: What the pipeline calls the transformer.
    """
    left = shutil.ignore_patterns(*RUN_FILES, skip_folder(part), *([] if only_branches else [part]), CARD)
    shutil.copytree(model, folder, ignore=left, dirs_exist_ok=True)
    for path in filter(Path.is_dir, folder.iterdir()):
        drop_variant(path)
    if only_branches:
        save_branches(transformer.skip_branches, folder, part)
    else:
        transformer.save_pretrained(folder / part)
        drop_paths(folder)
    name_as_now(folder)


def _keep_card(held: Path, new: Path) -> None:
    """Leave out the new README.md where one lies that no run wrote."""
    if held.exists() and not is_own_card(held):
        new.unlink()
        console.warn(f"{held} is not from skipdit, so it was kept and no card was written.")
