"""What a conversion does, decided before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import init_empty_weights

from skipdit_cli.conversion.process import SIT
from skipdit_cli.conversion.source import Source, narrow
from skipdit_cli.conversion.text_parts import TextParts
from skipdit_cli.errors import NotFiniteError, UsageError, first_line
from skipdit_cli.families import declared_trunk
from skipdit_cli.families.example import example_inputs
from skipdit_cli.finite import first_broken, is_finite
from skipdit_cli.models.build import build_transformer, has_own_time
from skipdit_cli.models.index import parts_of
from skipdit_cli.skip import SKIP, SkipBranches, add_skip_branches
from skipdit_cli.skip.time_embedding import RECORD
from skipdit_cli.trunk import trunk_of


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
        others = [file for part in parts_of(folder) if part != "transformer" for file in (folder / part).rglob("*")]
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
        NotFiniteError: The source holds NaN or infinity, or would in ``dtype``.
    """
    name = source.config["_class_name"]
    kept = narrow(source.weights()) if dtype is None else None
    if kept is not None:
        kept = str(kept).removeprefix("torch.")
        raise UsageError(
            f"Model {source.name} has weights in {kept}, which is for keeping alone; give --dtype bfloat16."
        )
    _check_numbers(source, dtype)
    if source.branches is None:
        branches = _new_branches(source, merge or "residual")
    elif merge in (None, source.branches.config.merge):
        branches = source.branches
    else:
        raise UsageError(f"Got --merge {merge}, but {source.name} brings trained branches of the 'replace' merge.")
    if not branches.num_pairs:
        raise UsageError(f"Model {source.name} has {branches.config.num_layers} block, too few for a skip branch.")
    if source.process == SIT and time_embedding not in ("auto", SIT):
        raise UsageError(f"Got --time-embedding {time_embedding}, but {source.name} is a SiT, which has one alone.")
    if time_embedding == "diffusers" and has_own_time(name):
        raise UsageError(f"Got --time-embedding diffusers, but a {name} has the official one alone.")
    if time_embedding != "auto":
        kind, why = time_embedding, "as --time-embedding says"
    elif source.process == SIT:
        kind, why = SIT, "a SiT counts time from noise to data"
    elif RECORD in source.config:
        kind, why = source.config[RECORD], "as its config.json says"
    elif source.official:
        kind, why = "official", source.official
    else:
        kind, why = (
            "diffusers",
            "nothing says that the weights are the DiT repository's; --time-embedding official if so",
        )
    branches.register_to_config(time_embedding=kind)
    for flag, part in {"--vae": vae, "--text-from": text}.items():
        if part is not None and (source.alone or source.pipeline is not None):
            what = f"a {name} alone, which stays one" if source.alone else "a whole pipeline"
            raise UsageError(f"Got {flag}, but {source.name} is {what}; leave it out.")
    second = None if source.second is None else plan_conversion(source.second, merge, time_embedding, dtype)
    return Conversion(source, branches, why, dtype, vae, text, second)


def _check_numbers(source: Source, dtype: torch.dtype | None) -> None:
    """Look at all the source's tensors, one at a time, as they will be written."""
    branches = {} if source.branches is None else source.branches.state_dict()
    tensors = chain(source.weights().items(), ((f"{SKIP}/{name}", tensor) for name, tensor in branches.items()))
    for name, tensor in tensors:
        kept = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        if is_finite(kept):
            continue
        where, part = first_broken([(name, tensor)]), f"in its {source.part}, "
        if where is not None:
            raise NotFiniteError(f"Model {source.name} holds, {part}{where}; nothing was written. Get it again.")
        narrow_to = str(dtype).removeprefix("torch.")
        raise NotFiniteError(
            f"Model {source.name} holds, {part}{tensor.abs().max():g} in {name}, which {narrow_to} cannot hold; "
            "nothing was written. Give --dtype bfloat16."
        )


def _new_branches(source: Source, merge: str) -> SkipBranches:
    """Branches as the model wants them: by its declaration, or by a forward of small noise where there is none.

    Raises:
        UsageError: It has no trunk, or no forward of it can be made up.
    """
    name = source.config["_class_name"]
    if declared_trunk(name) is not None:
        with init_empty_weights():
            trunk = trunk_of(build_transformer(source.config))
        return SkipBranches(trunk.width, len(trunk), merge, backbone=name)
    model = source.build()
    try:
        return add_skip_branches(model, merge, small_inputs(model))
    except UsageError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as cause:
        why = first_line(cause).split(". ")[0]  # of a library that says more than a sentence
        raise UsageError(
            f"Model {source.name} is a {name}, of which no example inputs can be made up ({why}); "
            "call add_skip_branches with example_inputs in Python, then save_pretrained."
        ) from cause


def small_inputs(transformer) -> dict:
    """Arguments of a forward of one small image or video: seeded noise at t = 500, label 0 or a text of noise."""
    generator = torch.Generator().manual_seed(0)
    return example_inputs(transformer, dtype=transformer.dtype, small=True, generator=generator)
