"""What study ``smoothness`` finds: its surfaces, similarities and spectral norms, as the pieces of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from skipdit_cli.console import count
from skipdit_cli.reports import Column, Plot, Point, Series, Table
from skipdit_cli.studies.smoothness.smoothness_maps import TITLES, Surfaces, similarity_maps, surface_maps
from skipdit_cli.studies.smoothness.surface import share_above
from skipdit_cli.studies.spread import RULE, half_width, sign_beyond_spread, spread
from skipdit_cli.studies.study import Findings


def find(
    settings: Any, surfaces: Surfaces, similar: Mapping[str, Sequence[Mapping]], norms: Mapping[str, Sequence[Mapping]]
) -> Findings:
    """Return the findings.

    Args:
        settings: The ``SmoothnessSettings``.
        surfaces: The perturbation surfaces.
        similar: Model to the results of ``measurement.similarities``, one for each training seed.
        norms: Model to the results of ``measurement.norms``, one for each training seed.
    """
    numbers = {
        name: [
            {"seed": seed, "direction": direction, "step": step, **_facts(each, settings)}
            for (seed, direction), of in runs.items()
            for step, each in zip(settings.steps, of)
        ]
        for name, runs in surfaces.items()
    }
    rival = "vanilla-longer" if "vanilla-longer" in surfaces else "vanilla"
    verdicts = [_verdict(step, numbers["skip-dit"], numbers[rival], TITLES[rival]) for step in settings.steps]
    halves = [each["halves"] for each in norms["skip-dit"]]
    return Findings(
        lead=verdicts[0],
        details=[*verdicts[1:], _similarity_sentence(similar), _norm_sentence(norms)],
        numbers={"surfaces": numbers, "similarity": dict(similar), "norms": dict(norms)},
        tables=[
            _surface_table(numbers, settings),
            _similarity_table(similar),
            _norm_table(norms),
            *([_half_table(halves)] if any(halves) else []),
        ],
        plots=_norm_plots(norms, settings.steps),
        maps=[*surface_maps(surfaces, settings), *similarity_maps(similar)],
        notes=[
            "Directions are drawn from N(0, 1) for each parameter by its name, and each output row is scaled to the "
            "norm of the weight's row; biases are not perturbed. Models share the directions of the parameters that "
            "they share. The paper does not say how its directions are scaled.",
            "Each model is looked at on its own unperturbed trajectory from the same noise, x_t, t and labels being "
            "the same for every alpha and beta.",
            "The Jacobian of a block with its merge is by the trunk's stream; the source of the branch is fixed.",
            f"{RULE} Here it must exceed its spread over pairs of directions as well.",
        ],
    )


def _facts(surface: Mapping[str, Any], settings: Any) -> dict[str, float]:
    """Return the minimum, the mean and the area of a surface."""
    cosines = [value for row in surface["cosine"] for value in row]
    errors = [value for row in surface["relative_l2"] for value in row]
    share = share_above(surface["cosine"], settings.level)
    return {
        "minimum": min(cosines),
        "mean": fmean(cosines),
        "area": share * (2 * settings.radius) ** 2,
        "share": share,
        "relative_l2": fmean(errors),
        "highest_relative_l2": max(errors),
    }


def _means(rows: Sequence[Mapping], step: int, measure: str, by: str) -> dict[int, float]:
    """Return the mean of a measure at one step, for each training seed or direction seed."""
    chosen = [row for row in rows if row["step"] == step]
    return {key: fmean(row[measure] for row in chosen if row[by] == key) for key in {row[by]: None for row in chosen}}


def _verdict(step: int, skip: Sequence[Mapping], vanilla: Sequence[Mapping], rival: str) -> str:
    """Return whether the surface of Skip-DiT is smoother at one step, with both spreads of the paired difference."""
    shared = len({row["seed"] for row in vanilla}) > 1 or len({row["seed"] for row in skip}) == 1
    others = {(row["seed"] if shared else 0, row["direction"]): row for row in vanilla if row["step"] == step}
    differences = [
        {**row, "difference": row["mean"] - others[row["seed"] if shared else 0, row["direction"]]["mean"]}
        for row in skip
        if row["step"] == step
    ]
    by_seed, by_direction = (
        list(_means(differences, step, "difference", by).values()) for by in ("seed", "direction")
    )
    mean = fmean(by_seed)
    if len(by_seed) == 1:
        answer = "one training seed does not say whether this is chance"
    elif not sign_beyond_spread(by_seed) or abs(mean) <= half_width(by_direction):
        answer = "the difference is inside the spread"
    elif mean > 0:
        answer = "Skip-DiT is smoother, by more than the spread"
    else:
        answer = "Skip-DiT is less smooth, by more than the spread"
    ours, theirs = (fmean(_means(rows, step, "mean", "seed").values()) for rows in (skip, vanilla))
    return (
        f"When weights are perturbed at random, the features of step {step} keep a mean cosine of {ours:.4f} to the "
        f"unperturbed ones in Skip-DiT, and of {theirs:.4f} in {rival}: {answer} (difference {mean:+.4f}, "
        f"±{half_width(by_seed):.4f} over {count(len(by_seed), 'training seed')} and ±{half_width(by_direction):.4f} "
        f"over {count(len(by_direction), 'pair')} of directions)."
    )


def _surface_table(numbers: Mapping[str, Sequence[Mapping]], settings: Any) -> Table:
    """Return the numbers of the surfaces, each with its spread over training seeds and over directions."""
    level = f"{settings.level:g}"
    columns = [
        Column("model", "the model, and which of its weights are perturbed", numeric=False),
        Column("step", f"the denoising step, of {settings.num_inference_steps}"),
        Column("mean", "mean cosine over the surface, ± over training seeds"),
        Column("± directions", "the sample standard deviation of the mean cosine over pairs of directions"),
        Column("minimum", "lowest cosine of the surface, ± over training seeds"),
        Column(
            f"area at {level}", f"area of alpha and beta where the cosine is {level} or more, ± over training seeds"
        ),
        Column("relative L2", "mean of ||f' - f|| / ||f|| over the surface, ± over training seeds"),
    ]
    rows = [
        [
            TITLES[name],
            str(step),
            spread(list(_means(each, step, "mean", "seed").values()), 4),
            f"{half_width(list(_means(each, step, 'mean', 'direction').values())):.4f}",
            *(
                spread(list(_means(each, step, measure, "seed").values()), digits)
                for measure, digits in (("minimum", 4), ("area", 4), ("relative_l2", 4))
            ),
        ]
        for step in settings.steps
        for name, each in numbers.items()
    ]
    return Table("Perturbation surfaces", columns, rows)


def _mean_cosines(each: Sequence[Mapping], kind: str) -> str:
    """Return the mean cosine and its spread over seeds; "-" where a run of one step has no successive ones."""
    rows = [[value for row in one[kind] or () for value in row if value is not None] for one in each]
    return spread([fmean(values) for values in rows], 4) if all(rows) else "-"


def _similarity_table(similar: Mapping[str, Sequence[Mapping]]) -> Table:
    columns = [
        Column("model", "the model", numeric=False),
        Column(
            "successive steps", "mean cosine of a block's output with that of the step before, ± over training seeds"
        ),
        Column("cached", "mean cosine of a block's output in a cached run with that in an all-full run, where it ran"),
    ]
    rows = [
        [TITLES[name], *(_mean_cosines(each, kind) for kind in ("successive", "cached"))]
        for name, each in similar.items()
    ]
    return Table("Similarity of features", columns, rows)


def _similarity_sentence(similar: Mapping[str, Sequence[Mapping]]) -> str:
    parts = []
    for name, each in similar.items():
        successive, cached = (_mean_cosines(each, kind) for kind in ("successive", "cached"))
        parts.append(f"{successive} and {cached} in {TITLES[name]}")
    return (
        "The mean cosines of a block's output to that of the step before, and of its output with a cache to that "
        f"without one, are {'; '.join(parts)} (± over training seeds)."
    )


def _block_means(each: Mapping, kind: str) -> list[float | None]:
    """Return the norm of each block, mean over steps; None where it has none."""
    return [
        None if values[0] is None else fmean(values)  # type: ignore[type-var]
        for values in zip(*(step[kind] for step in each["blocks"]))
    ]


def _mean_norm(each: Mapping, kind: str) -> float | None:
    values = [value for value in _block_means(each, kind) if value is not None]
    return fmean(values) if values else None


def _norm_table(norms: Mapping[str, Sequence[Mapping]]) -> Table:
    columns = [
        Column("model", "the model", numeric=False),
        Column(
            "block", "spectral norm of a block's Jacobian, mean over blocks, steps and samples, ± over training seeds"
        ),
        Column("block with merge", "the same of the target blocks with their merge, by the trunk's stream"),
        Column("model's", "spectral norm of the Jacobian of the predicted noise by x_t, mean over steps and samples"),
    ]
    rows = []
    for name, each in norms.items():
        fused = [value for one in each if (value := _mean_norm(one, "fused")) is not None]
        blocks = [value for one in each if (value := _mean_norm(one, "block")) is not None]
        cells = [
            spread(blocks, 3),
            spread(fused, 3) if fused else "-",
            spread([fmean(one["model"]) for one in each], 3),
        ]
        rows.append([TITLES[name], *cells])
    return Table("Spectral norms of Jacobians", columns, rows)


def _norm_sentence(norms: Mapping[str, Sequence[Mapping]]) -> str:
    parts = [f"{spread([fmean(one['model']) for one in each], 3)} in {TITLES[name]}" for name, each in norms.items()]
    return f"The spectral norm of the Jacobian of the predicted noise by x_t is {'; '.join(parts)}."


def _half_table(halves: Sequence[Sequence[Mapping[str, float]]]) -> Table:
    columns = [
        Column("pair", "source block and target block", numeric=False),
        Column("W_x", "spectral norm of the half of the Linear that takes the trunk, ± over training seeds"),
        Column("W_s", "spectral norm of the half that takes the source"),
        Column("power iteration", "the largest relative difference of power iteration to the exact values"),
    ]
    rows = []
    for at, seeds in enumerate(zip(*halves)):
        differences = [
            abs(one[f"{half}_power"] - one[half]) / max(one[half], 1e-30) for one in seeds for half in ("x", "s")
        ]
        values = [spread([one[half] for one in seeds], 4) for half in ("x", "s")]
        rows.append([f"pair {at}", *values, f"{max(differences):.0e}"])
    return Table("Spectral norms of the branches", columns, rows)


def _norm_plots(norms: Mapping[str, Sequence[Mapping]], steps: Sequence[int]) -> list[Plot]:
    """Return the plot of the spectral norm of each block, alone and with its merge."""
    series = []
    for colour, (name, each) in enumerate(norms.items()):
        for kind in ("block", "fused"):
            means = list(zip(*(_block_means(one, kind) for one in each)))
            points = [
                Point(
                    at,
                    fmean(values),
                    title=f"{TITLES[name]}, block {at}: {spread(values, 3)}",
                    spread=half_width(values),
                )
                for at, values in enumerate(means)
                if values[0] is not None
            ]
            if points:
                title = TITLES[name] if kind == "block" else f"{TITLES[name]}, with the merge"
                series.append(Series(title, points, colour, hollow=kind == "fused", joined=True))
    caption = (
        f"Mean over denoising steps {', '.join(map(str, steps))} and over samples; bars are the sample standard "
        "deviation over training seeds."
    )
    return [Plot("Spectral norm of each block's Jacobian", caption, "block", "spectral norm", series)]
