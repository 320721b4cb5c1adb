"""The verdict of a bench in words: what the cache buys beside fewer steps of a good sampler, by ``psnr_exact``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TOLERANCE = 0.3
"""How many dB below the full run still count as its accuracy."""
EQUAL = 0.05
"""The difference in dB that is none in print."""
ROUNDING = 0.5
"""How many forwards more than a cached row one of fewer steps may cost, for its steps are rounded."""
NOT_MEASURED = (
    "Without the exact solution this table does not tell whether fewer steps of a better sampler serve as well."
)


def make_verdict(rows: Sequence[dict], macs: Mapping[str, float]) -> str:
    """Return two or three sentences: the best cached row, the plain run it has to beat, and how many rows do so.

    The best cached row is the cheapest with the accuracy of the full run, or, where none has it, the most accurate.

    Args:
        rows: Rows of ``bench --json``.
        macs: Multiply-adds of a forward of each model, which make costs comparable: "vanilla", perhaps "skip".
    """
    measured = [row for row in rows if row["psnr_exact"] is not None]
    if not measured:
        return NOT_MEASURED
    best = best_cached(rows)
    if best is None:
        return "No cached row has an accuracy, so there is nothing to compare with fewer steps."
    cached = [row for row in measured if row["cache_layers"] is not None]
    plain = [row for row in measured if _is_plain(row)]
    sentences = [_describe_best(best, _full_run(best, rows)), _compare_plain(best, plain, macs)]
    if plain:
        rivals = [(row, _affordable(row, plain, macs)) for row in cached]
        wins = [row for row, others in rivals if others and _beats(row, others)]
        sentences.append(_count_wins(len(wins), len([row for row, others in rivals if others]), len(cached)))
    return " ".join(sentences)


def best_cached(rows: Sequence[dict]) -> dict | None:
    """Return the cheapest cached row with the accuracy of the full run, or, where none has it, the most accurate.

    Args:
        rows: As for ``make_verdict``.

    Returns:
        The row; None if no cached row and its full run have an accuracy.
    """
    measured = [row for row in rows if row["psnr_exact"] is not None]
    cached = [row for row in measured if row["cache_layers"] is not None]
    if not cached or not all(any(row["case"] == each["reference"] for row in measured) for each in cached):
        return None
    as_accurate = [row for row in cached if _reaches(row, _full_run(row, measured))]
    most_accurate = max(cached, key=lambda row: (row["psnr_exact"], -row["cost"]))
    return min(as_accurate, key=_cost) if as_accurate else most_accurate


def make_headline(rows: Sequence[dict], macs: Mapping[str, float]) -> str:
    """Return the result in one sentence: the cost of the best cached row and how close it comes to the exact
    solution, the same cache with or without skip branches, and the plain steps that come as close.

    Args:
        rows, macs: As for ``make_verdict``.

    Returns:
        The sentence; without accuracies, one on the distance to the uncached run; empty if there is none either.
    """
    best = best_cached(rows)
    if best is None:
        return _headline_without_accuracy(rows)
    full = _full_run(best, rows)
    parts = [f"At {_share_of_cost(best, full)} of the cost, this model's cached samples are {_closeness(best, full)}"]
    twin = _twin(best, rows)
    if twin is not None:
        difference = twin["psnr_exact"] - best["psnr_exact"]
        parts.append(f"{_branches(twin)} the same cache is {_apart(difference)}")
    plain = [row for row in rows if row["psnr_exact"] is not None and _is_plain(row)]
    if plain:
        parts.append(_plain_steps(best, plain, macs))
    return "; ".join(parts) + "."


def _headline_without_accuracy(rows: Sequence[dict]) -> str:
    cached = [row for row in rows if row["cache_layers"] is not None and row["psnr"] is not None]
    if not cached:
        return ""
    best = max(cached, key=lambda row: row["psnr"])
    text = f"At {_share_of_cost(best, _full_run(best, rows))} of the cost, this model's cached samples have a PSNR of"
    return f"{text} {best['psnr']:.1f} dB to its uncached ones."


def _share_of_cost(row: dict, full: dict) -> str:
    """Return the share of the full run's FLOPs that a row takes: "a third", "44 %"."""
    share = row["cost"] / full["cost"]
    names = {"half": 1 / 2, "a third": 1 / 3, "a quarter": 1 / 4, "a fifth": 1 / 5, "a tenth": 1 / 10}
    near = [name for name, value in names.items() if abs(share / value - 1) < 0.04]
    return f"about {near[0]}" if near else f"{share:.0%}".replace("%", " %")


def _closeness(row: dict, full: dict) -> str:
    difference = row["psnr_exact"] - full["psnr_exact"]
    if abs(difference) <= TOLERANCE:
        return f"as close to the exact solution as {_name(full)}"
    word = "closer to the exact solution than" if difference > 0 else "further from the exact solution than"
    return f"{abs(difference):.1f} dB {word} {_name(full)}"


def _twin(row: dict, rows: Sequence[dict]) -> dict | None:
    """Return the row of the other model, with or without skip branches, that has the same cache."""
    names = ("skip-cache", "vanilla-cache")
    keys = ("schedule", "forecast", "cache_target", "cache_layers", "sampler")
    for other in rows:
        is_other = {row["case"], other["case"]} == {*names} and other["psnr_exact"] is not None
        if is_other and all(row[key] == other[key] for key in keys):
            return other
    return None


def _branches(row: dict) -> str:
    return "with skip branches" if row["reference"] == "skip" else "without skip branches"


def _apart(difference: float) -> str:
    """Return what a difference in dB to the best row means."""
    if abs(difference) <= TOLERANCE:
        return "just as close"
    return f"{abs(difference):.1f} dB {'closer' if difference > 0 else 'further away'}"


def _plain_steps(best: dict, plain: Sequence[dict], macs: Mapping[str, float]) -> str:
    """Return the fewest plain steps that come as close as the best cached row, and the cost of both."""
    close = [row for row in plain if row["psnr_exact"] >= best["psnr_exact"] - TOLERANCE]
    if not close:
        return "no measured run of fewer plain steps comes as close"
    row = min(close, key=_cost)
    difference = row["psnr_exact"] - best["psnr_exact"]
    cost = f"at a cost of {_number(row['cost'])} instead of {_number(_relative_cost(best, macs))}"
    are = "come as close" if difference <= TOLERANCE else f"are {_apart(difference)}"
    return f"{row['steps']} plain steps of {row['sampler'].split(' at ')[0]} {are}, {cost}"


def _full_run(row: dict, rows: Sequence[dict]) -> dict:
    """Return the uncached run of a row's model."""
    return next(other for other in rows if other["case"] == row["reference"])


def reached_by(rows: Sequence[dict], macs: Mapping[str, float]) -> str | None:
    """Return one sentence that names the cheapest row with the accuracy of the full run; None without accuracies.

    Args:
        rows, macs: As for ``make_verdict``.
    """
    full_runs = {row["case"]: row for row in rows if row["case"] == row["reference"] and row["psnr_exact"] is not None}
    if not full_runs:
        return None
    full = full_runs.get("skip") or full_runs["vanilla"]
    others = [row for row in rows if row["psnr_exact"] is not None and row["case"] not in full_runs]
    others = [row for row in others if row["cost"] < full_runs[row["reference"]]["cost"]]
    equal = [row for row in others if _reaches(row, full_runs[row["reference"]])]
    what = f"Accuracy of {_name(full)} ({full['psnr_exact']:.1f} dB, within {TOLERANCE:g} dB)"
    if not equal:
        return f"{what}: reached by no cheaper row."
    row = min(equal, key=lambda row: _relative_cost(row, macs))
    return f"{what}: reached at a cost of {_number(row['cost'])} by {_name(row)}, {row['psnr_exact']:.1f} dB."


def _describe_best(best: dict, full: dict) -> str:
    cost, difference = best["cost"], best["psnr_exact"] - full["psnr_exact"]
    more = f"{abs(difference):.1f} dB {'more' if difference > 0 else 'less'} than {_name(full)}"
    if abs(difference) < EQUAL:
        more = f"as many as {_name(full)}"
    forwards = "full forward" if _number(cost) == "1" else "full forwards"
    return (
        f"At a cost of {_number(cost)} {forwards} ({full['cost'] / cost:.1f} times fewer), the best cached row "
        f"({_name(best)}) has {best['psnr_exact']:.1f} dB to the exact solution, {more}."
    )


def _compare_plain(best: dict, plain: Sequence[dict], macs: Mapping[str, float]) -> str:
    """Return what fewer steps reach at the cost of the best cached row."""
    rivals = _affordable(best, plain, macs)
    if not rivals:
        return "No run of fewer steps at that cost was measured."
    better = [row for row in rivals if row["psnr_exact"] >= best["psnr_exact"] - EQUAL]
    if not better:
        row = max(rivals, key=lambda row: row["psnr_exact"])
        less = best["psnr_exact"] - row["psnr_exact"]
        return f"For no more than that, {_alone(row)} {row['psnr_exact']:.1f} dB, {less:.1f} dB less."
    row = min(better, key=_cost)
    more = row["psnr_exact"] - best["psnr_exact"]
    extra = "as many" if abs(more) < EQUAL else f"{more:.1f} dB more"
    return (
        f"But {_alone(row)} {row['psnr_exact']:.1f} dB, {extra}, at a cost of {_number(row['cost'])}: "
        "plain fewer steps win here."
    )


def _count_wins(wins: int, count: int, cached: int) -> str:
    """Return how many of the cached rows are more accurate than every plain run at their cost.

    Args:
        wins: Of ``count`` rows at whose cost there is a plain run.
        cached: All cached rows.
    """
    plain = "more accurate than every run of fewer steps that costs no more"
    if not count:
        return "No cached row costs as much as the cheapest run of fewer steps."
    if count < cached:
        best = f"{wins or 'none'} {'is' if wins < 2 else 'are'} {plain}"
        return f"Of {cached} cached rows, {count} cost{'s' * (count == 1)} as much as a run of fewer steps; {best}."
    if count == 1:
        return f"The only cached row is {'' if wins else 'not '}{plain}."
    if wins in (0, count):
        return f"{'Each' if wins else 'None'} of the {count} cached rows is {plain}."
    return f"Of the {count} cached rows, {wins} {'is' if wins == 1 else 'are'} {plain}."


def _is_plain(row: dict) -> bool:
    """Return whether a row is a run of fewer steps without a cache."""
    return row["cache_layers"] is None and row["case"].startswith("fewer-steps")


def _affordable(row: dict, plain: Sequence[dict], macs: Mapping[str, float]) -> list[dict]:
    """Return the plain rows that cost no more than a row, up to the rounding of their steps."""
    return [each for each in plain if _relative_cost(each, macs) <= _relative_cost(row, macs) + ROUNDING]


def _beats(row: dict, rivals: Sequence[dict]) -> bool:
    return all(row["psnr_exact"] > rival["psnr_exact"] for rival in rivals)


def _relative_cost(row: dict, macs: Mapping[str, float]) -> float:
    """Return the cost of a row in full forwards of vanilla."""
    return row["cost"] * macs[row["reference"]] / macs["vanilla"]


def _cost(row: dict) -> float:
    return row["cost"]


def _reaches(row: dict, full: dict) -> bool:
    return row["psnr_exact"] >= full["psnr_exact"] - TOLERANCE


def _name(row: dict) -> str:
    """Return a row in words: "13 steps of dpm++ lu order 2", "skip-cache, late-dense 13, taylor2 residual, N=1"."""
    if row.get("peer"):
        return f"{row['peer']}, {row['schedule']}"
    if row["cache_layers"] is None:
        sampler = row["sampler"] or "its sampler"
        return f"{row['steps']} {'step' if row['steps'] == 1 else 'steps'} of {sampler.split(' at ')[0]}"
    forecast = row["forecast"] + (" residual" if row["cache_target"] == "residual" else "")
    return f"{row['case']}, {row['schedule']}, {forecast}, N={row['cache_layers']}"


def _alone(row: dict) -> str:
    return f"{_name(row)} alone {'has' if row['steps'] == 1 else 'have'}"


def _number(value: float) -> str:
    """Return a number with one decimal, and without it where it is 0."""
    return f"{value:.1f}".removesuffix(".0")
