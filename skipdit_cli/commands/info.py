"""``skipdit info``: what a model is, what its skip branches cost, and how fast it could get."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands.options import Debug, Json, LocalFilesOnly, Model, ModelArgument, Preset, Revision, one_model

INTERVALS = (2, 3, 4, 5)
Steps = Annotated[int, typer.Option("--num-inference-steps", "--steps", min=1, help="Steps of the ideal speedups.")]


def info(
    model_argument: ModelArgument = None,
    model: Model = None,
    preset: Preset = None,
    num_inference_steps: Steps = 50,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count blocks, parameters, FLOPs and ideal speedups.

    Reads no weights. skipdit info facebook/DiT-XL-2-256
    """
    model = one_model(model_argument, model)
    from skipdit_cli.checkpoints.outline import read_outline
    from skipdit_cli.measure.flops import StepFlops
    from skipdit_cli.measure.parameters import count_parameters

    outline = read_outline(model, preset, revision=revision, local_files_only=local_files_only)
    flops, parameters = StepFlops(outline.transformer), count_parameters(outline.transformer)
    branches = outline.transformer.skip_branches.config
    facts = {
        "model": outline.name,
        "class": outline.transformer.config["_class_name"],
        "attached": outline.attached,
        "sample": "video" if "video_length" in outline.transformer.config else "image",
        "blocks": len(flops.units),
        "pairs": len(flops.units) // 2,
        "merge": branches.merge,
        "time_embedding": branches.time_embedding,
        "parameters": parameters.model,
        "parameters_copied_by_diffusers": parameters.copies,
        "macs": flops.vanilla,
        "skip_parameters": parameters.skip,
        "skip_macs": flops.full - flops.vanilla,
    }
    speedups = _speedups(flops, num_inference_steps)
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
    skip, macs = facts["skip_parameters"], facts["skip_macs"]
    attached = "attached" if facts["attached"] else "none yet; what 'skipdit convert' would add"
    copies = facts["parameters_copied_by_diffusers"]
    held = f" (diffusers holds {console.amount(copies)} more: embedders per block)" if copies else ""
    rows = [
        ["model", f"{facts['model']} ({facts['class']})"],
        ["blocks", f"{facts['blocks']}, {facts['pairs']} pairs"],
        ["parameters", f"{console.amount(facts['parameters'])}{held}"],
        ["a forward", f"{console.amount(facts['macs'])} multiply-adds (one {facts['sample']}, vanilla)"],
        ["time embedding", facts["time_embedding"]],
        ["skip branches", f"{attached}; {facts['merge']} merge"],
        ["skip parameters", f"+{console.amount(skip)} (+{100 * skip / facts['parameters']:.1f} %)"],
        ["skip multiply-adds", f"+{console.amount(macs)} (+{100 * macs / facts['macs']:.1f} %)"],
    ]
    console.table(["what", "here"], rows)
    console.say("")
    title = f"Ideal speedup over {steps} steps, against vanilla / uncached Skip-DiT (multiply-adds, not time)"
    cells = {(s["cache_layers"], s["cache_interval"]): f"{s['vs_vanilla']:.2f} / {s['vs_skip']:.2f}" for s in speedups}
    depths = sorted({layers for layers, _ in cells})
    columns = ["--cache-layers N", *(f"--cache-interval {k}" for k in INTERVALS)]
    console.table(columns, [[n, *(cells[n, k] for k in INTERVALS)] for n in depths], title=title)
