"""The settings of a training run: flags, defaults, help texts, and the values allowed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path

from skipdit_cli import files
from skipdit_cli.errors import UsageError, install_extra
from skipdit_cli.settings import OUTPUT
from skipdit_cli.training.data_settings import DataSettings
from skipdit_cli.training.data_settings import training_setting as _setting
from skipdit_cli.training.data_source import parse_data
from skipdit_cli.training.weighting import WEIGHTINGS, Weighting, check_weighting

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
DEFAULT_STEPS = 1000
TRACKERS = ("tensorboard", "wandb")
FLOW = "Flow matching"
OPTIMISATION, MEMORY, CHECKPOINTS = "Optimisation", "Precision and memory", "Checkpoints"
"""The panels of ``--help`` that only training has."""


@dataclass(frozen=True)
class TrainingSettings(DataSettings):
    """The settings of ``skipdit train`` and ``skipdit finetune``, under diffusers' argument names."""

    output: Path | None = _setting(None, "Folder for checkpoints, metrics and the finished pipeline.", free=True)

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
        self.check_data()
        if self.output is None:
            raise UsageError("Got no --output but expected a folder for the run, such as -o runs/first.")
        self._check_ranges()
        check_weighting(self.weighting_scheme, self.logit_mean, self.logit_std, self.mode_scale)
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

    def _check_ranges(self) -> None:
        if self.num_train_epochs is not None and self.max_train_steps is not None:
            raise UsageError(
                f"Got --num-train-epochs {self.num_train_epochs} and --max-train-steps {self.max_train_steps}, which "
                "both set the length of the run; give one."
            )
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"Got --learning-rate {self.learning_rate} but expected a number above 0.")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"Got --ema-decay {self.ema_decay} but expected 0 <= value < 1.")

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
