"""A small report with every section, made of hand-made rows: no model runs."""

from types import SimpleNamespace

import numpy as np

from skipdit_cli.bench.results.html_report import Samples, make_report
from skipdit_cli.bench.similarity import Similarity
from skipdit_cli.reports import Plot, Point, Report, Series

MACS = {"vanilla": 100, "skip": 110}
STEPS = 20
FULL = (0, 4, 9, 14, 17, 19)


def row(case: str, cost: float, psnr_exact: float, schedule: str | None = None, **more) -> dict:
    """A row of ``bench --json``: cached where it has a schedule, a run of fewer steps where it costs less than all."""
    layers, forecast, target = (None, None, None) if schedule is None else (1, "taylor2", "residual")
    steps = STEPS if schedule or case in MACS else round(cost)
    known = {
        "case": case, "reference": "skip" if case.startswith("skip") else "vanilla", "cache_layers": layers,
        "peer": None, "cache_interval": None, "schedule": schedule, "forecast": forecast, "cache_target": target,
        "sampler": "ddim", "steps": steps, "full_steps": len(FULL) if schedule else steps, "cost": cost,
        "seconds": cost / 10, "seconds_iqr": None, "seconds_end_to_end": cost / 9,
        "speedup_vs_vanilla": STEPS / cost, "speedup_vs_vanilla_iqr": None, "speedup_vs_skip": None,
        "limit": STEPS / cost, "measured_over_limit": 1.0, "psnr": None if case in MACS else psnr_exact - 1,
        "psnr_exact": psnr_exact, "ssim": 0.9, "temporal_difference": None, "latent_rel_l2": 0.1, "identical": False,
        "peak_memory_mb": None, "cache_mb": None, "why": None,
    }  # fmt: skip
    return {**known, **more}


def rows() -> list[dict]:
    """A full run of both models, the same caches on both, and fewer steps, some of them nearly alike."""
    cached = [("late-dense 6", 7.0, 31.0), ("every 2", 11.0, 35.0), ("every 3", 8.0, 30.9), ("every 4", 7.2, 29.0)]
    return [
        row("vanilla", STEPS, 36.0),
        *(row("vanilla-cache", cost, psnr - 1.1, schedule) for schedule, cost, psnr in cached),
        row("skip", STEPS, 35.8),
        *(row("skip-cache", cost, psnr, schedule) for schedule, cost, psnr in cached),
        *(row("fewer-steps", steps, 22.0 + steps) for steps in (7, 8, 11)),
        row("fewer-steps-best", 13, 35.9),
    ]


def images(count: int, noise: float, frames: int = 1) -> np.ndarray:
    """Pictures of 8x8 pixels, or videos, with some noise; the first sample has the most."""
    generator = np.random.default_rng(0)
    base = generator.integers(60, 200, (count, frames, 8, 8, 1))
    errors = generator.normal(0, 1, base.shape) * noise / np.arange(1, count + 1).reshape(-1, 1, 1, 1, 1)
    pixels = np.clip(base + errors, 0, 255).astype(np.uint8).repeat(3, -1)
    return pixels if frames > 1 else pixels[:, 0]


def report_of(table: list[dict]) -> dict:
    """What ``Bench.report`` returns of these rows."""
    return {
        "model": "digits", "command": "skipdit bench --preset digits --html report.html", "device": "cpu",
        "device_name": "a processor", "threads": 1, "dtype": "float32", "versions": {"skipdit": "0.1.0"},
        "date": "2026-11-29T02:00:00+00:00", "num_inference_steps": STEPS, "scheduler": "DDIMScheduler",
        "batch_size": 4, "guidance_scale": 1.5, "seed": 0, "rounds": 1, "verdict": "A verdict <in words>.",
        "target": "A target.", "warnings": ["The machine was busy."], "macs": MACS, "notes": ["A note."],
        "rows": table,
    }  # fmt: skip


def small_report(frames: int = 1) -> Report:
    """The report; its samples are videos if they have several frames."""
    table, count = rows(), 5
    generated = [
        SimpleNamespace(images=images(count, 2 + number, frames), full_steps=FULL if each["schedule"] else range(4))
        for number, each in enumerate(table)
    ]
    values = tuple(tuple(1 - 10 ** -(1 + (block + step) % 4) for step in range(STEPS - 1)) for block in range(6))
    samples = Samples(
        generated,
        {"skip": images(count, 0, frames), "vanilla": images(count, 0.5, frames)},
        [f"{number}: class {number}" for number in range(1, count + 1)],
        {"vanilla": Similarity(values), "skip": Similarity(values)},
    )
    loss = Series("stage 1", [Point(step, 1 / step) for step in range(1, 9)], 0, shape="", joined=True)
    spread = [Point(10.0**step, 50 / (1 + step), f"size {step}", spread=20 / (1 + step)) for step in range(7)]
    axes = {"log_x": True, "log_y": True}
    scaling = Plot("Scaling", "Mean and spread.", "compute", "FID", [Series("S", spread, 0, joined=True)], **axes)
    curves = [Plot("Training", "The loss of each step.", "optimizer step", "loss", [loss]), scaling]
    return make_report(report_of(table), samples, "Bench of digits", curves=curves)
