"""``skipdit evaluate``: the scores of samples against real images, beside what they depend on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipdit_cli import console, files, processes
from skipdit_cli.commands import evaluate_report, options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.evaluation.evaluate_settings import EvaluateSettings
from skipdit_cli.processes import Team

if TYPE_CHECKING:
    from skipdit_cli.evaluation import FeatureNetwork, Statistics
    from skipdit_cli.evaluation.caption_score import CaptionScorer
    from skipdit_cli.evaluation.image_set import ImageSet

Samples = Annotated[
    str, typer.Argument(metavar="SAMPLES", help="Folder of images or videos, or an .npz file of images (arr_0).")
]


@with_settings(EvaluateSettings)
def evaluate(
    samples: Samples,
    settings: EvaluateSettings = None,  # type: ignore[assignment]
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Score samples: FID, sFID, KID, Inception Score, precision and recall, FVD, CLIP score.

    The feature network is a file on this machine; nothing is downloaded.

    skipdit evaluate samples --reference digits
    """
    settings.check()
    team = processes.join(settings.device)
    team.on_main(lambda: _claim_output(settings, samples))

    from skipdit_cli.evaluation import load_features
    from skipdit_cli.evaluation.distances import check_torchmetrics
    from skipdit_cli.evaluation.image_set import open_image_set
    from skipdit_cli.sampling.device import select_device

    check_torchmetrics()
    device, _ = select_device(settings.device)
    inputs = (settings.feature_size, settings.feature_range, settings.feature_layout, settings.feature_frames)
    network = load_features(settings.features or "digits", *inputs, device=device)
    reading = (network.image_size, network.num_frames)
    images = open_image_set(samples, "SAMPLES", *reading, settings.max_samples)
    reference = _open_reference(settings, network)
    captions = _open_captions(settings, images, device)
    real = _extract("Reference", reference, network, settings, True, team)
    statistics: Any = _extract("Samples", images, network, settings, False, team)
    caption_score = None if captions is None else _score_captions(*captions, images, settings.batch_size, team)
    processes.leave()  # torchmetrics would gather over all of them
    if not team.is_main:
        return
    scores = _score(images, statistics, real, network, settings)
    if caption_score is not None:
        scores["clip_score"] = caption_score
        del scores["reasons"]["clip_score"]
    if settings.save_statistics is not None:
        from skipdit_cli.evaluation.kept_statistics import save_statistics

        save_statistics(statistics, settings.save_statistics)
        console.say(f"Wrote {settings.save_statistics}.")
    evaluate_report.print_scores(scores, images, network, settings)


def _claim_output(settings: EvaluateSettings, samples: str) -> None:
    """Check that the file of statistics may be written, and lock it."""
    if settings.save_statistics is not None:
        reads = {"SAMPLES": samples, "--reference": settings.reference, "--features": settings.features}
        files.check_apart(settings.save_statistics, reads)
        files.check_file(settings.save_statistics, settings.overwrite)
        files.hold(settings.save_statistics, "--save-statistics")


def _open_reference(settings: EvaluateSettings, network: FeatureNetwork) -> ImageSet | Statistics | None:
    """Return the images of ``--reference``, or its statistics where it is an .npz file of those."""
    from skipdit_cli.evaluation.image_set import open_image_set
    from skipdit_cli.evaluation.kept_statistics import load_statistics

    name = settings.reference
    if name is None:
        return None
    if Path(name).suffix == ".npz" and Path(name).is_file():
        from skipdit_cli.evaluation.npz_file import npz_names

        names = npz_names(Path(name))
        if "arr_0" not in names and {"mu", "sigma"} <= set(names):
            return load_statistics(Path(name), network)
    return open_image_set(name, "--reference", network.image_size, network.num_frames, None)


def _open_captions(settings: EvaluateSettings, images: ImageSet, device) -> tuple[CaptionScorer, list[str]] | None:
    """Return the CLIP model and the caption of each sample, or None where no CLIP score is requested."""
    from skipdit_cli.evaluation.caption_score import CaptionScorer, read_captions

    if settings.clip is None or "clip_score" not in settings.metric_names():
        return None
    return CaptionScorer(settings.clip, device), read_captions(images, settings.captions)


def _extract(
    title: str,
    images: ImageSet | Statistics | None,
    network: FeatureNetwork,
    settings: EvaluateSettings,
    is_reference: bool,
    team: Team,
) -> Statistics | None:
    """Return the statistics of images, with a progress bar."""
    from skipdit_cli.evaluation.extraction import extract
    from skipdit_cli.evaluation.image_set import ImageSet

    if not isinstance(images, ImageSet):
        return images
    with console.progress(title, images.count) as advance:
        return extract(images, network, settings.batch_size, is_reference, advance, team)


def _score(
    images: ImageSet,
    statistics: Statistics,
    real: Statistics | None,
    network: FeatureNetwork,
    settings: EvaluateSettings,
) -> dict:
    """Return the scores; null ones have a reason."""
    from skipdit_cli.evaluation.scores import METRICS, agreement_of, frame_scores, score

    requested = settings.metric_names()
    frechet = ("fid", "fvd") if network.takes_videos else ("fid",)
    metrics = [name for name in METRICS if name in requested or (name == "fid" and set(frechet) & set(requested))]
    scores = score(statistics, real, network, metrics)
    scores |= {"fvd": scores["fid"] if network.takes_videos else None, "clip_score": None}
    reasons = scores["reasons"]
    if network.takes_videos:
        reasons |= {"fvd": reasons["fid"]} if "fid" in reasons else {}
        scores["fid"], reasons["fid"] = None, "the network takes videos: this is fvd"
    else:
        reasons["fvd"] = "the network takes images, not videos"
    reasons["clip_score"] = "no --clip"
    labels = images.class_labels() if "agreement" in requested and statistics.logits is not None else None
    for values, causes in (agreement_of(statistics, labels), frame_scores(statistics)):
        scores |= values
        reasons |= causes
    for name in [name for name in scores if name.removesuffix("_std") not in (*requested, *evaluate_report.FACTS)]:
        del scores[name]
    scores["reasons"] = {name: reason for name, reason in reasons.items() if name in scores}
    return scores


def _score_captions(
    scorer: CaptionScorer, captions: list[str], images: ImageSet, batch_size: int, team: Team
) -> float:
    from skipdit_cli.evaluation.caption_score import mean_caption_score

    with console.progress("CLIP score", images.count) as advance:
        return mean_caption_score(scorer, images, captions, batch_size, advance, team)
