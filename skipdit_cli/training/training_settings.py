"""The settings of a training run: flags, defaults, help texts, and the values allowed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from skipdit_cli import files
from skipdit_cli.errors import UsageError, install_extra, nearest
from skipdit_cli.settings import MODEL, OUTPUT, HubSettings, flag_name, setting

EMBEDDED = {"digits": "images", "moving-digits": "videos"}
"""The data sets that need no folder, and what their samples are."""
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
WEIGHTINGS = ("none", "sigma_sqrt", "logit_normal", "mode", "cosmap")
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
class Weighting:
    """The distribution of timesteps and their weights in a flow matching loss, as in diffusers' training scripts.

    Args:
        scheme: ``logit_normal`` and ``mode`` are distributions of timesteps; ``sigma_sqrt`` and ``cosmap`` are weights
            of timesteps drawn uniformly; ``none`` is neither.
    """

    scheme: str = "logit_normal"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of ``skipdit train`` and ``skipdit finetune``, under diffusers' argument names."""

    data: str | None = _setting(
        None,
        "Folder of images or videos, with one folder per class or a metadata.jsonl; or 'digits', 'moving-digits'.",
        free=True,
    )
    output: Path | None = _setting(None, "Folder for checkpoints, metrics and the finished pipeline.", free=True)

    allow_outside: bool = _setting(
        False, "Accept files outside --data, listed by path or reached by a link.", DATA, free=True
    )
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
    max_train_steps: int = _setting(1000, "Number of optimizer steps.", OPTIMISATION, least=1)
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
        "none", "none or tensorboard; metrics.jsonl is always written.", OUTPUT,
        choices=("none", "tensorboard"), free=True,
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
        for each in fields(self):
            self._check_least(each.name, each.metadata["least"])
        self._check_ranges()
        for each in fields(self):
            self._check_choice(each.name, each.metadata["choices"])
        self._check_weighting()
        self._check_cached()
        if self.plan is not None:
            self._check_plan(self.plan)
        if self.push_to_hub is not None or self.private:
            from skipdit_cli.cards.publish import check_push

            check_push(self.push_to_hub, self.private)
        self._check_output(models or {}, preset)
        if self.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
            raise UsageError(f"Got --report-to tensorboard, which is not installed: run {install_extra('trackers')}.")

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

    def _check_weighting(self) -> None:
        if self.logit_std is not None and not self.logit_std > 0:
            raise UsageError(f"Got --logit-std {self.logit_std} but expected a number above 0.")
        scheme = self.weighting_scheme or Weighting.scheme
        for name, owner in {"logit_mean": "logit_normal", "logit_std": "logit_normal", "mode_scale": "mode"}.items():
            if getattr(self, name) is not None and scheme != owner:
                raise UsageError(f"Got {flag_name(name)} {getattr(self, name)} without --weighting-scheme {owner}.")

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
        data = {"--data": None if self.data in EMBEDDED else self.data}
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

    def recorded(self) -> dict:
        """Return the settings that a resumed run must share with its checkpoint."""
        recorded = {name: value for name, value in asdict(self).items() if name not in free_to_change()}
        recorded["clip"] = "random" if self.random_clip else "center"
        if self.lr_scheduler.startswith("constant"):
            del recorded["max_train_steps"]  # a constant schedule does not depend on it: a longer run may go on
        return recorded


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of ``skipdit finetune``: which part of the model is trained, and how."""

    train: str = setting("skip", "Train 'skip': the branches alone, the trunk frozen (stage 1); or 'all': everything.")
    expert: str | None = setting(None, "Transformer to train, of two (Wan 2.2): high (noise) or low.", MODEL)
    lora: str | None = setting(None, "LoRA to load under the branches: train with the one you sample with.", MODEL)
    hub: HubSettings = field(default_factory=HubSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    @property
    def only_branches(self) -> bool:
        """Whether the skip branches alone are trained."""
        return self.train == "skip"


def free_to_change() -> set[str]:
    """Return the names of the settings in which a resumed run may differ from its checkpoint."""
    return {each.name for each in fields(TrainingSettings) if each.metadata["free"]}
