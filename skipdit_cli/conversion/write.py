"""Write a converted model: copy what stays, write what changes, add ``skip/``."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from skipdit_cli.conversion.conversion_plan import Conversion
from skipdit_cli.conversion.process import SIT
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.files import MARKER
from skipdit_cli.finite import first_broken
from skipdit_cli.models.build import default_scheduler, has_own_time, pipeline_around
from skipdit_cli.models.folder import (
    add_pipeline_code,
    copy_legal,
    drop_paths,
    drop_variant,
    name_as_now,
    save_branches,
    write_config,
)
from skipdit_cli.models.index import INDEX, parts_of
from skipdit_cli.models.weights import (
    STEM,
    files_in,
    index_file,
    read_json,
    read_tensors,
    read_weights,
    weight_files,
    write_tensors,
)
from skipdit_cli.skip.time_embedding import RECORD

WEIGHTS = (".safetensors", ".bin", ".msgpack", ".onnx", ".pt", ".ckpt", ".index.json")
"""Endings of weight files and of their indices."""


def check_copied_parts(plan: Conversion) -> None:
    """Check that the parts that are copied as they are (VAE, text encoder) hold finite numbers.

    The transformer is checked when the conversion is planned.

    Raises:
        NotFiniteError: A part holds NaN or infinity.
    """
    folder = plan.source.pipeline
    files = [file for part in parts_of(folder) if part not in TRANSFORMERS for file in files_in(folder / part)]
    files += [] if plan.text is None else plan.text.files()
    for file in files:
        weight = first_broken(read_tensors(file).items()) if file.suffix == ".safetensors" else None
        if weight is not None:
            raise NotFiniteError(f"{file} holds {weight}; nothing was written. Get it again.")


def write_model(plan: Conversion, folder: Path) -> None:
    """Fill a folder with the converted model: a pipeline, or a transformer alone if the source is one.

    The folder's configs name no path of this machine, and its classes as diffusers names them now.
    """
    source = plan.source
    if source.alone:
        _copy_part(source.transformer, folder, plan.dtype)
    elif source.pipeline is None:
        _write_new_pipeline(plan, folder)
    else:
        _copy_pipeline(plan, folder)
    for each in plan.conversions:
        weights = each.source.weights()
        dtype = plan.dtype or next(iter(weights.values())).dtype
        save_branches(torch.nn.Module.to(each.branches, dtype=dtype), folder, each.source.part, weights)
    drop_paths(folder)
    name_as_now(folder)
    add_pipeline_code(folder)
    for each in plan.conversions:
        _record_time_embedding(each, folder if source.alone else folder / each.source.part)


def _copy_pipeline(plan: Conversion, folder: Path) -> None:
    """Copy a pipeline; only ``.bin`` weights, and those of another dtype, are written anew."""
    source = plan.source.pipeline
    shutil.copyfile(source / INDEX, folder / INDEX)
    copy_legal(source, folder)
    for part in parts_of(source):
        _copy_part(source / part, folder / part, plan.dtype if part in TRANSFORMERS else None)


def _copy_part(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Copy one part of a pipeline; its weights as one safetensors file where ``dtype`` or their format wants it."""
    if not any(source.glob(f"{STEM}*")):
        shutil.copytree(source, target)  # a scheduler, say
        drop_variant(target)
        return
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS) and file.name != MARKER:
            shutil.copyfile(file, target / file.name)
    files = weight_files(source)
    if dtype is not None or files[0].suffix == ".bin":
        write_tensors(read_weights(source), target / f"{STEM}.safetensors", dtype)
        return
    for file in filter(None, [*files, index_file(source)]):
        shutil.copyfile(file, target / file.name)
    drop_variant(target)


def _write_new_pipeline(plan: Conversion, folder: Path) -> None:
    """Write a pipeline around a transformer: its repository's noise schedule, and a VAE if one was given."""
    transformer, target = plan.build_empty(), folder / "transformer"
    if plan.source.transformer is not None:
        _copy_part(plan.source.transformer, target, plan.dtype)
    else:
        transformer.save_config(target)
        write_tensors(plan.source.weights(), target / f"{STEM}.safetensors", plan.dtype)
    scheduler = default_scheduler(transformer.config["_class_name"], flow=plan.source.process == SIT)
    scheduler.save_pretrained(folder / "scheduler")
    if plan.vae is not None:
        plan.vae.save_pretrained(folder / "vae")
    pipeline_around(transformer, scheduler, plan.vae).save_config(folder)
    if plan.text is not None:
        plan.text.copy_into(folder)


def _record_time_embedding(plan: Conversion, transformer: Path) -> None:
    """Record the time embedding in the transformer's own config, too: it may be used without its branches."""
    file, kind = transformer / "config.json", plan.branches.config.time_embedding
    config = read_json(file)
    if not has_own_time(config["_class_name"]) and (kind != "diffusers" or RECORD in config):
        write_config(file, {**config, RECORD: kind})
