"""A bench as people read it: the table, the markdown page, and what it ran on."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch

from skipdit_cli import __version__
from skipdit_cli.bench.plot import save_plot
from skipdit_cli.console import SCHEMA, to_json

COLUMNS = {
    "case": lambda r: r["case"],
    "N": lambda r: _number(r["cache_layers"], "d"),
    "schedule": lambda r: r["schedule"] or "-",
    "forecast": lambda r: _forecast(r),
    "full": lambda r: f"{r['full_steps']}/{r['steps']}",
    "seconds": lambda r: f"{_time(r['seconds'])} ±{r['seconds_iqr']:.2g}",
    "x vanilla": lambda r: _number(r["speedup_vs_vanilla"], ".2f"),
    "x skip": lambda r: _number(r["speedup_vs_skip"], ".2f"),
    "limit": lambda r: _number(r["limit"], ".2f"),
    "of it": lambda r: _number(r["measured_over_limit"], ".2f"),
    "PSNR": lambda r: "same" if r["identical"] else _number(r["psnr"], ".1f"),
    "SSIM": lambda r: _number(r["ssim"], ".3f"),
    "flicker": lambda r: _number(r["temporal_difference"], ".3f"),
    "rel L2": lambda r: _number(r["latent_rel_l2"], ".3f"),
    "peak MB": lambda r: _number(r["peak_memory_mb"], ".0f"),
}
ONLY_ON_PAPER = {
    "end to end": lambda r: _time(r["seconds_end_to_end"]),
    "cache MB": lambda r: _number(r["cache_mb"], ".2f"),
}
READING = (
    "full: full steps of all. seconds: the denoising loop, median and interquartile range. limit: FLOPs of the same "
    "model uncached over FLOPs run; 'of it': the speedup measured over that limit. PSNR, SSIM, rel L2: cached rows "
    "against the same model uncached, fewer-steps against vanilla with all its steps, at the same seeds; of videos "
    "also flicker: the error of the change from frame to frame over that change, 0 if it is the reference's."
)


def table(rows: Sequence[dict], on_paper: bool = False) -> tuple[list[str], list[list[str]]]:
    """Column names and cells; columns that say nothing are left out."""
    columns = {**COLUMNS, **ONLY_ON_PAPER} if on_paper else COLUMNS
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if set(column) != {"-"}}
    return list(cells), [list(line) for line in zip(*cells.values())]


def markdown(report: dict) -> str:
    """The page ``bench.md``."""
    picture = "![speed and quality](bench.png)"
    return "\n".join([f"# {report['model']}: speed and quality", "", results(report), "", picture, ""])


def results(report: dict) -> str:
    """What was measured, on what and how, as markdown without a heading."""
    columns, lines = table(report["rows"], on_paper=True)
    drawn = [columns, ["---"] * len(columns), *lines]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join(
        [
            f"{report['device_name']}, {report['threads']} threads, {report['dtype']}, {versions}. "
            f"{report['num_inference_steps']} steps of {report['scheduler']}, {_guided(report)}{_sized(report)}"
            f"batch {report['batch_size']}, seed {report['seed']}, {report['rounds']} interleaved rounds, "
            f"{report['date']}.",
            "",
            *("| " + " | ".join(line) + " |" for line in drawn),
            "",
            READING,
            *(line for note in report["notes"] for line in ("", note)),
            "",
            f"`{report['command']}`",
        ]
    )


def save_report(report: dict, folder: Path) -> None:
    """Write ``bench.json``, ``bench.md`` and ``bench.png`` into a folder."""
    text = to_json({"schema": SCHEMA, **report}, indent=2)
    (folder / "bench.json").write_text(text + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(report), encoding="utf-8")
    title = f"{report['model']}, {report['device_name']}, {report['dtype']}, {report['num_inference_steps']} steps"
    save_plot(report["rows"], folder / "bench.png", title)


def environment(device: torch.device, dtype: torch.dtype) -> dict:
    """What a time was taken on."""
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


def _guided(report: dict) -> str:
    scale = report["guidance_scale"]
    return "" if scale is None else f"guidance {scale:g}, "


def _sized(report: dict) -> str:
    """The size that was asked for, if one was."""
    asked = {name: report.get(name) for name in ("height", "width", "num_frames")}
    said = " x ".join(f"{name.removeprefix('num_')} {value}" for name, value in asked.items() if value is not None)
    return f"{said}, " if said else ""


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


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _time(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
