"""What a training run is told: each setting, its default and its help text, once. Two commands read them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from skipdit_cli import console, files
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.settings import setting
from skipdit_cli.training.data.demand import Demand

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
PRECISIONS = ("no", "bf16", "fp16")
TRACKERS = ("none", "tensorboard")
PLACES = ("center", "random")
MODELS = ("model", "--lora", "--vae")
WEIGHTINGS = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")
FREE_TO_CHANGE = (
    "data allow_outside output cache_latents checkpointing_steps checkpoints_total_limit resume_from_checkpoint "
    "force_config validation_steps report_to dataloader_num_workers gradient_checkpointing overwrite push_to_hub "
    "private"
).split()


@dataclass(frozen=True)
class Weighting:
    """Which timesteps a flow matching loss is taken at and how much each counts, as in diffusers' training scripts.

    Args:
        scheme: ``logit_normal`` and ``mode`` say how timesteps are drawn, ``sigma_sqrt`` and ``cosmap`` weigh those
            drawn evenly; ``none`` does neither.
    """

    scheme: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29


@dataclass(frozen=True)
class TrainingSettings:
    """The flags of ``skipdit train`` and ``skipdit finetune``, under diffusers' argument names."""

    data: str | None = setting(
        None, "Folder of images or videos: class directories, or metadata.jsonl. Or 'digits', 'moving-digits'."
    )
    allow_outside: bool = setting(False, "Take files that lie, or links that lead, outside --data.")
    output: Path | None = setting(None, "Folder of the run: checkpoints, metrics, the finished pipeline.")
    overwrite: bool = setting(False, "Replace an existing run.")
    push_to_hub: str | None = setting(None, "Upload the finished pipeline there.")
    private: bool = setting(False, "Make the repository of --push-to-hub a private one.")
    random_flip: bool = setting(False, "Mirror half of the images, drawn anew each time.")
    label_dropout: float = setting(0.1, "Share of labels, or captions, replaced by none, for guidance.")
    crop: str = setting("center", "Which square of a picture: center, or random, drawn anew each time.")
    height: int | None = setting(None, "Of the pictures, for a model of texts; its own if not given.")
    width: int | None = setting(None, "As --height.")
    cache_latents: Path | None = setting(
        None, "Folder where the VAE's latents, and texts encoded, are kept for this run and later ones."
    )
    dataloader_num_workers: int = setting(0, "Processes that read the data.")

    num_frames: int | None = setting(
        None, "Frames of a clip; as many as the model was made for if not given.", "Video"
    )
    frame_stride: int = setting(1, "Take every N-th frame of the file.", "Video")
    fps_target: float | None = setting(
        None, "Pick frames by time, so many a second, in the place of --frame-stride.", "Video"
    )
    clip: str | None = setting(
        None,
        "Which clip of a video: center, or random, drawn anew each time; random but for --cache-latents.",
        "Video",
    )
    image_frames: int = setting(
        0, "Single frames of other videos trained on beside each clip, as Latte does.", "Video"
    )

    weighting_scheme: str | None = setting(
        None, f"Of timesteps: {', '.join(WEIGHTINGS)}; logit_normal if not given.", "Flow matching"
    )
    logit_mean: float | None = setting(None, "Of logit_normal; 0 if not given.", "Flow matching")
    logit_std: float | None = setting(None, "Of logit_normal; 1 if not given.", "Flow matching")
    mode_scale: float | None = setting(None, "Of mode; 1.29 if not given.", "Flow matching")

    train_batch_size: int = setting(32, "Samples per process and forward.", "Optimisation")
    gradient_accumulation_steps: int = setting(1, "Forwards per optimizer step.", "Optimisation")
    max_train_steps: int = setting(1000, "Optimizer steps in all.", "Optimisation")
    learning_rate: float = setting(1e-4, "Peak learning rate of AdamW.", "Optimisation")
    lr_scheduler: str = setting("constant", ", ".join(SCHEDULES) + ".", "Optimisation")
    lr_warmup_steps: int = setting(0, "Optimizer steps of linear warm-up.", "Optimisation")
    max_grad_norm: float = setting(1.0, "Clip the gradient's norm to this; 0 for never.", "Optimisation")
    mixed_precision: str = setting("no", "no, bf16 or fp16; weights stay float32.", "Optimisation")
    gradient_checkpointing: bool = setting(False, "Compute blocks again in backward to save memory.", "Optimisation")
    use_ema: bool = setting(True, "Average the weights; the average is what is saved in the end.", "Optimisation")
    ema_decay: float = setting(0.9999, "Decay of the average, reached from 0 by (1+n)/(10+n).", "Optimisation")
    seed: int = setting(0, "Fixes initial weights, data order, noise, timesteps, dropout.", "Optimisation")

    checkpointing_steps: int = setting(500, "Save a checkpoint every so many optimizer steps.", "Checkpoints")
    checkpoints_total_limit: int | None = setting(None, "Keep this many checkpoints, the newest.", "Checkpoints")
    resume_from_checkpoint: str | None = setting(
        None, "'latest' (an error if there is none), 'auto' (if there is one), or a folder.", "Checkpoints"
    )
    force_config: bool = setting(False, "Resume although settings differ from the checkpoint's.", "Checkpoints")
    validation_steps: int = setting(0, "Sample a grid at step 0 and every so many steps; 0 for never.", "Reports")
    report_to: str = setting("none", "none or tensorboard; metrics.jsonl is always written.", "Reports")

    def check(self, reads: Mapping[str, object] | None = None) -> None:
        """Refuse what no run could use.

        Args:
            reads: What the command reads beside the data, as for ``files.check_apart``.
        Raises:
            UsageError: A value out of range, an unknown name, a missing flag or package, an output in the way.
        """
        if self.data is None:
            raise UsageError("Got no --data but expected a folder of images or videos, or --data digits.")
        if self.output is None:
            raise UsageError("Got no --output but expected a folder for the run, such as -o runs/first.")
        for name in ("train_batch_size", "gradient_accumulation_steps", "max_train_steps", "checkpointing_steps"):
            self._at_least(name, 1)
        for name in ("lr_warmup_steps", "max_grad_norm", "dataloader_num_workers", "seed", "validation_steps"):
            self._at_least(name, 0)
        for name in ("checkpoints_total_limit", "num_frames", "height", "width"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        self._at_least("frame_stride", 1)
        self._at_least("image_frames", 0)
        if self.fps_target is not None and not 0 < self.fps_target <= 1000:
            raise UsageError(f"Got --fps-target {self.fps_target:g} but expected more than 0 and at most 1000.")
        if self.fps_target is not None and self.frame_stride != 1:
            raise UsageError(
                f"Got --fps-target {self.fps_target:g} with --frame-stride {self.frame_stride}, which both pick the "
                "frames of a clip; give one (every third of 24 a second are 8)."
            )
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"Got --learning-rate {self.learning_rate} but expected a number above 0.")
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"Got {_flag(name)} {getattr(self, name)} but expected 0 <= value < 1.")
        choices = {"lr_scheduler": SCHEDULES, "mixed_precision": PRECISIONS, "report_to": TRACKERS}
        choices |= {"clip": PLACES, "crop": PLACES, "weighting_scheme": WEIGHTINGS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                expected = f"but expected one of {', '.join(allowed)}.{nearest(value, allowed)}"
                raise UsageError(f"Got {_flag(name)} {value} {expected}")
        self._check_weighting()
        for name in ("clip", "crop"):
            if self.cache_latents is not None and getattr(self, name) == "random":
                raise UsageError(
                    f"Got {_flag(name)} random with --cache-latents, which keeps one latent a sample; expected center."
                )
        if self.push_to_hub is not None or self.private:
            from skipdit_cli.cards.publish import check_push

            check_push(self.push_to_hub, self.private)
        self._check_output(reads or {})
        if self.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise UsageError(
                "Got --report-to tensorboard, which is not installed: run pip install 'skipdit-cli[trackers]'."
            )

    def _check_weighting(self) -> None:
        if self.logit_std is not None and not self.logit_std > 0:
            raise UsageError(f"Got --logit-std {self.logit_std} but expected a number above 0.")
        scheme = self.weighting_scheme or Weighting.scheme
        for name, its in {"logit_mean": "logit_normal", "logit_std": "logit_normal", "mode_scale": "mode"}.items():
            if getattr(self, name) is not None and scheme != its:
                raise UsageError(f"Got {_flag(name)} {getattr(self, name)} without --weighting-scheme {its}.")

    def _at_least(self, name: str, least: int) -> None:
        if not getattr(self, name) >= least:
            raise UsageError(f"Got {_flag(name)} {getattr(self, name)} but expected at least {least}.")

    def _check_output(self, reads: Mapping[str, object]) -> None:
        models = {flag: value for flag, value in reads.items() if flag in MODELS}
        if self.resume_from_checkpoint is not None:
            if self.overwrite:
                raise UsageError("Got --resume-from-checkpoint with --overwrite, which would delete the checkpoints.")
            files.check_apart(self.output, models)
            files.check_resumed(self.output, files.RUN)
            return
        from skipdit_cli.training.data.samples import EMBEDDED

        data = {"--data": None if self.data in EMBEDDED else self.data}
        files.check_apart(self.output, {**reads, **data, "--cache-latents": self.cache_latents})
        files.check_outside(self.output, {**models, **data})
        files.check_folder(self.output, files.RUN, self.overwrite)

    @property
    def weighting(self) -> Weighting | None:
        """None where no flag says anything of it."""
        given = (self.weighting_scheme, self.logit_mean, self.logit_std, self.mode_scale)
        told = {field.name: value for field, value in zip(fields(Weighting), given) if value is not None}
        return Weighting(**told) if told else None

    @property
    def random_clip(self) -> bool:
        return self.clip == "random" or (self.clip is None and self.cache_latents is None)

    def without_dropout(self) -> TrainingSettings:
        """The settings for a model that has no "no class", whose labels cannot be dropped.

        Raises:
            UsageError: They ask for it.
        """
        if self.label_dropout not in (0, type(self).label_dropout):
            raise UsageError(
                f"Got --label-dropout {self.label_dropout}, but this model has no 'no class' to train; leave it out."
            )
        if self.label_dropout:
            console.say("Labels: none is dropped, for this model has no 'no class'.")
        return replace(self, label_dropout=0.0)

    def clip_frames(self, demand: Demand) -> int | None:
        """The number of frames of a clip for a model of videos; None for one of images.

        Raises:
            UsageError: The model has no positions for it; or a flag of video for a model of images.
        """
        most, joined = demand.video_length, demand.joined_frames
        if joined is not None:
            frames = self.num_frames or most
            if (frames - 1) % joined:
                raise UsageError(f"Got --num-frames {frames} but expected 1 more than a multiple of {joined}.")
            if self.image_frames:
                raise UsageError(f"Got --image-frames {self.image_frames}, which only a Latte can be trained with.")
            return frames
        if most is not None:
            frames = self.num_frames or most
            if frames > most or (demand.captions and frames != most):  # diffusers' Latte adds all positions or none
                allowed = f"makes {most}" if demand.captions else f"has positions for 1..{most}"
                raise UsageError(f"Got --num-frames {frames} but the model {allowed}.")
            return frames
        for name in ("num_frames", "frame_stride", "image_frames"):
            value = getattr(self, name)
            if value not in (None, 0, 1):
                raise UsageError(f"Got {_flag(name)} {value}, but this model makes images; leave the flag out.")
        if self.fps_target is not None:
            raise UsageError(f"Got --fps-target {self.fps_target:g}, but this model makes images; leave the flag out.")
        return None

    def recorded(self) -> dict:
        """The settings that a resumed run must share with its checkpoint."""
        held = {name: value for name, value in asdict(self).items() if name not in FREE_TO_CHANGE}
        held["clip"] = "random" if self.random_clip else "center"
        if self.lr_scheduler.startswith("constant"):
            del held["max_train_steps"]  # it bends no schedule: a longer run goes on as the shorter one began
        return held


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
