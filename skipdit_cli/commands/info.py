"""``skipdit info``: what a model is, what its skip branches cost, and how fast it could get."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands.counted import counted
from skipdit_cli.commands.families import show_families
from skipdit_cli.commands.options import Debug, Json, LocalFilesOnly, Model, ModelArgument, Preset, Revision, one_model
from skipdit_cli.errors import UsageError

INTERVALS = (2, 3, 4, 5)
UNKNOWN = "found in a forward of the model, which 'skipdit convert' makes and info does not"
Families = Annotated[bool, typer.Option("--families", help="Show every transformer class of diffusers instead.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="With --families: a table for a README.")]
Steps = Annotated[int, typer.Option("--num-inference-steps", "--steps", min=1, help="Steps of the ideal speedups.")]


def info(
    model_argument: ModelArgument = None,
    model: Model = None,
    preset: Preset = None,
    num_inference_steps: Steps = 50,
    families: Families = False,
    markdown: Markdown = False,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count blocks, parameters, FLOPs and ideal speedups.

    Reads no weights. skipdit info facebook/DiT-XL-2-256
    """
    model = one_model(model_argument, model)
    if markdown and not families:
        raise UsageError("Got --markdown without --families, whose table it is for; add --families.")
    if families:
        if model is not None or preset is not None:
            raise UsageError("Got --families with a model, but it shows all classes; leave one of the two out.")
        show_families(markdown)
        return
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.skip.parameters import count_parameters

    outline = read_outline(model, preset, lone=True, revision=revision, local_files_only=local_files_only)
    parameters = count_parameters(outline.transformer)
    flops = counted(outline.transformer) if outline.trunk is not None else None
    branches = None if outline.branches is None else outline.branches.config
    blocks = None if outline.trunk is None else len(outline.trunk)
    facts = {
        "model": outline.name,
        "class": outline.transformer.config["_class_name"],
        "attached": outline.attached,
        "sample": "video" if "3D" in type(outline.transformer).__name__ else "image",
        "blocks": blocks,
        "pairs": None if branches is None else blocks // 2,
        "merge": branches and branches.merge,
        "time_embedding": branches and branches.time_embedding,
        "parameters": parameters.model,
        "parameters_copied_by_diffusers": parameters.copies,
        "macs": flops and flops.vanilla,
        "macs_of": flops and flops.shape,
        "skip_parameters": None if branches is None else parameters.skip,
        "skip_macs": flops and flops.full - flops.vanilla,
    }
    speedups = _speedups(flops, num_inference_steps) if flops else []
    _show(facts, speedups, num_inference_steps)
    console.emit({**facts, "num_inference_steps": num_inference_steps, "ideal_speedups": speedups})


def _speedups(flops, steps: int) -> list[dict]:
    """Counted limits for N x K, at a few N from 1 to the deepest."""
    deepest = (len(flops.units) - 1) // 2
    depths = sorted({n for n in (1, 2, 4, deepest // 2, deepest) if 1 <= n <= deepest})
    return [
        {"cache_layers": n, "cache_interval": k, "vs_skip": limit, "vs_vanilla": limit * flops.vanilla / flops.full}
        for n in depths
        for k in INTERVALS
        for limit in [flops.ideal_speedup(n, k, steps)]
    ]


def _show(facts: dict, speedups: list[dict], steps: int) -> None:
    copies = facts["parameters_copied_by_diffusers"]
    held = f" (diffusers holds {console.amount(copies)} more: embedders per block)" if copies else ""
    found = f"{facts['blocks']}, {facts['pairs'] or 'no'} pairs" if facts["blocks"] else UNKNOWN
    rows = [
        ["model", f"{facts['model']} ({facts['class']})"],
        ["blocks", found],
        ["parameters", f"{console.amount(facts['parameters'])}{held}"],
    ]
    if facts["macs"]:
        of = f"one {facts['sample']} of {'x'.join(map(str, facts['macs_of']))} latents"
        rows.append(["a forward", f"{console.amount(facts['macs'])} multiply-adds ({of}, vanilla)"])
    elif facts["blocks"]:
        rows.append(["a forward", "not counted: no example of what this class is called with; 'bench' counts it"])
    if facts["pairs"]:
        rows += _skip_rows(facts)
    elif facts["blocks"]:
        why = (
            "one block has no pair" if facts["blocks"] < 2 else "the class has skips of its own, which the cache uses"
        )
        rows.append(["skip branches", f"none: {why}"])
    console.table(["what", "here"], rows)
    if not speedups:
        return
    console.say("")
    title = f"Ideal speedup over {steps} steps, against vanilla / uncached Skip-DiT (multiply-adds, not time)"
    cells = {(s["cache_layers"], s["cache_interval"]): f"{s['vs_vanilla']:.2f} / {s['vs_skip']:.2f}" for s in speedups}
    depths = sorted({layers for layers, _ in cells})
    columns = ["--cache-layers N", *(f"--cache-interval {k}" for k in INTERVALS)]
    console.table(columns, [[n, *(cells[n, k] for k in INTERVALS)] for n in depths], title=title)


def _skip_rows(facts: dict) -> list[list[str]]:
    from skipdit_cli.models.build import has_own_time

    skip, macs = facts["skip_parameters"], facts["skip_macs"]
    attached = "attached" if facts["attached"] else "none yet; what 'skipdit convert' would add"
    rows = [
        ["skip branches", f"{attached}; {facts['merge']} merge"],
        ["skip parameters", f"+{console.amount(skip)} (+{100 * skip / facts['parameters']:.1f} %)"],
    ]
    if not has_own_time(facts["class"]):  # where there is a choice
        rows.insert(0, ["time embedding", facts["time_embedding"]])
    if facts["macs"]:
        rows.append(["skip multiply-adds", f"+{console.amount(macs)} (+{100 * macs / facts['macs']:.1f} %)"])
    return rows
