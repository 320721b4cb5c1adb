"""The report of a bench for readers: the table, its notes, the markdown page, the device and the versions."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch

from skipdit_cli.bench.peers.pareto import save_pareto
from skipdit_cli.bench.results.plot import save_plot
from skipdit_cli.console import SCHEMA, count
from skipdit_cli.formats import markdown_table, to_json
from skipdit_cli.sampling.device import computes_wide
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.trunk import known_trunk
from skipdit_cli.version import __version__, list_versions

COLUMNS = {
    "case": lambda r: r["peer"] or r["case"],
    "N": lambda r: "-" if r["cache_layers"] is None else str(r["cache_layers"]),
    "schedule": lambda r: r["schedule"] or (_sampler(r) if r["case"] == "fewer-steps-best" else "-"),
    "forecast": lambda r: _forecast(r),
    "full": lambda r: "-" if r["why"] else f"{r['full_steps']}/{r['steps']}",
    "cost": lambda r: _number(r["cost"], ".1f"),
    "seconds": lambda r: _seconds(r),
    "x vanilla": lambda r: _number(r["speedup_vs_vanilla"], ".2f"),
    "x skip": lambda r: _number(r["speedup_vs_skip"], ".2f"),
    "limit": lambda r: _number(r["limit"], ".2f"),
    "of it": lambda r: _number(r["measured_over_limit"], ".2f"),
    "exact": lambda r: _number(r["psnr_exact"], ".1f"),
    "PSNR": lambda r: "same" if r["identical"] else _number(r["psnr"], ".1f"),
    "SSIM": lambda r: _number(r["ssim"], ".3f"),
    "flicker": lambda r: _number(r["temporal_difference"], ".3f"),
    "rel L2": lambda r: _number(r["latent_rel_l2"], ".3f"),
    "peak MB": lambda r: _number(r["peak_memory_mb"], ".0f"),
}
MARKDOWN_COLUMNS = {
    "end to end": lambda r: "-" if r["why"] else _time(r["seconds_end_to_end"]),
    "cache MB": lambda r: _number(r["cache_mb"], ".2f"),
}
EXPENDABLE = ("rel L2", "SSIM", "peak MB", "flicker", "N", "limit", "forecast", "x skip", "PSNR", "seconds")
"""Columns that a narrow terminal does without, the first of them first."""
HELP = {
    "case": "the model, and whether it is cached; or the library whose cache ran.",
    "N": "blocks at each end of the trunk that run in every step.",
    "schedule": "the rule that says which steps are full; the sampler of a run of the best one.",
    "forecast": "how a reused step predicts the cached tensor.",
    "full": "full steps of all steps.",
    "cost": "FLOPs of the run in full forwards of its model.",
    "seconds": "median and, of several rounds, interquartile range of the denoising loop.",
    "x vanilla": "measured speedup over vanilla with all steps.",
    "x skip": "measured speedup over Skip-DiT with all steps.",
    "limit": "FLOPs of the uncached run of the same model over the FLOPs of this run.",
    "of it": "measured speedup over that limit.",
    "exact": "psnr_exact, the PSNR in dB to the exact solution of the sampling ODE from the same noise, by which "
    "samplers, steps and caches compare.",
    "PSNR": "in dB, at the same seeds: of cached rows to the uncached run of the same model, of fewer steps to "
    "vanilla with all steps.",
    "SSIM": "structural similarity to the same run, at most 1.",
    "rel L2": "relative distance of the latents to the same run.",
    "flicker": "error of the change from frame to frame, relative to that change.",
    "peak MB": "peak memory of the device.",
    "read": "share of digits that a support vector machine trained on real ones recognises.",
}
"""What each column says."""
EXPLAINED = ("full", "cost", "seconds", "limit", "of it", "exact", "PSNR", "SSIM", "rel L2", "flicker")
READING = " ".join(f"{name}: {HELP[name]}" for name in EXPLAINED)
"""What the columns say that do not explain themselves."""


def table(rows: Sequence[dict], markdown: bool = False, width: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the cells of each row; columns without any value are left out.

    Args:
        rows: Rows of ``bench --json``.
        markdown: Add the columns that only the markdown page has.
        width: Characters in a line: leave out columns of ``EXPENDABLE`` until the table fits.
    """
    columns = {**COLUMNS, **MARKDOWN_COLUMNS} if markdown else COLUMNS
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {"-"}}
    for name in EXPENDABLE:
        if width is not None and _width(cells) > width:
            cells.pop(name, None)
    return list(cells), [list(line) for line in zip(*cells.values())]


def _width(cells: dict[str, list[str]]) -> int:
    """Return the characters in a line of a table, with two between columns."""
    return sum(max(map(len, (name, *column))) + 2 for name, column in cells.items()) - 2


def markdown(report: dict) -> str:
    """Return the text of ``bench.md``."""
    plots = ["![speed and quality](bench.png)"]
    if report["peers"]:
        plots += ["", "![quality over cost, with peers](pareto.png)"]
    return "\n".join([f"# {report['model']}: speed and quality", "", results(report), "", *plots, ""])


def results(report: dict) -> str:
    """Return the table, its notes, the device and the settings as markdown without a heading."""
    columns, lines = table(report["rows"], markdown=True)
    versions = list_versions(report["versions"])
    return "\n".join(
        [
            f"{report['device_name']}, {count(report['threads'], 'thread')}, {report['dtype']}, {versions}. "
            f"{report['num_inference_steps']} steps of {report['scheduler']}, {_guidance(report)}{_size(report)}"
            f"batch {report['batch_size']}, seed {report['seed']}, {count(report['rounds'], 'interleaved round')}, "
            f"{report['date']}.",
            "",
            markdown_table(columns, lines),
            "",
            *(line for text in sentences(report) for line in (text, "")),
            f"`{report['command']}`",
        ]
    )


def sentences(report: dict) -> list[str]:
    """Return what stands below the table: the verdict, warnings, how to read the columns, and notes."""
    verdict = [report["verdict"], *([report["target"]] if report["target"] else [])]
    warnings = [f"Warning: {warning}" for warning in report["warnings"]]
    return [*verdict, *warnings, READING, *report["notes"]]


def save_report(report: dict, folder: Path) -> None:
    """Write ``bench.json``, ``bench.md``, ``bench.png`` and, with peers, ``pareto.png`` into an existing folder."""
    text = to_json({"schema": SCHEMA, **report}, indent=2)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(report), encoding="utf-8")
    title = f"{report['model']}, {report['device_name']}, {report['dtype']}, {report['num_inference_steps']} steps"
    save_plot(report["rows"], folder / "bench.png", title)
    if report["peers"]:
        save_pareto(report["rows"], report["macs"], folder / "pareto.png", title)


def make_notes(bench, random_weights: bool = False, compiled: bool = False) -> list[str]:
    """Return what a reader has to know besides the rows, one sentence or two per note.

    Args:
        bench: The ``Bench``, after its run.
    """
    notes = []
    if compiled:
        notes.append(f"Compiled, in {bench.warm_up_seconds:.0f} s of runs before those that are timed.")
    trunk = known_trunk(bench.pipe.transformer)
    if trunk is not None and trunk.backbone.native_skips:
        notes.append(
            "This class has skips of its own: vanilla is the model with them, vanilla-cache is Skip-Cache on "
            "them; there are no skip rows, for there is nothing to convert."
        )
    elif not bench.has_branches:
        notes.append("No skip rows: this model has no skip branches; 'skipdit convert' adds them.")
    elif bench.vanilla is bench.pipe:
        notes.append("vanilla is this model without its skip branches.")
    if not bench.has_pictures:
        notes.append("No PSNR and SSIM: there is no VAE to decode images with.")
    if computes_wide(bench.pipe.transformer):
        notes.append("This CPU has no bfloat16 arithmetic: weights are bfloat16, products float32.")
    if is_text_conditional(bench.pipe) and bench.conditions[0] is None:
        notes.append("No texts: in place of each prompt, noise of the length of the longest prompt is used.")
    for case, reason in bench.broken.items():
        schedule = case.schedule or f"{case.steps} steps"
        notes.append(f"{case.name}, {schedule}: no quality, for it is NaN or infinite. {reason}")
    notes += [*bench.kept.note(), *bench.peers.notes()]
    notes += _accuracy_notes(bench.solutions)
    if random_weights:
        notes.append("Random weights: the times are those of a trained model, the quality columns are not.")
    return notes


def _accuracy_notes(solutions) -> list[str]:
    """Return how far the exact solutions converged and which plain samplers were tried, or why there is none."""
    if not solutions.exact:
        return [f"No psnr_exact. {solutions.reason}"] if solutions.reason else []
    parts = [
        f"{name}, {exact.steps} steps of {exact.sampler.describe().split(' at ')[0]}, "
        f"{exact.agreement_db:.1f} dB from half as many"
        for name, exact in solutions.exact.items()
    ]
    notes = [f"Exact solution: {'; '.join(parts)}. An accuracy within 10 dB of that is a rough one."]
    if solutions.tried:
        notes.append(f"fewer-steps-best: the most accurate of {', '.join(solutions.tried)} with so many steps.")
    return notes


def environment(device: torch.device, dtype: torch.dtype) -> dict:
    """Return the device, its precision, the versions and the date, which every measured time depends on."""
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {
            "skipdit": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _guidance(report: dict) -> str:
    scale = report["guidance_scale"]
    return "" if scale is None else f"guidance {scale:g}, "


def _size(report: dict) -> str:
    """Return the size that was set by flags, or an empty text if none was."""
    sizes = {name.removeprefix("num_"): report.get(name) for name in ("height", "width", "num_frames")}
    text = " x ".join(f"{name} {value}" for name, value in sizes.items() if value is not None)
    return f"{text}, " if text else ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _forecast(row: dict) -> str:
    if row["forecast"] is None or (row["forecast"], row["cache_target"]) == ("reuse", "boundary"):
        return "-"
    return row["forecast"] + (" residual" if row["cache_target"] == "residual" else "")


def _seconds(row: dict) -> str:
    if row["why"]:
        return "-"
    return _time(row["seconds"]) + ("" if row["seconds_iqr"] is None else f" ±{row['seconds_iqr']:.2g}")


def _sampler(row: dict) -> str:
    """Return the name of a row's sampler, without the number of its explicit timesteps."""
    return row["sampler"].split(" at ")[0]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _time(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
