"""The proof that a conversion changed nothing but what it should, from the files on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open

from skipdit_cli.conversion.conversion_plan import Conversion, small_inputs
from skipdit_cli.errors import SkipditError, reading
from skipdit_cli.finite import same_bits
from skipdit_cli.models.index import parts_of
from skipdit_cli.models.open import load_branches, read_pipeline
from skipdit_cli.models.weights import weight_files
from skipdit_cli.skip import add_skip_branches, remove_skip_branches
from skipdit_cli.skip.time_embedding import set_time_embedding


@dataclass(frozen=True)
class Proof:
    """What was proved after writing; None where it was not tried.

    Args:
        weights: The tensors on disk equal the source's (and its branches') bit for bit.
        outputs: The outputs of a seeded forward pass with the branches equal those without, bit for bit.
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


def prove(plan: Conversion, folder: Path) -> Proof:
    """Prove that the weights on disk are the source's, and that new branches change no output.

    Raises:
        SkipditError: A weight differs, or the branches change an output that they must not.
    """
    for each in plan.conversions:
        changed = _changed_weights(each, folder)
        if changed:
            name = each.source.name
            raise SkipditError(f"What was written of {name} differs from it in {changed[0]}; nothing was kept.")
        difference = _branch_effect(each, folder)
        if each.provable and difference != 0:
            raise SkipditError(f"Skip branches change the outputs by {difference:.3g}; nothing was kept.")
    return Proof(weights=True, outputs=True if plan.provable else None)


def _changed_weights(plan: Conversion, folder: Path) -> list[str]:
    """Return the names of the tensors that differ from the source's; one at a time is in memory."""
    changed, expected = [], plan.source.weights()
    for file in weight_files(folder if plan.source.alone else folder / plan.source.part):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        for name in names:
            with safe_open(file, "pt") as opened:
                if not same_bits(opened.get_tensor(name), expected[name].to(plan.dtype or expected[name].dtype)):
                    changed.append(name)
    written = load_branches(folder, plan.source.part).state_dict()
    planned = {name: tensor.to(written[name].dtype) for name, tensor in plan.branches.state_dict().items()}
    return changed + [name for name, tensor in planned.items() if not same_bits(tensor, written[name])]


def _branch_effect(plan: Conversion, folder: Path) -> float:
    """Return the largest change that the branches on disk make to the output of a seeded forward pass.

    Both passes run on the same tensors: where a tensor lies in memory can change the last bit of a matrix product.
    Unless the dtype changes these are the source's, which are proved equal by then, and memory-mapped.
    """
    transformer = _written_transformer(plan, folder)
    if plan.dtype is None:
        branches = remove_skip_branches(transformer)
        transformer = plan.source.build()
        set_time_embedding(transformer, branches.config.time_embedding)
        add_skip_branches(transformer, branches=branches)
    after = _seeded_forward(transformer)
    remove_skip_branches(transformer)
    before = _seeded_forward(transformer)
    return 0.0 if same_bits(after, before) else (after - before).abs().max().item()


def _written_transformer(plan: Conversion, folder: Path):
    """Load the transformer on disk with its branches, as users load it."""
    if plan.source.alone:
        transformer = replace(plan.source, transformer=folder).build()
        add_skip_branches(transformer, branches=load_branches(folder))
        return transformer
    part = plan.source.part
    others = {other: None for other in parts_of(folder) if other not in (part, "scheduler")}
    return getattr(read_pipeline(folder, **others), part)


@torch.no_grad()
def _seeded_forward(transformer) -> torch.Tensor:
    """Return the output for one small image or video of seeded noise at t = 500."""
    inputs = small_inputs(transformer)
    with reading(f"The config of this {type(transformer).__name__}", failed="allows no forward"):
        output = transformer(**inputs, return_dict=False)[0]
    return torch.cat([each.flatten() for each in output]) if isinstance(output, list) else output
