"""The plan of a conversion: what is decided before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from accelerate import init_empty_weights

from skipdit_cli.conversion.process import SIT
from skipdit_cli.conversion.source import Source, storage_dtype
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
    """What a model is converted to.

    Args:
        source: The model that is converted.
        branches: Its skip branches, with merge and time embedding in their config.
        time_embedding_why: Why it is that time embedding.
        dtype: The dtype of the transformer and the branches written; None keeps the source's.
        vae: A VAE to put into a pipeline that has none.
        text: Tokenizer, text encoder and, without ``vae``, VAE to put into it.
        second: The conversion of the pipeline's second transformer, if it has one.
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

    @property
    def conversions(self) -> list[Conversion]:
        """The conversions of all transformers of the pipeline, this one first."""
        return [self] if self.second is None else [self, self.second]

    def build_empty(self):
        """Build the converted transformer without weights, to count parameters and FLOPs on."""
        with init_empty_weights():
            transformer = build_transformer(self.source.config)
            settings = self.branches.config.items()
            branches = SkipBranches(**{name: value for name, value in settings if not name.startswith("_")})
        add_skip_branches(transformer, branches=branches)
        return transformer

    def needed_bytes(self) -> int:
        """Return the size of the output on disk."""
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
    """Decide the merge and the time embedding, check the weights, and make the branches.

    Raises:
        UsageError: A choice contradicts the source.
        NotFiniteError: The source holds NaN or infinity, or would in ``dtype``.
    """
    name = source.config["_class_name"]
    stored = storage_dtype(source.weights()) if dtype is None else None
    if stored is not None:
        stored = str(stored).removeprefix("torch.")
        raise UsageError(
            f"Model {source.name} has weights in {stored}, which is for keeping alone; give --dtype bfloat16."
        )
    _check_finite(source, dtype)
    branches = _branches_for(source, merge)
    kind, why = _time_embedding_for(source, time_embedding)
    branches.register_to_config(time_embedding=kind)
    for flag, part in {"--vae": vae, "--text-from": text}.items():
        if part is not None and (source.alone or source.pipeline is not None):
            what = f"a {name} alone, which stays one" if source.alone else "a whole pipeline"
            raise UsageError(f"Got {flag}, but {source.name} is {what}; leave it out.")
    second = None if source.second is None else plan_conversion(source.second, merge, time_embedding, dtype)
    return Conversion(source, branches, why, dtype, vae, text, second)


def _check_finite(source: Source, dtype: torch.dtype | None) -> None:
    """Check that the source's tensors, one at a time, hold finite numbers, also in the dtype that is written."""
    branches = {} if source.branches is None else source.branches.state_dict()
    tensors = chain(source.weights().items(), ((f"{SKIP}/{name}", tensor) for name, tensor in branches.items()))
    for name, tensor in tensors:
        written = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        if is_finite(written):
            continue
        weight, part = first_broken([(name, tensor)]), f"in its {source.part}, "
        if weight is not None:
            raise NotFiniteError(f"Model {source.name} holds, {part}{weight}; nothing was written. Get it again.")
        narrow = str(dtype).removeprefix("torch.")
        raise NotFiniteError(
            f"Model {source.name} holds, {part}{tensor.abs().max():g} in {name}, which {narrow} cannot hold; "
            "nothing was written. Give --dtype bfloat16."
        )


def _branches_for(source: Source, merge: str | None) -> SkipBranches:
    """Return the source's own branches, or new ones.

    Raises:
        UsageError: The source's have another merge, or it has too few blocks.
    """
    if source.branches is None:
        branches = _new_branches(source, merge or "residual")
    elif merge in (None, source.branches.config.merge):
        branches = source.branches
    else:
        raise UsageError(f"Got --merge {merge}, but {source.name} brings trained branches of the 'replace' merge.")
    if not branches.num_pairs:
        raise UsageError(f"Model {source.name} has {branches.config.num_layers} block, too few for a skip branch.")
    return branches


def _new_branches(source: Source, merge: str) -> SkipBranches:
    """Make branches by the declaration of the model's family or, without one, by a forward pass of small noise.

    Raises:
        UsageError: The model has no trunk, or no inputs for a forward pass can be made up.
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
        why = first_line(cause).split(". ")[0]  # libraries say more than a sentence
        raise UsageError(
            f"Model {source.name} is a {name}, of which no example inputs can be made up ({why}); "
            "call add_skip_branches with example_inputs in Python, then save_pretrained."
        ) from cause


def _time_embedding_for(source: Source, choice: str) -> tuple[str, str]:
    """Decide the time embedding; return its name, and why it is that one.

    Args:
        choice: The value of ``--time-embedding``.
    Raises:
        UsageError: The model has no such time embedding.
    """
    name = source.config["_class_name"]
    if source.process == SIT and choice not in ("auto", SIT):
        raise UsageError(f"Got --time-embedding {choice}, but {source.name} is a SiT, which has one alone.")
    if choice == "diffusers" and has_own_time(name):
        raise UsageError(f"Got --time-embedding diffusers, but a {name} has the official one alone.")
    if choice != "auto":
        return choice, "as --time-embedding says"
    if source.process == SIT:
        return SIT, "a SiT counts time from noise to data"
    if RECORD in source.config:
        return source.config[RECORD], "as its config.json says"
    if source.official:
        return "official", source.official
    return "diffusers", "nothing says that the weights are the DiT repository's; --time-embedding official if so"


def small_inputs(transformer) -> dict:
    """Return the arguments of a forward pass: one small image or video of seeded noise at t = 500, class label 0 or
    seeded text embeddings."""
    generator = torch.Generator().manual_seed(0)
    return example_inputs(transformer, dtype=transformer.dtype, small=True, generator=generator)
