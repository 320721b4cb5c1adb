"""What ``skipdit prepare`` does: encode the samples and captions of a data set, by all processes together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.models import load_vae
from skipdit_cli.models.weights import read_json
from skipdit_cli.presets import load_preset
from skipdit_cli.processes import join
from skipdit_cli.sampling.device import select_device
from skipdit_cli.training.data.demand import EXPERTS, Demand, demand_of
from skipdit_cli.training.data.pixel_dataset import Pixels
from skipdit_cli.training.data.samples import SampleSet
from skipdit_cli.training.encoded.section import Work, check_room
from skipdit_cli.training.objective.conditioning import CaptionConditioning, conditioning_of
from skipdit_cli.training.observer import SILENT, Observer
from skipdit_cli.training.prepare_settings import PrepareSettings
from skipdit_cli.training.run import base_model
from skipdit_cli.training.run.run_folder import INDEX
from skipdit_cli.training.run.session import read_data
from skipdit_cli.training.run.training_data import (
    captions_of,
    image_loader,
    image_shape,
    latents_of,
    store_of,
)


@dataclass(frozen=True)
class Prepared:
    """What was encoded, or in a dry run what would be.

    Args:
        main: Whether this process is the one that reports.
        works: What was missing at the start, the latents first.
    """

    main: bool
    samples: SampleSet
    works: list[Work] = field(default_factory=list)
    shards: int = 0
    free: int = 0
    seconds: float = 0.0


def prepare_data(
    settings: PrepareSettings, model: str | None, preset: str | None, observer: Observer = SILENT
) -> Prepared:
    """Encode the samples and captions of a data set into the shards of ``--cache-latents``.

    Shards that are there and intact are kept, whichever run wrote them; all checksums are compared.

    Raises:
        UsageError: The model, the data or the settings cannot be used, or the disk has too little room.
        SkipditError: A shard cannot be written.
    """
    source, start = settings.source, time.perf_counter()
    team, device = join(), select_device()[0]
    observer = observer if team.is_main else SILENT
    demand, load = _encoders(settings, model, preset)
    samples, num_frames = read_data(source, demand, observer)
    pipe, store = load(), store_of(source, samples, observer)
    size, channels = image_shape(pipe, source.height, source.width)
    pixels = Pixels(samples, size, channels, num_frames, source.frame_stride)
    if pipe.vae is None:
        raise UsageError("Got a model that works on pixels, so nothing is encoded; train it without --cache-latents.")
    pipe.vae.requires_grad_(False).eval().to(device)
    latents = latents_of(source, pipe.vae, pixels, store, device, team)
    works = [latents.plan(thorough=True)]
    conditioning = conditioning_of(pipe, device, store, observer) if demand.captions else None
    if isinstance(conditioning, CaptionConditioning):
        works.append(conditioning.plan(captions_of(source, samples), team))
    check_room(store, team, *works)
    if not settings.dry_run:
        latents.encode(works[0], image_loader(source, pixels))
        pipe.vae.to("cpu")
        if isinstance(conditioning, CaptionConditioning):
            conditioning.prepare(works[1], team)
    main, shards, free = team.is_main, len(store.shards()[0]), store.free_bytes()
    return Prepared(main, samples, works, shards, free, time.perf_counter() - start)


def _encoders(settings: PrepareSettings, model: str | None, preset: str | None):
    """Return what the model requires of its data, and a function that loads its encoders."""
    if settings.vae is not None:
        chosen, vae = load_preset(str(preset)), settings.vae
        config = base_model.trainable_config(chosen, True)
        demand = demand_of(config, f"Preset {preset}")
        return demand, lambda: base_model.new_encoders(chosen, load_vae(vae, config["in_channels"]))
    folder = base_model.model_folder(model, preset, **vars(settings.hub))
    return _demand(folder), lambda: base_model.open_encoders(folder)


def _demand(folder: Path) -> Demand:
    """Return what a model requires of its data; the two transformers of a pipeline share their latents and texts."""
    has_two = (read_json(folder / INDEX).get(EXPERTS["low"]) or [None])[0] is not None
    return base_model.demand_of_folder(folder, "high" if has_two else None)
