"""The data of a run: the size of its images, latents and captions encoded in advance, and the data loader."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.processes import Team
from skipdit_cli.sampling.latents import spatial_compression
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters
from skipdit_cli.training.data.latent_dataset import Latents
from skipdit_cli.training.data.order import Choice, Order
from skipdit_cli.training.data.pixel_dataset import Pixels, collate
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.data_settings import DataSettings
from skipdit_cli.training.encoded.section import check_room
from skipdit_cli.training.encoded.tensor_store import Store
from skipdit_cli.training.objective.conditioning import CaptionConditioning
from skipdit_cli.training.objective.objective import Objective
from skipdit_cli.training.objective.text_conditioning import patch_of, text_conditioning_of
from skipdit_cli.training.observer import Observer
from skipdit_cli.training.run.interrupt import ignore_signals
from skipdit_cli.training.run.session import Session


def set_up_data(session: Session, pipe) -> tuple[tuple[int, int], Dataset, Objective]:
    """Return (height, width) of the images, the data set and the objective of a run.

    Raises:
        UsageError: The data, the settings and the model do not go together.
    """
    settings, device = session.settings, session.accelerator.device
    size, channels = image_shape(pipe, settings.height, settings.width)
    store = None if settings.cache_latents is None else store_of(settings, session.samples, session.observer)
    pixels = Pixels(session.samples, size, channels, session.num_frames, settings.frame_stride)
    objective = Objective(
        pipe,
        device,
        settings.seed,
        settings.label_dropout,
        store,
        settings.weighting,
        session.expert,
        session.observer,
    )
    dataset: Dataset = pixels
    if store is not None:
        dataset = latents = latents_of(settings, pipe.vae, pixels, store, device, session.team)
        work = latents.plan()
        check_room(store, session.team, work)
        latents.encode(work, image_loader(settings, pixels))
    if isinstance(objective.condition, CaptionConditioning):
        encode_captions(session, objective.condition, store)
    return size, dataset, objective


def image_shape(pipe, height: int | None = None, width: int | None = None) -> tuple[tuple[int, int], int]:
    """Return ((height, width), channels) of the images that a pipeline is trained on.

    Args:
        height, width: The size in the settings; None for the model's own.
    Raises:
        UsageError: The model works on latents and has no VAE to make them, or it has no such size.
    """
    config, vae = transformer_of(pipe).config, pipe.vae
    if vae is None and config.in_channels not in (1, 3):
        raise UsageError(
            f"The model has {config.in_channels} channels, so it works on latents, but it has no VAE to make them: "
            "give 'train' a --vae FOLDER_OR_HUB_ID, or 'finetune' a folder that holds vae/."
        )
    unit, size = 1 if vae is None else spatial_compression(vae), default_size(pipe)
    for axis, (flag, pixels, patch) in enumerate(zip(("--height", "--width"), (height, width), patch_of(pipe))):
        if pixels is None:
            continue
        if text_conditioning_of(pipe) is None and pixels != size[axis]:
            raise UsageError(f"Got {flag} {pixels}, but this model is of {size[axis]} pixels; leave the flag out.")
        if pixels % (unit * patch):
            raise UsageError(f"Got {flag} {pixels} but expected a multiple of {unit * patch}.")
        size[axis] = pixels
    return tuple(size), config.in_channels if vae is None else vae.config.in_channels


def default_size(pipe) -> list[int]:
    """Return height and width of the images of a model, from its config or its pipeline."""
    unit, config = 1 if pipe.vae is None else spatial_compression(pipe.vae), transformer_of(pipe).config
    if "sample_size" in config:
        return [unit * config.sample_size] * 2
    defaults = [call_parameters(pipe)[name].default for name in ("height", "width")]
    return [unit * pipe.default_sample_size if pixels is None else pixels for pixels in defaults]


def store_of(settings: DataSettings, samples: SampleSet, observer: Observer) -> Store:
    """Return the store of ``--cache-latents``, whose shards record the data source."""
    return Store(
        settings.cache_latents, observer, {"source": settings.data, "samples": len(samples), "files": samples.files}
    )


def latents_of(settings: DataSettings, vae, pixels: Pixels, store: Store, device: torch.device, team: Team) -> Latents:
    """Return the latents of the samples, which may still have to be encoded.

    Raises:
        UsageError: The model has no VAE.
    """
    if vae is None:
        raise UsageError("Got --cache-latents, but this model works on pixels; leave the flag out.")
    return Latents(pixels, vae, store, device, settings.random_flip, team)


def image_loader(settings: DataSettings, pixels: Pixels):
    """Return a function that reads samples for their encoding, in as many processes as the settings say."""

    def load(choices: list[Choice]) -> Iterator[tuple]:
        with translated_loader_errors():
            yield from DataLoader(
                pixels,
                batch_size=None,
                sampler=choices,
                num_workers=settings.dataloader_num_workers,
                worker_init_fn=ignore_signals,
                generator=torch.Generator(),
            )

    return load if settings.dataloader_num_workers else None


def captions_of(settings: DataSettings, samples: SampleSet) -> set[str]:
    """Return the captions of the samples, with the empty one where captions are dropped."""
    return {*samples.conditions, *([""] if settings.label_dropout else [])}


def encode_captions(session: Session, conditioning: CaptionConditioning, store: Store | None) -> None:
    """Encode every caption once, if all can be kept: in a store, shared among the processes, or in memory.

    The text encoders then leave the device.
    """
    captions = captions_of(session.settings, session.samples)
    if store is None:
        if not conditioning.remember(captions):
            return
    else:
        work = conditioning.plan(captions, session.team)
        check_room(store, session.team, work)
        conditioning.prepare(work, session.team)
    conditioning.release()


def order_of(session: Session, step: int, draw_size: int) -> Order:
    """Return the order of this process's micro-batches from an optimizer step on.

    Args:
        draw_size: The samples whose random numbers are drawn together.
    """
    settings, accelerator = session.settings, session.accelerator
    return Order(
        settings.seed,
        len(session.samples),
        settings.train_batch_size,
        settings.gradient_accumulation_steps,
        accelerator.process_index,
        accelerator.num_processes,
        step,
        settings.random_flip,
        settings.random_clip,
        settings.crop == "random",
        settings.image_frames,
        draw_size,
    )


def make_loader(session: Session, dataset: Dataset, order: Order) -> DataLoader:
    """Return a data loader of the micro-batches of an order, without end."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=session.settings.dataloader_num_workers,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # without one, the loader draws a number from torch's global generator
        pin_memory=session.accelerator.device.type == "cuda",
    )


@contextmanager
def translated_loader_errors() -> Iterator[None]:
    """Translate the errors of a data loader's processes, and end those; torch raises one's death wherever the run
    is by then.

    Raises:
        SkipditError: A file can no longer be read, or a process that reads files died.
    """
    try:
        yield
    except BaseException as cause:
        # They hold the loader, whose processes ignore SIGTERM: Python would end them by it at its exit, and wait.
        traceback.clear_frames(cause.__traceback__)
        if isinstance(cause, SkipditError) and "in DataLoader worker process" in cause.given:
            # A process of the loader sends its whole traceback as the message, whose last line is the error.
            raise SkipditError(cause.given.strip().splitlines()[-1].split(": ", 1)[-1]) from cause
        if isinstance(cause, RuntimeError) and "DataLoader worker" in str(cause):
            raise SkipditError(
                f"A process that reads the data died ({first_line(cause)}); try a smaller --dataloader-num-workers."
            ) from cause
        raise
