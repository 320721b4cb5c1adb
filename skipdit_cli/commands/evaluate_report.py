"""The scores of ``skipdit evaluate`` in the terminal and as JSON, with all that they depend on."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from skipdit_cli import console
from skipdit_cli.evaluation.evaluate_settings import NEED_REFERENCE
from skipdit_cli.version import __version__, list_versions

if TYPE_CHECKING:
    from skipdit_cli.evaluation import FeatureNetwork
    from skipdit_cli.evaluation.evaluate_settings import EvaluateSettings
    from skipdit_cli.evaluation.image_set import ImageSet

FACTS = ("reasons", "num_samples", "num_reference")
TITLES = {
    "fid": "FID",
    "sfid": "sFID",
    "fvd": "FVD",
    "kid": "KID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "agreement": "classifier agreement",
    "clip_score": "CLIP score",
    "subject_consistency": "subject consistency",
    "temporal_flickering": "temporal flickering",
    "frame_difference": "difference between frames",
}
ROUNDING = 1e-5
"""Scores and deviations below this are shown as 0; --json has them as they are."""
OF_VIDEOS = ("fvd", "subject_consistency", "temporal_flickering", "frame_difference")


def print_scores(scores: dict, images: ImageSet, network: FeatureNetwork, settings: EvaluateSettings) -> None:
    """Print the table of scores, what they depend on and the warnings, and emit the same as JSON."""
    from skipdit_cli.evaluation.distances import KID_SUBSET_SIZE, KID_SUBSETS, NEIGHBOURS, inception_splits
    from skipdit_cli.evaluation.frame_measures import NEEDS_NETWORKS

    counts = {"num_samples": scores["num_samples"], "num_reference": scores["num_reference"]}
    subset_size = min(value for value in (KID_SUBSET_SIZE, *counts.values()) if value)
    parameters = {
        **network.settings(),
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": subset_size,
        "inception_splits": inception_splits(counts["num_samples"]),
        "neighbours": NEIGHBOURS,
    }
    warnings = _warnings(scores, images.kind)
    versions = {"skipdit": __version__, **{name: version(name) for name in ("torch", "torchmetrics")}}
    reasons = scores["reasons"] | (NEEDS_NETWORKS if images.kind == "videos" and not settings.metrics else {})
    values = {name: value for name, value in scores.items() if name not in FACTS}
    hidden = () if settings.metrics or images.kind == "videos" else OF_VIDEOS
    rows = _rows({name: value for name, value in scores.items() if name not in hidden}, reasons)
    console.table(["metric", "value", "samples", "reference", "note"], rows)
    console.say(f"{_network_line(network)} {list_versions(versions)}.")
    for warning in warnings:
        console.warn(warning)
    console.emit(
        {
            "samples": images.name,
            "kind": images.kind,
            "reference": settings.reference,
            "scores": values,
            "reasons": reasons,
            **counts,
            "settings": parameters,
            "clip": settings.clip and str(settings.clip),
            "versions": versions,
            "warnings": warnings,
        }
    )


def _rows(scores: dict, reasons: dict) -> list[list[object]]:
    rows: list[list[object]] = []
    for name, title in TITLES.items():
        value, deviation = scores.get(name), scores.get(f"{name}_std")
        if value is not None:
            spread = "" if not deviation or deviation < ROUNDING else f" ±{deviation:.2g}"
            rows.append([title, f"{_rounded(value):.4g}{spread}", scores["num_samples"], _reference(name, scores), ""])
        elif name in scores:
            rows.append([title, "-", "-", "-", reasons.get(name, "")])
    return rows


def _rounded(value: float) -> float:
    """Return a score without its rounding error: two equal sets have an FID of 0, not of -5e-07."""
    return 0.0 if abs(value) < ROUNDING else value


def _reference(name: str, scores: dict) -> object:
    return (scores["num_reference"] or "unknown") if name in NEED_REFERENCE else "-"


def _network_line(network: FeatureNetwork) -> str:
    settings = network.settings()
    size = "at their own size"
    if network.image_size is not None:
        size = f"at {network.image_size}x{network.image_size} ({settings['resize_filter']})"
    frames = f", {network.num_frames} frames" if network.num_frames else ""
    kind = "videos" if network.takes_videos else "images"
    return f"Features: {network.name} (sha256 {network.checksum[:12]}), {kind} {size}{frames}, {network.value_range}."


def _warnings(scores: dict, kind: str) -> list[str]:
    """Return what is to be known before a score is compared with another."""
    from skipdit_cli.evaluation.scores import ENOUGH

    warnings = []
    named = next((TITLES[name] for name in ("fid", "sfid", "fvd") if scores.get(name) is not None), None)
    fewest = min(value for value in (scores["num_samples"], scores["num_reference"]) if value)
    if named is not None and fewest < ENOUGH:
        few = console.count(fewest, kind.removesuffix("s"))
        warnings.append(
            f"{named} of {few} is biased upwards, and comparable at equal counts only; KID has no such bias: compare "
            f"by KID, or give {ENOUGH:,} and more."
        )
    if named is not None and scores["num_reference"] is None:
        warnings.append("The reference names neither its network nor its count: be sure that the network is the same.")
    return warnings
