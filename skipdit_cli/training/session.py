"""A run from its flags to its finished folder: what stands before the loop and after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from accelerate import Accelerator

from skipdit_cli import console
from skipdit_cli.backbones import BACKBONES
from skipdit_cli.checkpoints import named_model, open_model, replace_folder, save_branches, save_pipeline
from skipdit_cli.checkpoints.card import CARD, Origin, find_origin, is_own_card, write_card
from skipdit_cli.checkpoints.folder import drop_paths, drop_variant, is_legal, name_as_now
from skipdit_cli.checkpoints.index import check_index, transformer_config
from skipdit_cli.checkpoints.pipeline import find_folder
from skipdit_cli.checkpoints.weights import read_json
from skipdit_cli.errors import UsageError, reading
from skipdit_cli.skip import skip_folder
from skipdit_cli.training.class_folders import record_names
from skipdit_cli.training.demand import EXPERTS, Demand, demand_of
from skipdit_cli.training.facts import training_facts
from skipdit_cli.training.families import as_trained, family_of
from skipdit_cli.training.lock import check_unused, only_run_in
from skipdit_cli.training.loop import Outcome, Trainer
from skipdit_cli.training.prepare import make_accelerator
from skipdit_cli.training.samples import SampleSet, read_samples
from skipdit_cli.training.settings import TrainingSettings
from skipdit_cli.training.state import Checkpoints

INDEX = "model_index.json"
TEXT_PARTS = ("text_encoder*", "tokenizer*", "image_encoder", "feature_extractor", "safety_checker")
TRAINED_PARTS = ("transformer", "transformer_2", "skip", "skip_2")
PIPELINE_FILES = (INDEX, *TRAINED_PARTS, "scheduler", "vae", *TEXT_PARTS)
RUN_FILES = ("checkpoint-*", "samples", "logs", "metrics.jsonl", ".result*", "set-aside-*", ".lock")


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
    check_unused(settings.output)
    if not demand.has_null:
        settings = settings.without_dropout()
    if settings.overwrite:
        parts_of_run(settings.output)
    checkpoint = Checkpoints(settings.output).find(settings.resume_from_checkpoint)
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
    if accelerator.is_main_process:
        for path in parts_of_run(settings.output) if settings.overwrite else ():
            _remove(path)
        try:
            settings.output.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise UsageError(f"Cannot write to {settings.output}: {cause.strerror}; give another -o.") from cause
    with only_run_in(settings.output) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _tidy(trainer)
        accelerator.wait_for_everyone()
        outcome = trainer.run()
        if outcome.main and not outcome.interrupted:
            with whole_or_nothing(settings.output) as part:
                if model is None:
                    save_pipeline(pipe, part)
                else:
                    copy_with_trained(trainer.transformer, model, part, EXPERTS[expert or "high"], only_branches)
                record_names(part / INDEX, session.samples.classes)
                write_card(part, origin, {}, training_facts(trainer, outcome, session.samples, origin.source))
    return outcome


def _tidy(trainer: Trainer) -> None:
    """Take away what killed runs left half written, and set aside the checkpoints that this run makes anew."""
    checkpoints = trainer.checkpoints
    checkpoints.sweep()
    aside = checkpoints.set_aside(trainer.step)
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


@contextmanager
def whole_or_nothing(output: Path) -> Iterator[Path]:
    """A folder to fill with a pipeline, whose parts are then moved into ``output``, ``model_index.json`` last: an
    output that has it is whole. A README.md there that no run wrote stays."""
    result = output / ".result"
    with replace_folder(result, overwrite=True) as part:
        yield part
    (output / INDEX).unlink(missing_ok=True)
    if (output / CARD).exists() and not is_own_card(output / CARD):
        (result / CARD).unlink()
        console.warn(f"{output / CARD} is not from skipdit, so it was kept and no card was written.")
    for path in sorted(result.iterdir(), key=lambda path: path.name == INDEX):
        _remove(output / path.name)
        os.replace(path, output / path.name)
    result.rmdir()


def parts_of_run(output: Path) -> list[Path]:
    """What a former run left in ``output``; this, and nothing else, is what ``--overwrite`` deletes.

    Raises:
        UsageError: Something else is there.
    """
    if not output.is_dir():
        return []
    parts = sorted(output.iterdir())
    others = [path.name for path in parts if not _of_a_run(path)]
    if others:
        raise UsageError(f"Output {output} holds {others[0]}, which no run wrote; give another -o.")
    return parts


def _of_a_run(path: Path) -> bool:
    if path.name == CARD:
        return is_own_card(path)
    return is_legal(path.name) or any(fnmatchcase(path.name, name) for name in (*PIPELINE_FILES, *RUN_FILES))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
