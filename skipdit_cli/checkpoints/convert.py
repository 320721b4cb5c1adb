"""From any source to a pipeline folder with ``skip/``, and the proof that nothing else changed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open

from skipdit_cli.backbones import BACKBONES, example_inputs, trunk_of
from skipdit_cli.checkpoints.architecture import (
    OFFICIAL,
    build_transformer,
    default_scheduler,
    has_own_time,
    pipeline_around,
    set_time_embedding,
)
from skipdit_cli.checkpoints.card import Origin, write_card
from skipdit_cli.checkpoints.folder import check_target, copy_legal, drop_paths, replace_folder, save_branches
from skipdit_cli.checkpoints.pipeline import INDEX, SECOND, load_branches, load_pipeline
from skipdit_cli.checkpoints.source import Source
from skipdit_cli.checkpoints.text_parts import TextParts
from skipdit_cli.checkpoints.weights import (
    STEM,
    first_line,
    read_json,
    read_weights,
    weight_files,
    write_tensors,
)
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.skip import SkipBranches, add_skip_branches, remove_skip_branches

WEIGHTS = (".safetensors", ".bin", ".msgpack", ".onnx", ".pt", ".ckpt", ".index.json")


@dataclass(frozen=True)
class Conversion:
    """What a conversion does, decided before anything is written.

    Args:
        source: What is converted.
        branches: The skip branches it gets, with merge and time embedding in their config.
        time_embedding_why: Why that time embedding.
        dtype: Of the transformer and branches that are written; None keeps the source's.
        vae: A decoder to put into a pipeline that has none.
        text: Tokenizer, text encoder and, without ``vae``, decoder to put into it.
        second: The same for the second transformer of the pipeline, if it has one.
    """

    source: Source
    branches: SkipBranches
    time_embedding_why: str
    dtype: torch.dtype | None = None
    vae: object = None
    text: TextParts | None = None
    second: Conversion | None = None

    @property
    def provable(self) -> bool:
        """Whether outputs with and without the branches must be the same bit for bit."""
        return self.branches.config.merge == "residual"

    def model(self):
        """The converted transformer without weights, to count on."""
        with init_empty_weights():
            transformer = build_transformer(self.source.config)
            settings = self.branches.config.items()
            branches = SkipBranches(**{name: value for name, value in settings if not name.startswith("_")})
        add_skip_branches(transformer, branches=branches)
        return transformer

    def needed_bytes(self) -> int:
        """Disk that the output takes."""
        tensors = [*self.source.weights().values(), *self.branches.state_dict().values()]
        size = sum(t.numel() * (self.dtype.itemsize if self.dtype else t.element_size()) for t in tensors)
        folder, second = self.source.pipeline, self.second
        if second is not None:
            size += sum(t.numel() * t.element_size() for t in second.branches.state_dict().values())
        others = [file for part in _parts(folder) if part != "transformer" for file in (folder / part).rglob("*")]
        others += self.text.files() if self.text else []
        return size + sum(file.stat().st_size for file in others if file.is_file())


def plan_conversion(
    source: Source,
    merge: str | None = None,
    time_embedding: str = "auto",
    dtype: torch.dtype | None = None,
    vae=None,
    text: TextParts | None = None,
) -> Conversion:
    """Decide the merge and the time embedding, and make the branches.

    Raises:
        UsageError: A choice contradicts the source.
    """
    name = source.config["_class_name"]
    if source.pipeline is None and name not in OFFICIAL:
        raise UsageError(f"Model {source.name} is a {name} alone; give the folder of its whole pipeline.")
    if source.branches is None:
        branches = _new_branches(source, merge or "residual")
    elif merge in (None, source.branches.config.merge):
        branches = source.branches
    else:
        raise UsageError(f"Got --merge {merge}, but {source.name} brings trained branches of the 'replace' merge.")
    if not branches.num_pairs:
        raise UsageError(f"Model {source.name} has {branches.config.num_layers} block, too few for a skip branch.")
    if time_embedding == "diffusers" and has_own_time(name):
        raise UsageError(f"Got --time-embedding diffusers, but a {name} has the official one alone.")
    if time_embedding != "auto":
        kind, why = time_embedding, "as --time-embedding says"
    elif source.official:
        kind, why = "official", source.official
    else:
        kind, why = (
            "diffusers",
            "nothing says that the weights are the DiT repository's; --time-embedding official if so",
        )
    branches.register_to_config(time_embedding=kind)
    for flag, part in {"--vae": vae, "--text-from": text}.items():
        if part is not None and source.pipeline is not None:
            raise UsageError(f"Got {flag}, but {source.name} is a whole pipeline; leave it out.")
    second = None if source.second is None else plan_conversion(source.second, merge, time_embedding, dtype)
    return Conversion(source, branches, why, dtype, vae, text, second)


def _new_branches(source: Source, merge: str) -> SkipBranches:
    """Branches as the model wants them: by its declaration, or by a forward of small noise where there is none.

    Raises:
        UsageError: It has no trunk, or no forward of it can be made up.
    """
    name = source.config["_class_name"]
    if name in BACKBONES:
        with init_empty_weights():
            trunk = trunk_of(build_transformer(source.config))
        return SkipBranches(trunk.width, len(trunk), merge, backbone=name)
    model = source.build()
    try:
        return add_skip_branches(model, merge, small_inputs(model))
    except UsageError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as cause:
        raise UsageError(
            f"Model {source.name} is a {name}, of which no example inputs can be made up ({first_line(cause)}); "
            "call add_skip_branches with example_inputs in Python, then the pipeline's save_pretrained."
        ) from cause


@dataclass(frozen=True)
class Proof:
    """What was found out after writing; None where it was not tried.

    Args:
        weights: The tensors on disk are the source's (and its branches') bit for bit.
        outputs: A seeded forward with the branches equals the one without them, bit for bit.
    """

    weights: bool | None = None
    outputs: bool | None = None

    def __str__(self) -> str:
        if self.weights is None:
            return "Not compared with the source (--no-verify)."
        if self.outputs:
            outputs = "outputs with the branches are bit for bit equal to those without"
            return f"Proved: weights are the source's, and {outputs}."
        return "Proved: the weights are the source's. Outputs cannot equal vanilla's with 'replace' branches."


def convert(plan: Conversion, output, origin: Origin, overwrite: bool = False, verify: bool = True) -> Proof:
    """Write the converted pipeline folder with its card, and prove, from what is on disk, that nothing else changed.

    Raises:
        UsageError: The output cannot be written there, or the source is damaged.
        SkipditError: Writing failed, or the proof did; nothing is kept.
    """
    source = plan.source
    check_target(output, overwrite)
    if source.pipeline is not None and Path(output).resolve() == source.pipeline.resolve():
        raise UsageError(f"Output {output} is the model itself; give another --output.")
    source.build()  # whether weights and config fit, before anything is written
    with replace_folder(output, overwrite, plan.needed_bytes()) as folder:
        if source.pipeline is None:
            _write_new_pipeline(plan, folder)
        else:
            _copy_pipeline(plan, folder)
        plans = [plan] if plan.second is None else [plan, plan.second]
        for each in plans:
            reference = next(iter(each.source.weights().values())).dtype
            branches = torch.nn.Module.to(each.branches, dtype=plan.dtype or reference)
            save_branches(branches, folder, each.source.part)
        drop_paths(folder)
        proof = Proof()
        if verify:
            for each in plans:
                _prove(each, folder)
            proof = Proof(weights=True, outputs=True if plan.provable else None)
        write_card(folder, origin, {"source": f"{origin.source}, {source.layout}", "conversion": proof})
    return proof


def _prove(plan: Conversion, folder: Path) -> None:
    """
    Raises:
        SkipditError: A weight on disk is another than the source's, or the branches change what they must not.
    """
    changed = _changed_weights(plan, folder)
    if changed:
        name = plan.source.name
        raise SkipditError(f"What was written of {name} differs from it in {changed[0]}; nothing was kept.")
    difference = _branch_effect(plan, folder)
    if plan.provable and difference != 0:
        raise SkipditError(f"Skip branches change the outputs by {difference:.3g}; nothing was kept.")


def _changed_weights(plan: Conversion, folder: Path) -> list[str]:
    """Names of tensors that differ from the source's. The output is mapped one tensor at a time, to hold little."""
    changed, expected = [], plan.source.weights()
    for file in weight_files(folder / plan.source.part):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        for name in names:
            with safe_open(file, "pt") as opened:
                if not torch.equal(opened.get_tensor(name), expected[name].to(plan.dtype or expected[name].dtype)):
                    changed.append(name)
    written = load_branches(folder, plan.source.part).state_dict()
    return changed + [name for name, own in plan.branches.state_dict().items() if not torch.equal(own, written[name])]


def _branch_effect(plan: Conversion, folder: Path) -> float:
    """The largest change that the branches on disk make to a seeded forward.

    Both forwards run on the same tensors: where a tensor lies in memory can change the last bit of a matrix product.
    These are the source's where they were kept: proved equal by then, and smaller in memory than diffusers' copies.
    """
    part = plan.source.part
    others = {other: None for other in _parts(folder) if other not in (part, "scheduler")}
    transformer = getattr(load_pipeline(folder, **others), part)
    if plan.dtype is None:
        branches = remove_skip_branches(transformer)
        transformer = plan.source.build()
        set_time_embedding(transformer, branches.config.time_embedding)
        add_skip_branches(transformer, branches=branches)
    after = _seeded_forward(transformer)
    remove_skip_branches(transformer)
    return (after - _seeded_forward(transformer)).abs().max().item()


@torch.no_grad()
def _seeded_forward(transformer) -> torch.Tensor:
    """One small image or video of seeded noise at t = 500, of label 0 or a text of noise."""
    output = transformer(**small_inputs(transformer), return_dict=False)[0]
    return torch.cat([each.flatten() for each in output]) if isinstance(output, list) else output


def small_inputs(transformer) -> dict:
    """Arguments of such a forward."""
    generator = torch.Generator().manual_seed(0)
    return example_inputs(transformer, dtype=transformer.dtype, small=True, generator=generator)


def _parts(pipeline: Path | None) -> list[str]:
    """The component folders that a pipeline's index lists."""
    if pipeline is None:
        return []
    index = read_json(pipeline / INDEX)
    return [name for name, value in index.items() if isinstance(value, list) and value != [None, None]]


def _copy_pipeline(plan: Conversion, folder: Path) -> None:
    """Copy the source as it is; only ``.bin`` weights, and those of another dtype, are written anew."""
    source = plan.source.pipeline
    shutil.copyfile(source / INDEX, folder / INDEX)
    copy_legal(source, folder)
    for part in _parts(source):
        _copy_part(source / part, folder / part, plan.dtype if part in ("transformer", SECOND) else None)


def _copy_part(source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    if not any(source.glob(f"{STEM}*")):
        shutil.copytree(source, target)  # a scheduler, say
        return
    target.mkdir()
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, target / file.name)
    files = weight_files(source)
    if dtype is not None or files[0].suffix == ".bin":
        write_tensors(read_weights(source), target / f"{STEM}.safetensors", dtype)
        return
    for file in [*files, *source.glob(f"{STEM}.safetensors.index.json")]:
        shutil.copyfile(file, target / file.name)


def _write_new_pipeline(plan: Conversion, folder: Path) -> None:
    """A pipeline around a lone transformer: the DiT repository's noise schedule, and a decoder if one was given."""
    transformer, target = plan.model(), folder / "transformer"
    if plan.source.transformer is not None:
        _copy_part(plan.source.transformer, target, plan.dtype)
    else:
        transformer.save_config(target)
        write_tensors(plan.source.weights(), target / f"{STEM}.safetensors", plan.dtype)
    scheduler = default_scheduler(transformer.config["_class_name"])
    scheduler.save_pretrained(folder / "scheduler")
    if plan.vae is not None:
        plan.vae.save_pretrained(folder / "vae")
    pipeline_around(transformer, scheduler, plan.vae).save_config(folder)
    if plan.text is not None:
        plan.text.copy_into(folder)
