"""From any source to a pipeline folder with ``skip/``, and the proof that nothing else changed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from skipdit_cli.cards.card import Origin, write_card
from skipdit_cli.conversion.plan import Conversion
from skipdit_cli.conversion.process import SIT
from skipdit_cli.conversion.proof import Proof, prove
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families.pipeline_parts import SECOND, TRANSFORMERS
from skipdit_cli.files import CONVERT, MARKER, check_apart, check_folder, check_outside, replace_folder
from skipdit_cli.finite import first_broken
from skipdit_cli.models.build import default_scheduler, has_own_time, pipeline_around
from skipdit_cli.models.folder import (
    copy_legal,
    drop_paths,
    drop_variant,
    name_as_now,
    save_branches,
    write_config,
)
from skipdit_cli.models.index import INDEX, parts_of
from skipdit_cli.models.variants import files_in
from skipdit_cli.models.weights import (
    STEM,
    index_file,
    read_json,
    read_tensors,
    read_weights,
    weight_files,
    write_tensors,
)
from skipdit_cli.skip.time_embedding import RECORD

WEIGHTS = (".safetensors", ".bin", ".msgpack", ".onnx", ".pt", ".ckpt", ".index.json")


def convert(plan: Conversion, output, origin: Origin, overwrite: bool = False, verify: bool = True) -> Proof:
    """Write the converted folder with its card, and prove, from what is on disk, that nothing else changed.

    It is a pipeline's, or that of a transformer alone if that is all there is (``Source.alone``).

    Raises:
        UsageError: The output cannot be written there, or the source is damaged.
        NotFiniteError: A part of it holds NaN or infinity.
        SkipditError: Writing failed, or the proof did; nothing is kept.
    """
    source = plan.source
    check_output(output, overwrite, {"model": source.place})
    source.build()  # whether weights and config fit, before anything is written
    if verify:
        _check_others(plan)
    with replace_folder(output, CONVERT, overwrite, plan.needed_bytes()) as folder:
        if source.alone:
            _copy_part(source.transformer, folder, plan.dtype)
        elif source.pipeline is None:
            _write_new_pipeline(plan, folder)
        else:
            _copy_pipeline(plan, folder)
        plans = [plan] if plan.second is None else [plan, plan.second]
        for each in plans:
            reference = next(iter(each.source.weights().values())).dtype
            branches = torch.nn.Module.to(each.branches, dtype=plan.dtype or reference)
            save_branches(branches, folder, each.source.part)
        drop_paths(folder)
        name_as_now(folder)
        for each in plans:
            _note_time_embedding(each, folder if source.alone else folder / each.source.part)
        proof = Proof()
        if verify:
            for each in plans:
                prove(each, folder)
            proof = Proof(weights=True, outputs=True if plan.provable else None)
        write_card(folder, origin, {"source": f"{origin.source}, {source.layout}", "conversion": proof})
    return proof


def check_output(output: Path, overwrite: bool, reads: Mapping[str, object]) -> None:
    """
    Args:
        reads: As for ``check_apart``.
    Raises:
        UsageError: A folder cannot be written at ``output`` beside what is read; nothing was.
    """
    check_apart(output, reads)
    check_outside(output, reads)
    check_folder(output, CONVERT, overwrite)


def _note_time_embedding(plan: Conversion, transformer: Path) -> None:
    """In the transformer's own config, too: it may be used without its branches."""
    file, kind = transformer / "config.json", plan.branches.config.time_embedding
    config = read_json(file)
    if not has_own_time(config["_class_name"]) and (kind != "diffusers" or RECORD in config):
        write_config(file, {**config, RECORD: kind})


def _check_others(plan: Conversion) -> None:
    """The parts that are copied as they are hold numbers (the transformer is looked at when the work is planned).

    Raises:
        NotFiniteError: One holds NaN or infinity.
    """
    folder = plan.source.pipeline
    files = [file for part in parts_of(folder) if part not in TRANSFORMERS for file in files_in(folder / part)]
    files += [] if plan.text is None else plan.text.files()
    for file in files:
        where = first_broken(read_tensors(file).items()) if file.suffix == ".safetensors" else None
        if where is not None:
            raise NotFiniteError(f"{file} holds {where}; nothing was written. Get it again.")


def _copy_pipeline(plan: Conversion, folder: Path) -> None:
    """Copy the source as it is; only ``.bin`` weights, and those of another dtype, are written anew."""
    source = plan.source.pipeline
    shutil.copyfile(source / INDEX, folder / INDEX)
    copy_legal(source, folder)
    for part in parts_of(source):
        _copy_part(source / part, folder / part, plan.dtype if part in ("transformer", SECOND) else None)


def _copy_part(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
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
    """A pipeline around a lone transformer: its repository's noise schedule, and a decoder if one was given."""
    transformer, target = plan.model(), folder / "transformer"
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
