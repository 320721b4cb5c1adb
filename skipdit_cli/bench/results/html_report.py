"""The HTML report of a bench: its rows as the sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from skipdit_cli.bench.results.plot import COLOURS, NO_LINE, PLAIN, line_name
from skipdit_cli.bench.results.tables import HELP, table
from skipdit_cli.bench.results.verdict import best_cached, make_headline
from skipdit_cli.bench.similarity import Similarity, measure_similarity
from skipdit_cli.console import count
from skipdit_cli.reports import (
    Axis,
    Column,
    Command,
    HeatMap,
    HeatMaps,
    Plot,
    Point,
    Report,
    Schedule,
    Series,
    Table,
    make_comparison,
)
from skipdit_cli.version import list_versions

if TYPE_CHECKING:
    from skipdit_cli.bench.run import Bench
    from skipdit_cli.sampling.generate import Generated

LEGEND = (
    "In the names of rows: every K, each K-th step is full; late-dense M, M steps are full, denser towards the end; "
    "N=1, the first and the last block run on a reused step; reuse, linear, taylor2, how a reused step predicts what "
    "it does not run; residual, its change over the first blocks is predicted. See 'skipdit guide caching'."
)
MODELS = {"skip": "with skip branches", "vanilla": "without skip branches"}
SHAPES = {
    "vanilla-cache": "square",
    "skip-cache": "circle",
    "uniform": "triangle",
    "paper": "star",
    "fewer-steps": "cross",
    "fewer-steps-best": "diamond",
}
"""The shape of the marks of each case; a plan and any other case has a diamond."""
QUALITIES = {
    "psnr_exact": "PSNR to the exact solution (dB)",
    "psnr": "PSNR to the uncached run of the same model (dB)",
}
EXACT = "exact solution"


@dataclass(frozen=True)
class Samples:
    """What a bench sampled.

    Args:
        generated: The samples of each row, in the order of the rows; fewer where the last rows did not run.
        exact: The images of the exact solution of each model, by its name, "vanilla" or "skip".
        names: The name of each sample.
        similarity: The feature similarity of each model, by its name.
    """

    generated: Sequence[Generated]
    exact: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ()
    similarity: Mapping[str, Similarity] = field(default_factory=dict)

    @property
    def images(self) -> list[Any]:
        """The images of each row, uint8 (N, [F,] H, W, 3), or None where it has none."""
        return [result.images for result in self.generated]


def collect_samples(bench: Bench) -> Samples:
    """Return what a bench sampled, after its run; measure the feature similarity in a further run of each model."""
    exact: dict[str, Any] = {}
    for name, solution in bench.solutions.exact.items():
        if not any(solution.images is images for images in exact.values()):
            exact[name] = solution.images
    similarity = {}
    for case in bench.cases:
        if case.name == case.reference:
            with bench.pipe_of(case) as pipe:
                measured = measure_similarity(
                    pipe, bench.conditions, num_inference_steps=case.steps, **bench.arguments
                )
            if measured is not None:
                similarity[case.name] = measured
    return Samples(bench.generated, exact, name_samples(bench.conditions), similarity)


def name_samples(conditions: Sequence[int | str | None]) -> list[str]:
    """Return a name for each sample: its number, and its class or the beginning of its prompt."""
    names = []
    for number, condition in enumerate(conditions, 1):
        what = f"class {condition}" if isinstance(condition, int) else shorten(condition or "", 60, placeholder=" ...")
        names.append(f"{number}: {what}" if what else f"sample {number}")
    return names


def make_report(report: dict, samples: Samples, title: str, **sections: Any) -> Report:
    """Return the HTML report of a bench.

    Args:
        report: The report of ``Bench.report``.
        samples: What it sampled.
        title: The heading of the page.
        sections: Further or other sections, as for ``Report``.
    """
    rows = report["rows"]
    settings: dict[str, Any] = {
        "subtitle": f"{report['model']} on {report['device_name']}, {report['dtype']}, "
        f"{report['num_inference_steps']} steps of {rows[0]['sampler']}, {report['date'][:10]}",
        "lead": make_headline(rows, report["macs"]),
        "details": [report["verdict"], *([report["target"]] if report["target"] else []), LEGEND],
        "warnings": report["warnings"],
        "comparison": _comparison(rows, samples),
        "plots": _plots(rows, report["macs"]),
        "tables": [make_table(rows)],
        "maps": _heat_maps(samples.similarity),
        "schedules": _schedules(rows, samples.generated),
        "commands": [Command(report["command"], "Run this bench again.")],
        "facts": _facts(report),
        "notes": report["notes"],
    }
    return Report(title, **{**settings, **sections})


def make_table(rows: Sequence[dict], **columns: Sequence[str]) -> Table:
    """Return the table of a bench.

    Args:
        rows: Rows of ``bench --json``.
        columns: Further columns: name, which has an entry in ``HELP``, to the cell of each row.
    """
    names, lines = table(rows)
    columns_of_text = ("case", "schedule", "forecast")
    head = [Column(name, HELP[name], numeric=name not in columns_of_text) for name in (*names, *columns)]
    return Table("All figures", head, [[*line, *more] for line, *more in zip(lines, *columns.values())])


def title_of(row: dict) -> str:
    """Return the name of a row where it stands alone: "Skip-DiT, late-dense 13, taylor2 residual, N=1"."""
    if row["peer"]:
        return f"{row['peer']}, {row['schedule']}"
    model = "Skip-DiT" if row["reference"] == "skip" else "vanilla"
    if row["cache_layers"] is None:
        steps = f"{row['steps']} {'step' if row['steps'] == 1 else 'steps'} of {row['sampler'].split(' at ')[0]}"
        return f"{model}, all {steps}" if row["case"] == row["reference"] else f"{model}, {steps}"
    kind = "" if row["case"] in ("skip-cache", "vanilla-cache") else f" ({row['case']})"
    forecast = row["forecast"] + (" residual" if row["cache_target"] == "residual" else "")
    return f"{model}, {row['schedule']}, {forecast}, N={row['cache_layers']}{kind}"


def _titles(rows: Sequence[dict]) -> list[str]:
    """Return the titles of rows, numbered where two are equal."""
    titles: list[str] = []
    for row in rows:
        title, number = title_of(row), 1
        while title in titles:
            number += 1
            title = f"{title_of(row)} [{number}]"
        titles.append(title)
    return titles


def _comparison(rows: Sequence[dict], samples: Samples):
    """Return the comparison of the rows that have images, and of the exact solutions."""
    best = best_cached(rows)
    pictures, right = {}, None
    for reference, images in samples.exact.items():
        if images is not None:
            pictures[f"{EXACT} {MODELS[reference]}" if len(samples.exact) > 1 else EXACT] = images
    left = next(
        (name for name in pictures if best is None or len(pictures) == 1 or name.endswith(MODELS[best["reference"]])),
        None,
    )
    for row, title, generated in zip(rows, _titles(rows), samples.generated):
        if generated.images is not None:
            pictures[title] = generated.images
            left = left or title
            if row is best or (right is None and row["cache_layers"] is not None):
                right = title
    shapes = {images.shape for images in pictures.values()}
    return make_comparison(pictures, samples.names, left, right) if len(shapes) == 1 else None


def _plots(rows: Sequence[dict], macs: Mapping[str, float]) -> list[Plot]:
    """Return the plot of quality over cost; none if no two rows have both."""
    measured = next((name for name in QUALITIES if sum(row[name] is not None for row in rows) > 1), None)
    if measured is None:
        return []
    lines: dict[tuple[str, str], list[tuple[dict, str]]] = {}
    for row, title in zip(rows, _titles(rows)):
        if row[measured] is not None:
            name = MODELS[row["case"]] + ", all steps" if row["case"] in MODELS else row["peer"] or line_name(row)
            lines.setdefault((row["case"], name), []).append((row, title))
    colours: dict[str, int] = {}
    series = []
    for (case, name), points in lines.items():
        colour = colours.setdefault(_caching(name), len(colours) % len(COLOURS))
        is_plain = case in PLAIN or case in MODELS
        series.append(
            Series(
                name,
                [_point(row, title, measured, macs) for row, title in points],
                colour=-1 if is_plain else colour,
                shape=SHAPES.get(case, "circle" if case in MODELS else "diamond"),
                hollow=case in ("vanilla-cache", "vanilla"),
                joined=case not in NO_LINE and len(points) > 1,
            )
        )
    return [
        Plot(
            "Quality against cost",
            "Each mark is a row of the table. Higher is closer, further left is cheaper.",
            "cost in full forwards of the model without branches (logarithmic)",
            QUALITIES[measured],
            series,
            log_x=True,
            has_front=True,
        )
    ]


def _caching(name: str) -> str:
    """Return what the names of lines of one colour have in common: all but the model."""
    return name.split(", ", 1)[-1]


def _point(row: dict, title: str, measured: str, macs: Mapping[str, float]) -> Point:
    cost = row["cost"] * macs[row["reference"]] / macs["vanilla"]
    if row["cache_layers"] is not None or row["peer"]:
        label = row["schedule"] if not row["peer"] else ""
    else:
        label = f"{row['steps']} steps"
    return Point(cost, row[measured], label or "", f"{title}: {row[measured]:.1f} dB at a cost of {cost:.1f}")


def _heat_maps(similarity: Mapping[str, Similarity]) -> list[HeatMaps]:
    """Return the feature similarity of each model, and what it says."""
    if not similarity:
        return []
    maps = [HeatMap(f"The model {MODELS[name]}", each.cosines) for name, each in similarity.items()]
    means = " and ".join(f"{each.mean:.4f} {MODELS[name]}" for name, each in similarity.items())
    caption = (
        f"The cosine between a block's output in one step and in the step before is {means}, in the mean. "
        "Where it is near 1, a step can reuse the features of the last one, which is what a cache lives on; "
        "where it is lower, full steps are worth their cost."
    )
    blocks, steps = len(maps[0].values), len(maps[0].values[0])
    across, down = Axis("step", [str(at + 2) for at in range(steps)]), Axis("block", [str(at) for at in range(blocks)])
    measure = "cosine between a block's output in one step and in the step before"
    return [HeatMaps("Feature similarity by step and block", maps, caption, measure, across, down)]


def _schedules(rows: Sequence[dict], generated: Sequence[Generated]) -> list[Schedule]:
    """Return the full steps of each row that ran; a peer tells only their number."""
    return [
        Schedule(title, row["steps"], None if row["peer"] else each.full_steps, row["full_steps"])
        for row, title, each in zip(rows, _titles(rows), generated)
    ]


def name_machine(facts: Mapping[str, Any]) -> str:
    """Return in words what a report ran on."""
    return f"{facts['device_name']} ({facts['device']}), {count(facts['threads'], 'thread')}, {facts['dtype']}"


def _facts(report: dict) -> dict[str, str]:
    """Return the machine, the versions and the settings of a bench."""
    names = ("batch_size", "guidance_scale", "seed", "rounds", "height", "width", "num_frames")
    settings = {name.replace("_", " "): report.get(name) for name in names}
    return {
        "Model": report["model"],
        "Machine": name_machine(report),
        "Date": report["date"],
        "Versions": list_versions(report["versions"]),
        "Scheduler": f"{report['num_inference_steps']} steps of {report['scheduler']}",
        "Settings": ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None),
    }
