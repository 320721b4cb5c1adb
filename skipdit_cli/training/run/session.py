"""The set-up of a run: all that is checked and read before weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator

from skipdit_cli.cards.card import Origin, find_origin
from skipdit_cli.errors import UsageError
from skipdit_cli.processes import Team, join
from skipdit_cli.settings import flag_name
from skipdit_cli.training.data.demand import Demand
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.data_settings import DataSettings
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.run.prepare import make_accelerator
from skipdit_cli.training.run.run_folder import check_run
from skipdit_cli.training.run.state import Checkpoints
from skipdit_cli.training.sources.read_source import read_source
from skipdit_cli.training.training_settings import TrainingSettings


@dataclass(frozen=True)
class Session:
    """A run whose settings, data and checkpoint have been checked.

    Args:
        num_frames: The number of frames in a clip; None for a model of images.
        checkpoint: The checkpoint to resume from, if any.
        observer: Receives the messages of the run; a silent one in all processes but the main one.
        expert: Which of two transformers is trained; None if there is one.
        team: The processes of the run.
    """

    settings: TrainingSettings
    samples: SampleSet
    num_frames: int | None
    checkpoint: Path | None
    accelerator: Accelerator
    observer: Observer = SILENT
    expert: str | None = None
    team: Team = field(default_factory=Team)


def begin(settings: TrainingSettings, demand: Demand, observer: Observer = SILENT) -> Session:
    """Check all that can be checked without weights, and read the data.

    Args:
        demand: What the model requires of the data.
        observer: Receives the messages of the main process.
    Raises:
        UsageError: A setting, the output, the checkpoint or the data cannot be used.
    """
    settings.check()
    accelerator = make_accelerator(settings)
    team = join("cpu" if accelerator.device.type == "cpu" else "auto")
    observer = observer if team.is_main else SILENT
    if not demand.has_null:
        settings = without_dropout(settings, observer)
    checkpoint = Checkpoints(settings.output, observer).find(settings.resume_from_checkpoint)
    if settings.resume_from_checkpoint is not None:
        check_run(settings.output)
    samples, num_frames = read_data(settings, demand, observer)
    settings = settings.with_steps(len(samples), accelerator.num_processes)
    return Session(settings, samples, num_frames, checkpoint, accelerator, observer, demand.expert, team)


def read_data(settings: DataSettings, demand: Demand, observer: Observer = SILENT) -> tuple[SampleSet, int | None]:
    """Return the samples of the data, and the number of frames in a clip (None for a model of images).

    Raises:
        UsageError: The data cannot be read, or are not what the model requires.
    """
    num_frames = clip_frames(settings, demand)
    span = ((num_frames or 1) - 1) * settings.frame_stride + 1
    samples = read_source(settings, demand, span, observer)
    observer.say(str(samples))
    if samples.classes is not None:
        observer.say(str(samples.classes))
    samples.check_labels(demand.num_classes)
    return samples, num_frames


def without_dropout(settings: TrainingSettings, observer: Observer) -> TrainingSettings:
    """Return the settings for a model without a null class, whose labels cannot be dropped.

    Raises:
        UsageError: The settings ask for dropout.
    """
    if settings.label_dropout not in (0, TrainingSettings.label_dropout):
        raise UsageError(
            f"Got --label-dropout {settings.label_dropout}, but this model has no null class to train; leave it out."
        )
    if settings.label_dropout:
        observer.say("Labels: none is dropped, because this model has no null class.")
    return replace(settings, label_dropout=0.0)


def clip_frames(settings: DataSettings, demand: Demand) -> int | None:
    """Return the number of frames in a clip for a model of videos, and None for a model of images.

    Raises:
        UsageError: The model cannot make so many frames, or a flag for videos is given for a model of images.
    """
    if demand.video_length is None:
        _refuse_video_flags(settings)
        return None
    frames, longest, group = settings.num_frames or demand.video_length, demand.video_length, demand.joined_frames
    if group is not None:
        if (frames - 1) % group:
            raise UsageError(f"Got --num-frames {frames} but expected 1 more than a multiple of {group}.")
        if settings.image_frames:
            raise UsageError(f"Got --image-frames {settings.image_frames}, which only a Latte can be trained with.")
    elif frames > longest or (demand.captions and frames != longest):  # diffusers' Latte adds all positions or none
        allowed = f"makes {longest}" if demand.captions else f"has positions for 1..{longest}"
        raise UsageError(f"Got --num-frames {frames} but the model {allowed}.")
    return frames


def _refuse_video_flags(settings: DataSettings) -> None:
    for name in ("num_frames", "frame_stride", "image_frames"):
        value = getattr(settings, name)
        if value not in (None, 0, 1):
            raise UsageError(f"Got {flag_name(name)} {value}, but this model makes images; leave the flag out.")
    if settings.fps_target is not None:
        raise UsageError(f"Got --fps-target {settings.fps_target:g}, but this model makes images; leave the flag out.")


def origin_of(settings: TrainingSettings, command: str, model=None, folder: Path | None = None) -> Origin:
    """Return what the card of a run takes over: from the model it begins with, and from its own when it is resumed.

    Args:
        command: The command line, as typed.
        model: The path or hub id of the model.
        folder: The folder of the model.
    """
    former = settings.output if settings.resume_from_checkpoint else None
    return find_origin(settings.output, settings.push_to_hub, command, model, folder, former)
