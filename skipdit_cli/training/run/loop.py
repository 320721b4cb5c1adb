"""The training loop, on accelerate: one process or many (``accelerate launch -m skipdit_cli finetune ...``)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object, set_seed
from torch.utils.data import DataLoader

from skipdit_cli.errors import NotFiniteError, SkipditError
from skipdit_cli.families.pipeline_parts import transformer_of, transformers_of
from skipdit_cli.files import note
from skipdit_cli.finite import first_broken
from skipdit_cli.planning.hardware import out_of_memory
from skipdit_cli.planning.plan import load_plan
from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.data.pixel_dataset import Batch
from skipdit_cli.training.distributed.parallelism import Parameters, trained_parameters
from skipdit_cli.training.distributed.restored_tensors import restore
from skipdit_cli.training.distributed.sharding import local_tensor
from skipdit_cli.training.fingerprints import fingerprint_of_adapters
from skipdit_cli.training.objective.loss import Losses
from skipdit_cli.training.recorded_settings import DRAW_SIZE, draw_size_of, samples_of_step
from skipdit_cli.training.run.interrupt import interrupt
from skipdit_cli.training.run.logs import RunLog, SampleGrid, grid_name
from skipdit_cli.training.run.moving_average import MovingAverage
from skipdit_cli.training.run.prepare import make_parallelism, make_schedule, on_device, set_train_mode
from skipdit_cli.training.run.session import Session
from skipdit_cli.training.run.state import (
    SAMPLES,
    Checkpoints,
    TrainingState,
    load_state,
    random_state,
    set_random_state,
)
from skipdit_cli.training.run.training_data import make_loader, order_of, set_up_data, translated_loader_errors


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Args:
        main: Whether this process is the one that writes and reports.
        checkpoint: The newest checkpoint of the run.
        last: The last line of its metrics.
        seconds: The time of all its steps.
        data_seconds: The part of that time spent waiting for data.
    """

    main: bool
    step: int
    interrupted: bool
    trained_parameters: int
    checkpoint: str | None
    last: dict
    seconds: float
    data_seconds: float


class Diverged(SkipditError):
    """The loss or the norm of its gradient is NaN or infinite."""


class Trainer:
    """Trains a transformer of a pipeline in place; after ``run`` it holds the averaged weights.

    Args:
        session: The set-up of the run.
        pipe: A pipeline in float32; its ``vae`` is None for a model of pixels. Of two transformers, the one that is
            not trained may be missing if no sample grids are made.
        only_branches: Whether to train the skip branches alone, the trunk frozen (stage 1 of Skip-DiT).
    Raises:
        UsageError: The settings, the machine and the model do not go together.
    """

    def __init__(self, session: Session, pipe, only_branches: bool = False):
        settings, accelerator, expert = session.settings, session.accelerator, session.expert
        self.session, self.settings, self.accelerator, self.pipe = session, settings, accelerator, pipe
        self.transformer = transformer_of(pipe) if expert is None else getattr(pipe, EXPERTS[expert])
        keep, every = settings.checkpoints_total_limit, settings.checkpointing_steps
        self.checkpoints = Checkpoints(settings.output, session.observer, keep, every)
        self.step, self.seconds, self.data_seconds = 0, 0.0, 0.0
        set_seed(settings.seed, device_specific=True)  # dropout of one process is not that of another
        set_train_mode(self.transformer, only_branches)
        self.checkpoints.check_room(trained_parameters(self.transformer))
        if settings.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if pipe.vae is not None:
            pipe.vae.to(accelerator.device).requires_grad_(False).eval()
        self.recorded = {
            **settings.recorded(),
            "only_branches": only_branches,
            **session.samples.recorded(),
            "processes": accelerator.num_processes,
            "lora": fingerprint_of_adapters(self.transformer),
            "expert": expert,
        }
        self.recorded[DRAW_SIZE] = samples_of_step(self.recorded)
        self.size, self.dataset, self.objective = set_up_data(session, pipe)
        plan = None if settings.plan is None else load_plan(settings.plan)
        self.grid = SampleGrid(session.samples, pipe, session.num_frames, self.size, plan)
        self.parallelism = make_parallelism(accelerator, settings)
        self.trained, self.model, self.optimizer = self.parallelism.prepare(self.transformer, self._make_optimizer)
        self.average = MovingAverage(self.trained, settings.ema_decay if settings.use_ema else None)

    def _make_optimizer(self, trained: Parameters) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(trained.values(), lr=self.settings.learning_rate, weight_decay=0.0)
        self.schedule = make_schedule(optimizer, self.settings)
        return optimizer

    @translated_loader_errors()
    def run(self) -> Outcome:
        """Train from the current step to the last one, or until a signal stops the run.

        Raises:
            SkipditError: The loss is not finite, or a checkpoint could not be written.
        """
        settings, observer = self.settings, self.session.observer
        self.session.team.is_apart = True
        batches, saved, stopped = iter(self.loader()), self.step, False
        log = RunLog(settings, self.accelerator, self.step)
        row = log.last
        if self.step == 0:
            self.validate(log)
        with interrupt(observer) as stop, observer.progress("train", settings.max_train_steps) as advance:
            advance(self.step)
            while self.step < settings.max_train_steps and not stopped:
                with out_of_memory.explained(self):
                    row = self.optimize(batches)
                log.write(row)
                advance(1, self._progress_note(row))
                if settings.validation_steps and self.step % settings.validation_steps == 0:
                    self.validate(log)
                stopped = self.any_process(stop.is_set())
                if stopped or self.step % settings.checkpointing_steps == 0 or self.step == settings.max_train_steps:
                    self.save()
                    saved = self.step
        outcome = self._finish(row, saved, stopped)
        log.close()  # ends the process group
        return outcome

    def _progress_note(self, row: dict) -> str:
        """Return the loss, and of a run with a number of epochs the epoch, for the progress bar."""
        epochs, loss = self.settings.num_train_epochs, f"loss {row['loss']:.4f}"
        return loss if epochs is None else f"epoch {min(row['epoch'], epochs):.2f} of {epochs}, {loss}"

    def _finish(self, row: dict, saved: int, stopped: bool) -> Outcome:
        """Leave the averaged weights in the transformer and return how the run ended."""
        self.average.apply()
        count = sum(p.numel() for p in self.trained.values())
        self.parallelism.finish(self.model, self.transformer)
        self.transformer.eval()
        return Outcome(
            self.accelerator.is_main_process,
            self.step,
            stopped and self.step < self.settings.max_train_steps,
            count,
            str(self.checkpoints.folder(saved)) if saved else None,
            row,
            self.seconds,
            self.data_seconds,
        )

    def loader(self) -> DataLoader:
        """Return the micro-batches of this process from the current step on, without end."""
        self.order = order_of(self.session, self.step, self.recorded[DRAW_SIZE])
        return make_loader(self.session, self.dataset, self.order)

    def optimize(self, batches: Iterator[Batch]) -> dict:
        """Take one optimizer step over the next micro-batches and return its line of the metrics."""
        accelerator, start = self.accelerator, time.perf_counter()
        losses, waited = self._accumulate(batches)
        norm = self.parallelism.clip(self.trained, self.settings.max_grad_norm)
        loss, mse, vb = accelerator.reduce(losses, "mean").tolist()
        self._check_finite(loss, norm)
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
            self.average.update()
        self.optimizer.zero_grad()
        self.step += 1
        seconds = time.perf_counter() - start
        self.seconds, self.data_seconds = self.seconds + seconds, self.data_seconds + waited
        batch = self.settings.batch(accelerator.num_processes)
        times = {"seconds": seconds, "data_seconds": waited, "samples_per_second": batch / seconds}
        epoch = round(self.step * batch / len(self.session.samples), 4)
        row = {"step": self.step, "epoch": epoch, "loss": loss, "mse": mse, "vb": vb, "lr": rate, "grad_norm": norm}
        return {**row, **{name: round(value, 4) for name, value in times.items()}}

    def _accumulate(self, batches: Iterator[Batch]) -> tuple[torch.Tensor, float]:
        """Accumulate the gradients of one step; return its losses (total, mse, vb) and the seconds spent on data."""
        count, waited = self.settings.gradient_accumulation_steps, 0.0
        sums = torch.zeros(3, device=self.accelerator.device)
        self.objective.finite.clear()
        for micro in range(count):
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            with self.parallelism.accumulating(self.model) if micro < count - 1 else nullcontext():
                losses = self.forward(batch, self.step * count + micro)
                self.accelerator.backward(losses.total)
            sums += torch.stack([losses.total.detach(), losses.mse, losses.vb])
        return sums / count, waited

    def forward(self, batch: Batch, micro: int) -> Losses:
        """Return the loss of micro-batch number ``micro``."""
        return self.objective(self.model, batch, micro, 0, rows=self.order.rows(micro))

    def _check_finite(self, loss: float, norm: float) -> None:
        """Stop before a step that would spoil the weights (under fp16 the gradient scaler skips such steps)."""
        if math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler):
            return
        sample = self.objective.broken_sample(self.order)
        if sample is not None:
            raise NotFiniteError(
                f"The VAE makes NaN or infinity of {self.session.samples.name(sample)}, at step {self.step + 1}: take "
                "that file out, or give another VAE."
            )
        last = self.checkpoints.latest()
        kept = f"{last} is the last good checkpoint" if last else "no checkpoint had been saved"
        weight = first_broken((name, local_tensor(parameter)) for name, parameter in self.trained.items())
        where = f", with {weight} among the weights" if weight else ""
        raise Diverged(
            f"The loss became {loss} (gradient norm {norm}) at step {self.step + 1}{where}: {kept}; try a lower "
            "--learning-rate or --max-grad-norm."
        )

    def validate(self, log: RunLog) -> None:
        """Save and log a sample grid, made with the averaged weights, if the settings ask for it.

        Every process draws it, so that none waits for another; the main one saves it.
        """
        if not self.settings.validation_steps:
            return
        output, observer, main = self.settings.output, self.session.observer, self.accelerator.is_main_process
        self.transformer.eval()
        if main:
            note(output, f"{SAMPLES}/{grid_name(self.step)}")
        others = [other for other in transformers_of(self.pipe).values() if other is not self.transformer]
        others += getattr(self.objective.condition, "encoders", {}).values()
        with (
            self.average.applied(),
            on_device(others, self.accelerator.device),
            self.parallelism.sampling(self.transformer),
        ):
            grid = self.grid.draw(self.step, self.settings.seed, observer)
        if main:
            log.write_grid(self.grid.save(grid, output / SAMPLES, self.step, observer), self.step, self.grid.titles)
        set_train_mode(self.transformer)
        self.accelerator.wait_for_everyone()

    def any_process(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum") > 0)

    def save(self) -> None:
        """Write the checkpoint of the current step."""
        scaler = self.accelerator.scaler
        rest = {
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "average_step": self.average.steps,
            "random": gather_object([random_state()]),
        }
        weights = {name: p.detach() for name, p in self.trained.items()}
        state = TrainingState(self.step, weights, self.average.state_dict(), rest, self.recorded)
        self.parallelism.save(self.checkpoints, state, self.optimizer, self.trained)
        self.accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> None:
        """Go back to a checkpoint.

        Raises:
            UsageError: It is damaged, made under other settings, or of another model.
        """
        state = load_state(folder, self.recorded, self.settings.force_config)
        load_optimizer = partial(self.parallelism.load_optimizer, self.optimizer, self.trained)
        restore(folder, state, self.trained, self.average, load_optimizer)
        self.schedule.load_state_dict(state.rest["schedule"])
        if self.accelerator.scaler and state.rest["scaler"]:
            self.accelerator.scaler.load_state_dict(state.rest["scaler"])
        random_states = state.rest["random"]
        if self.accelerator.process_index < len(random_states):
            set_random_state(random_states[self.accelerator.process_index])
        if samples_of_step(state.settings) == samples_of_step(self.recorded):
            self.recorded[DRAW_SIZE] = draw_size_of(state.settings)
        self.step = state.step
