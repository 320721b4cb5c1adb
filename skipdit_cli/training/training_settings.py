"""The settings of a training run: flags, defaults, help texts, and the values allowed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path

from skipdit_cli import files
from skipdit_cli.errors import UsageError, install_extra, nearest
from skipdit_cli.settings import OUTPUT, flag_name, setting
from skipdit_cli.training.data_source import check_source, parse_data
from skipdit_cli.training.weighting import WEIGHTINGS, Weighting, check_weighting

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
DEFAULT_STEPS = 1000
TRACKERS = ("tensorboard", "wandb")
POSITIONS = ("center", "random")
"""Where a clip lies in its video and a crop in its picture."""
DATA, VIDEO, FLOW = "Data", "Video", "Flow matching"
OPTIMISATION, MEMORY, CHECKPOINTS = "Optimisation", "Precision and memory", "Checkpoints"
"""The panels of ``--help`` that only training has."""


def _setting(default, help: str, panel: str | None = None, *, least=None, choices=(), free=False, **more):
    """Declare a setting of training.

    Args:
        least: The smallest number allowed.
        choices: The names allowed; empty where any text is.
        free: Whether a resumed run may have another value than its checkpoint.
        more: Further arguments of ``setting``.
    """
    return setting(default, help, panel, least=least, choices=choices, free=free, **more)


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of ``skipdit train`` and ``skipdit finetune``, under diffusers' argument names."""

    data: str | None = _setting(
        None,
        "Folder of images or videos, with one folder per class or a metadata.jsonl; hf:NAME[:SPLIT] of Hugging Face "
        "datasets; WebDataset shards, 'wds:shards/{000..009}.tar'; or 'digits', 'moving-digits', 'digits:train'.",
        free=True,
    )
    output: Path | None = _setting(None, "Folder for checkpoints, metrics and the finished pipeline.", free=True)

    allow_outside: bool = _setting(
        False, "Accept files outside --data, listed by path or reached by a link.", DATA, free=True
    )
    image_column: str | None = _setting(
        None, "Column of images in hf: data, or extension in shards. [default: found by type]", DATA, free=True
    )
    caption_column: str | None = _setting(
        None, "Column of captions, or extension or JSON key in shards. [default: found by type]", DATA, free=True
    )
    label_column: str | None = _setting(
        None, "Column of class labels, or extension or JSON key in shards. [default: found by type]", DATA, free=True
    )
    dataset_config_name: str | None = _setting(None, "Configuration (subset) of hf: data on the hub.", DATA, free=True)
    random_flip: bool = _setting(False, "Mirror a random half of the images, drawn anew each time.", DATA)
    label_dropout: float = _setting(0.1, "Share of labels or captions dropped, for classifier-free guidance.", DATA)
    crop: str = _setting(
        "center", "Crop of an image: center, or random, drawn anew each time.", DATA, choices=POSITIONS
    )
    height: int | None = _setting(
        None,
        "Height of the images for a text-conditional model. [default: the model's own]",
        DATA,
        least=1,
        maximum=16_384,
    )
    width: int | None = _setting(
        None, "Width of the images. [default: the model's own]", DATA, least=1, maximum=16_384
    )
    cache_latents: Path | None = _setting(
        None, "Folder that keeps VAE latents and encoded captions for this run and later ones.", DATA, free=True
    )
    dataloader_num_workers: int = _setting(
        0, "Number of processes that load the data.", DATA, least=0, maximum=1_000, free=True
    )

    num_frames: int | None = _setting(
        None, "Frames per clip. [default: the model's own]", VIDEO, least=1, maximum=100_000
    )
    frame_stride: int = _setting(1, "Take every N-th frame of a video.", VIDEO, least=1, maximum=10_000)
    fps_target: float | None = _setting(
        None, "Pick frames by time, at this many frames per second, instead of by --frame-stride.", VIDEO
    )
    clip: str | None = _setting(
        None,
        "Clip of a video: center, or random, drawn anew each time. [default: random; center with --cache-latents]",
        VIDEO,
        choices=POSITIONS,
    )
    image_frames: int = _setting(
        0, "Single frames of other videos to train on beside each clip (Latte).", VIDEO, least=0, maximum=10_000
    )

    weighting_scheme: str | None = _setting(
        None, f"Weighting of timesteps: {', '.join(WEIGHTINGS)}. [default: logit_normal]", FLOW, choices=WEIGHTINGS
    )
    logit_mean: float | None = _setting(None, "Mean of logit_normal. [default: 0]", FLOW)
    logit_std: float | None = _setting(None, "Standard deviation of logit_normal. [default: 1]", FLOW)
    mode_scale: float | None = _setting(None, "Scale of mode. [default: 1.29]", FLOW)

    train_batch_size: int = _setting(
        32, "Samples per process and forward pass.", OPTIMISATION, least=1, maximum=100_000
    )
    gradient_accumulation_steps: int = _setting(
        1, "Forward passes per optimizer step.", OPTIMISATION, least=1, maximum=100_000
    )
    max_train_steps: int | None = _setting(None, "Number of optimizer steps. [default: 1000]", OPTIMISATION, least=1)
    num_train_epochs: int | None = _setting(
        None, "Number of passes over the data, in place of --max-train-steps.", OPTIMISATION, least=1, free=True
    )
    learning_rate: float = _setting(1e-4, "Peak learning rate of AdamW.", OPTIMISATION)
    lr_scheduler: str = _setting(
        "constant", f"Learning rate schedule: {', '.join(SCHEDULES)}.", OPTIMISATION, choices=SCHEDULES
    )
    lr_warmup_steps: int = _setting(0, "Optimizer steps of linear warm-up.", OPTIMISATION, least=0)
    max_grad_norm: float = _setting(1.0, "Maximum gradient norm; 0 turns clipping off.", OPTIMISATION, least=0)
    mixed_precision: str = _setting(
        "no", "Precision of the forward pass: no, bf16 or fp16; weights stay float32.", MEMORY,
        choices=("no", "bf16", "fp16"),
    )  # fmt: skip
    gradient_checkpointing: bool = _setting(
        False, "Save memory by computing blocks again in the backward pass.", MEMORY, free=True
    )
    use_ema: bool = _setting(True, "Keep a moving average of the weights and save it in the end.", OPTIMISATION)
    ema_decay: float = _setting(0.9999, "Decay of the average; (1+n)/(10+n) at step n while less.", OPTIMISATION)
    seed: int = _setting(
        0, "Seed of initial weights, data order, noise, timesteps and dropout.", OPTIMISATION, least=0
    )

    checkpointing_steps: int = _setting(
        500, "Save a checkpoint every N optimizer steps.", CHECKPOINTS, least=1, free=True
    )
    checkpoints_total_limit: int | None = _setting(
        None, "Number of checkpoints to keep, the newest. [default: all]", CHECKPOINTS, least=1, free=True
    )
    resume_from_checkpoint: str | None = _setting(
        None, "'latest' (an error if there is none), 'auto' (if there is one), or a folder.", CHECKPOINTS, free=True
    )
    force_config: bool = _setting(
        False, "Resume although settings differ from the checkpoint's.", CHECKPOINTS, free=True
    )

    overwrite: bool = _setting(False, "Replace an existing run.", OUTPUT, free=True)
    validation_steps: int = _setting(
        0, "Sample a grid at step 0 and every N steps; 0 turns it off.", OUTPUT, least=0, free=True
    )
    plan: str | None = _setting(
        None, "Plan that the grids show beside the uncached samples.", OUTPUT, metavar="FILE", free=True
    )
    report_to: str = _setting(
        "none", "Tracker of metrics and sample grids: none, tensorboard or wandb; metrics.jsonl is always written.",
        OUTPUT, choices=("none", *TRACKERS), free=True,
    )  # fmt: skip
    push_to_hub: str | None = _setting(
        None, "Repository to upload the finished pipeline to.", OUTPUT, metavar="OWNER/NAME", free=True
    )
    private: bool = _setting(False, "Make the repository of --push-to-hub private.", OUTPUT, free=True)

    def check(self, models: Mapping[str, object] | None = None, preset: Path | None = None) -> None:
        """Refuse values that no run can use.

        Args:
            models: The models that the command reads, by flag, as for ``files.check_apart``.
            preset: The preset file that it reads.
        Raises:
            UsageError: A value is out of range, a name is unknown, a flag or a package is missing, or the output is
                in the way.
        """
        if self.data is None:
            raise UsageError("Got no --data but expected a folder of images or videos, or --data digits.")
        if self.output is None:
            raise UsageError("Got no --output but expected a folder for the run, such as -o runs/first.")
        columns = {flag_name(name): getattr(self, name) for name in ("image_column", "caption_column", "label_column")}
        check_source(parse_data(self.data), columns, self.dataset_config_name)
        for each in fields(self):
            self._check_least(each.name, each.metadata["least"])
        self._check_ranges()
        for each in fields(self):
            self._check_choice(each.name, each.metadata["choices"])
        check_weighting(self.weighting_scheme, self.logit_mean, self.logit_std, self.mode_scale)
        self._check_cached()
        if self.plan is not None:
            self._check_plan(self.plan)
        if self.push_to_hub is not None or self.private:
            from skipdit_cli.cards.publish import check_push

            check_push(self.push_to_hub, self.private)
        self._check_output(models or {}, preset)
        if self.report_to in TRACKERS and importlib.util.find_spec(self.report_to) is None:
            raise UsageError(
                f"Got --report-to {self.report_to}, which is not installed: run {install_extra('trackers')}."
            )

    def _check_least(self, name: str, least: int | None) -> None:
        value = getattr(self, name)
        if least is not None and value is not None and not value >= least:
            raise UsageError(f"Got {flag_name(name)} {value} but expected at least {least}.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if choices and value is not None and value not in choices:
            expected = f"but expected one of {', '.join(choices)}.{nearest(value, choices)}"
            raise UsageError(f"Got {flag_name(name)} {value} {expected}")

    def _check_ranges(self) -> None:
        if self.num_train_epochs is not None and self.max_train_steps is not None:
            raise UsageError(
                f"Got --num-train-epochs {self.num_train_epochs} and --max-train-steps {self.max_train_steps}, which "
                "both set the length of the run; give one."
            )
        if self.fps_target is not None and not 0 < self.fps_target <= 1000:
            raise UsageError(f"Got --fps-target {self.fps_target:g} but expected more than 0 and at most 1000.")
        if self.fps_target is not None and self.frame_stride != 1:
            raise UsageError(
                f"Got --fps-target {self.fps_target:g} with --frame-stride {self.frame_stride}, which both pick the "
                "frames of a clip; give one (every third of 24 frames per second is 8)."
            )
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"Got --learning-rate {self.learning_rate} but expected a number above 0.")
        for name in ("label_dropout", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"Got {flag_name(name)} {getattr(self, name)} but expected 0 <= value < 1.")

    def _check_cached(self) -> None:
        for name in ("clip", "crop"):
            if self.cache_latents is not None and getattr(self, name) == "random":
                conflict = "--cache-latents, which keeps one latent a sample"
                raise UsageError(f"Got {flag_name(name)} random with {conflict}; expected center.")

    def _check_plan(self, plan: str) -> None:
        from skipdit_cli.planning.plan import load_plan

        if not self.validation_steps:
            raise UsageError(
                f"Got --plan {plan} without --validation-steps, so no sample grid would show it; give both."
            )
        load_plan(plan)

    def _check_output(self, models: Mapping[str, object], preset: Path | None) -> None:
        if self.resume_from_checkpoint is not None:
            if self.overwrite:
                raise UsageError("Got --resume-from-checkpoint with --overwrite, which would delete the checkpoints.")
            files.check_apart(self.output, models)
            files.check_resumed(self.output, files.RUN)
            return
        data = {"--data": parse_data(self.data).path}
        reads = {**models, "--preset": preset, "--plan": self.plan, **data, "--cache-latents": self.cache_latents}
        files.check_apart(self.output, reads)
        files.check_outside(self.output, {**models, **data})
        files.check_folder(self.output, files.RUN, self.overwrite)

    @property
    def weighting(self) -> Weighting | None:
        """The weighting of a flow matching loss, or None where no flag names one."""
        values = (self.weighting_scheme, self.logit_mean, self.logit_std, self.mode_scale)
        typed = {each.name: value for each, value in zip(fields(Weighting), values) if value is not None}
        return Weighting(**typed) if typed else None

    @property
    def random_clip(self) -> bool:
        """Whether the clip of a video is drawn anew each time."""
        return self.clip == "random" or (self.clip is None and self.cache_latents is None)

    def with_steps(self, samples: int, processes: int) -> TrainingSettings:
        """Return the settings with the number of optimizer steps of a run, from the number of epochs if that is given.

        Args:
            samples: Samples of the data.
            processes: Processes that train.
        """
        if self.num_train_epochs is None:
            return replace(self, max_train_steps=self.max_train_steps or DEFAULT_STEPS)
        return replace(self, max_train_steps=ceil(self.num_train_epochs * samples / self.batch(processes)))

    def batch(self, processes: int) -> int:
        """Return the number of samples in one optimizer step of all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * processes

    def recorded(self) -> dict:
        """Return the settings that a resumed run must share with its checkpoint."""
        recorded = {name: value for name, value in asdict(self).items() if name not in free_to_change()}
        recorded["clip"] = "random" if self.random_clip else "center"
        if self.lr_scheduler.startswith("constant"):
            del recorded["max_train_steps"]  # a constant schedule does not depend on it: a longer run may go on
        return recorded


def free_to_change() -> set[str]:
    """Return the names of the settings in which a resumed run may differ from its checkpoint."""
    return {each.name for each in fields(TrainingSettings) if each.metadata["free"]}
