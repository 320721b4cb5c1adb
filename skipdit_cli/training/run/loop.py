"""The training loop, on accelerate: one process or many (``accelerate launch -m skipdit_cli finetune ...``)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object, set_seed
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from skipdit_cli import console
from skipdit_cli.errors import NotFiniteError, SkipditError, UsageError
from skipdit_cli.families.pipeline_parts import transformer_of, transformers_of
from skipdit_cli.files import names_in, note
from skipdit_cli.finite import first_broken
from skipdit_cli.training.data.crops import Batch, Pixels, collate, next_batch
from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.data.encoding import Latents
from skipdit_cli.training.data.order import Order
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.data.store import Store, fingerprint_of_adapters
from skipdit_cli.training.objective.conditioning import CaptionConditioning
from skipdit_cli.training.objective.loss import Losses
from skipdit_cli.training.objective.micro_batch import Objective
from skipdit_cli.training.run.interrupt import deaf_worker, interrupt
from skipdit_cli.training.run.logs import Metrics, grid_name, grid_run, save_grid
from skipdit_cli.training.run.prepare import make_schedule, pixel_shape, set_train_mode
from skipdit_cli.training.run.state import (
    METRICS,
    SAMPLES,
    Checkpoints,
    TrainingState,
    load_state,
    random_state,
    set_random_state,
)
from skipdit_cli.training.training_settings import TrainingSettings


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``checkpoint`` is the newest one, ``last`` the last line of its metrics, ``main`` whether this
    process is the one that writes and speaks; ``seconds`` all its steps, of which ``data_seconds`` were waiting."""

    main: bool
    step: int
    interrupted: bool
    trained_parameters: int
    checkpoint: str | None
    last: dict
    seconds: float
    data_seconds: float


class Diverged(SkipditError):
    """The loss, or the norm of its gradient, is no number: what was trained so far leads there."""


class Trainer:
    """Trains a transformer of the pipeline in place; at the end of ``run`` it holds the averaged weights.

    Args:
        pipe: A pipeline in float32; ``vae`` is None for a model of pixels.
        num_frames: Of a clip; None for a model of images.
        only_branches: Train the skip branches alone, the trunk frozen (stage 1 of Skip-DiT).
        expert: Which of two transformers, see ``demand.EXPERTS``; the other one may be missing where no grids are
            asked for.
    Raises:
        UsageError: The settings, the machine and the model do not go together.
    """

    def __init__(
        self,
        pipe,
        samples: SampleSet,
        num_frames: int | None,
        settings: TrainingSettings,
        accelerator,
        only_branches: bool = False,
        expert: str | None = None,
    ):
        self.pipe, self.settings, self.accelerator, self.expert = pipe, settings, accelerator, expert
        self.transformer = transformer_of(pipe) if expert is None else getattr(pipe, EXPERTS[expert])
        set_seed(settings.seed)
        self.checkpoints = Checkpoints(settings.output)
        set_train_mode(self.transformer, only_branches)
        self.trained = {name: p for name, p in self.transformer.named_parameters() if p.requires_grad}
        self.checkpoints.check_room(self.trained)
        if settings.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        if pipe.vae is not None:
            pipe.vae.to(self.accelerator.device).requires_grad_(False).eval()
        self.recorded = {**settings.recorded(), "only_branches": only_branches, **samples.recorded()}
        self.recorded |= {
            "processes": self.accelerator.num_processes,
            "lora": fingerprint_of_adapters(self.transformer),
        }
        self.recorded["expert"] = expert
        store = None if settings.cache_latents is None else Store(settings.cache_latents)
        size, channels = pixel_shape(pipe, settings.height, settings.width)
        pixels = Pixels(samples, size, channels, num_frames, settings.frame_stride)
        device, dropout = self.accelerator.device, settings.label_dropout
        self.objective = Objective(pipe, device, settings.seed, dropout, store, settings.weighting, expert)
        self.data = pixels if store is None else self.encoded(pixels, store)
        if store is not None and isinstance(self.objective.condition, CaptionConditioning):
            self.encode_texts(self.objective.condition, {*samples.conditions, *([""] if dropout else [])})
        optimizer = torch.optim.AdamW(self.trained.values(), lr=settings.learning_rate, weight_decay=0.0)
        self.grid = grid_run(samples, pipe, num_frames, size)
        self.schedule = make_schedule(optimizer, settings)
        self.model, self.optimizer = self.accelerator.prepare(self.transformer, optimizer)
        parameters = list(self.trained.values())
        self.average = EMAModel(parameters, decay=settings.ema_decay, foreach=True) if settings.use_ema else None
        self.step, self.seconds, self.data_seconds = 0, 0.0, 0.0

    def run(self) -> Outcome:
        """Train from the step reached to the last one, or until SIGINT.

        Raises:
            SkipditError: The loss is no number, or a checkpoint could not be written.
        """
        settings, accelerator = self.settings, self.accelerator
        main, saved = accelerator.is_main_process, self.step
        metrics = Metrics(settings.output / METRICS, self.step) if main else None
        row, stopped, batches = {}, False, iter(self.loader())
        if main and settings.report_to != "none":
            logs = settings.output / "logs"
            before = {*names_in(logs)}
            accelerator.init_trackers("skipdit")  # which chooses the names of its files
            note(settings.output, *(f"logs/{name}" for name in {*names_in(logs)} - before))
        if self.step == 0:
            self.validate()
        progress = console.progress("train", settings.max_train_steps) if main else nullcontext(_silent)
        with interrupt() as asked, progress as advance:
            advance(self.step)
            while self.step < settings.max_train_steps and not stopped:
                row = self.optimize(batches)
                if main:
                    metrics.write(row)
                    accelerator.log({key: value for key, value in row.items() if key != "step"}, step=self.step)
                advance(1, f"loss {row['loss']:.4f}")
                if settings.validation_steps and self.step % settings.validation_steps == 0:
                    self.validate()
                stopped = self.anyone(asked.is_set())
                if stopped or self.step % settings.checkpointing_steps == 0 or self.step == settings.max_train_steps:
                    self.save()
                    saved = self.step
        if main:
            metrics.close()
        accelerator.end_training()
        self.model = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.average:
            self.average.copy_to(self.trained.values())
        self.transformer.eval()
        interrupted = stopped and self.step < settings.max_train_steps
        count = sum(p.numel() for p in self.trained.values())
        checkpoint = str(self.checkpoints.folder(saved)) if saved else None
        return Outcome(main, self.step, interrupted, count, checkpoint, row, self.seconds, self.data_seconds)

    def loader(self) -> DataLoader:
        """Micro-batches of this process from the step reached, without end."""
        settings = self.settings
        self.order = Order(
            settings.seed,
            len(self.data),
            settings.train_batch_size,
            settings.gradient_accumulation_steps,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.step,
            settings.random_flip,
            settings.random_clip,
            settings.crop == "random",
            settings.image_frames,
        )
        # A generator of its own: without one the loader would draw a number from torch's.
        return DataLoader(
            self.data,
            batch_sampler=self.order,
            num_workers=settings.dataloader_num_workers,
            collate_fn=collate,
            worker_init_fn=deaf_worker,
            generator=torch.Generator(),
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def optimize(self, batches: Iterator) -> dict:
        """One optimizer step over the next micro-batches; its line of the metrics."""
        settings, accelerator, began = self.settings, self.accelerator, time.perf_counter()
        count, waited = settings.gradient_accumulation_steps, 0.0
        sums = torch.zeros(3, device=accelerator.device)
        self.objective.finite.clear()
        for micro in range(count):
            asked = time.perf_counter()
            batch = next_batch(batches)
            waited += time.perf_counter() - asked
            with accelerator.no_sync(self.model) if micro < count - 1 else nullcontext():
                losses = self.forward(batch, self.step * count + micro)
                accelerator.backward(losses.total)
            sums += torch.stack([losses.total.detach(), losses.mse, losses.vb])
        norm = accelerator.clip_grad_norm_(self.trained.values(), settings.max_grad_norm or math.inf)
        loss, mse, vb = accelerator.reduce(sums / count, "mean").tolist()
        self.refuse_nan(loss, float(norm))
        rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
            if self.average:
                self.average.step(self.trained.values())
        self.optimizer.zero_grad()
        self.step += 1
        seconds = time.perf_counter() - began
        self.seconds, self.data_seconds = self.seconds + seconds, self.data_seconds + waited
        speed = settings.train_batch_size * count * accelerator.num_processes / seconds
        row = {"step": self.step, "loss": loss, "mse": mse, "vb": vb, "lr": rate, "grad_norm": float(norm)}
        times = {"seconds": seconds, "data_seconds": waited, "samples_per_second": speed}
        return {**row, **{name: round(value, 4) for name, value in times.items()}}

    def forward(self, batch: Batch, micro: int) -> Losses:
        """The loss of micro-batch number ``micro``."""
        return self.objective(self.model, batch, micro, self.accelerator.process_index)

    def encoded(self, pixels: Pixels, store: Store) -> Latents:
        """The latents of all samples, each made once and kept."""
        accelerator = self.accelerator
        if self.pipe.vae is None:
            raise UsageError("Got --cache-latents, but this model works on pixels; leave the flag out.")
        latents = Latents(pixels, self.pipe.vae, store, accelerator.device, self.settings.random_flip)
        latents.encode(accelerator.process_index, accelerator.num_processes)
        accelerator.wait_for_everyone()
        return latents

    def encode_texts(self, condition: CaptionConditioning, texts: set[str]) -> None:
        """Each text made once and kept; the encoders then leave the device, unless grids will want them."""
        condition.prepare(texts, self.accelerator.process_index, self.accelerator.num_processes)
        self.accelerator.wait_for_everyone()
        if not self.settings.validation_steps:
            condition.release()

    def refuse_nan(self, loss: float, norm: float) -> None:
        """Stop before a step that would spoil the weights (under fp16 the scaler skips such steps itself)."""
        if math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler):
            return
        sample = self.objective.broken_sample(self.order)
        if sample is not None:
            raise NotFiniteError(
                f"The VAE makes NaN or infinity of {self.data.samples.name(sample)}, at step {self.step + 1}: take "
                "that file out, or give another VAE."
            )
        last = self.checkpoints.latest()
        kept = f"{last} is the last good checkpoint" if last else "no checkpoint had been saved"
        where = first_broken(self.trained.items())
        weight = f", with {where} among the weights" if where else ""
        raise Diverged(
            f"The loss became {loss} (gradient norm {norm}) at step {self.step + 1}{weight}: {kept}; try a lower "
            "--learning-rate or --max-grad-norm."
        )

    def validate(self) -> None:
        """The sample grid of this step, with the averaged weights."""
        if not self.settings.validation_steps:
            return
        if self.accelerator.is_main_process:
            parameters = list(self.trained.values())
            if self.average:
                self.average.store(parameters)
                self.average.copy_to(parameters)
            self.transformer.eval()
            others = [other for other in transformers_of(self.pipe).values() if other is not self.transformer]
            for other in others:
                other.to(self.accelerator.device)
            note(self.settings.output, f"{SAMPLES}/{grid_name(self.step)}")
            save_grid(self.pipe, self.grid, self.settings.output / SAMPLES, self.step, self.settings.seed)
            for other in others:
                other.to("cpu")
            if self.average:
                self.average.restore(parameters)
            set_train_mode(self.transformer)
        self.accelerator.wait_for_everyone()

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flags, "sum") > 0)

    def save(self) -> None:
        """Write the checkpoint of this step, from the main process."""
        by_process = gather_object([random_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            rest = {
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
                "average_step": self.average.optimization_step if self.average else 0,
                "random": by_process,
            }
            weights = {name: p.detach() for name, p in self.trained.items()}
            average = dict(zip(weights, self.average.shadow_params)) if self.average else {}
            state = TrainingState(self.step, weights, average, rest, self.recorded)
            self.checkpoints.save(state, self.settings.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def resume(self, folder) -> None:
        """Go back to a checkpoint.

        Raises:
            UsageError: It is damaged, made under other settings, or of another model.
        """
        state = load_state(folder, self.recorded, self.settings.force_config)
        shapes = {name: p.shape for name, p in self.trained.items()}
        if {name: tensor.shape for name, tensor in state.weights.items()} != shapes:
            raise UsageError(f"Checkpoint {folder} holds other weights than this run trains; give the model it is of.")
        for name, parameter in self.trained.items():
            parameter.copy_(state.weights[name])
        if self.average:
            held = state.average or state.weights
            for name, shadow in zip(self.trained, self.average.shadow_params):
                shadow.copy_(held[name])
            self.average.optimization_step = state.rest["average_step"]
        self.optimizer.load_state_dict(state.rest["optimizer"])
        self.schedule.load_state_dict(state.rest["schedule"])
        if self.accelerator.scaler and state.rest["scaler"]:
            self.accelerator.scaler.load_state_dict(state.rest["scaler"])
        by_process = state.rest["random"]
        if self.accelerator.process_index < len(by_process):
            set_random_state(by_process[self.accelerator.process_index])
        self.step = state.step


def _silent(count: int = 1, note: str = "") -> None:
    """Progress of the processes that are not the main one."""
