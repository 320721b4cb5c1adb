"""The settings of ``skipdit evaluate``: each flag, its default, its help text and its range, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.settings import OUTPUT, setting

NETWORK = "Feature network"
METRIC_NAMES = (
    *("fid", "sfid", "fvd", "kid", "inception_score", "precision", "recall", "agreement", "clip_score"),
    *("subject_consistency", "temporal_flickering", "frame_difference"),
)
NEED_REFERENCE = ("fid", "sfid", "fvd", "kid", "precision", "recall")
"""The metrics that compare samples with real ones."""
DIGITS = "digits"
"""The data set and the feature network of handwritten digits."""


@dataclass(frozen=True)
class EvaluateSettings:
    """The settings of ``skipdit evaluate``."""

    reference: str | None = setting(
        None,
        "Real images: a folder, an .npz file of images (arr_0) or of statistics (mu, sigma), or digits, digits:train, "
        "digits:test. [default: none, and no score that needs one]",
        metavar="DIR|FILE|digits",
    )
    metrics: str | None = setting(
        None, f"List of {', '.join(METRIC_NAMES)}. [default: all that can be computed]", metavar="LIST"
    )
    max_samples: int | None = setting(
        None, "Score the first samples only. [default: all]", minimum=2, maximum=10_000_000
    )
    batch_size: int = setting(64, "Images or videos per batch.", minimum=1, maximum=100_000)
    features: str | None = setting(
        None,
        "digits, or a TorchScript file that returns features. [default: digits where the reference is digits]",
        NETWORK,
        metavar="digits|FILE",
    )
    feature_size: int | None = setting(
        None,
        "Height and width to which images are resized for the network; 0 leaves them. [default: as it declares]",
        NETWORK,
        minimum=0,
        maximum=4096,
    )
    feature_range: str | None = setting(
        None, "Pixels that the network takes: uint8, 0:1 or -1:1. [default: as it declares, else uint8]", NETWORK
    )
    feature_layout: str | None = setting(
        None,
        "Order of its input: NCHW of images; NTCHW or NCTHW of videos, for FVD. [default: as it declares, else NCHW]",
        NETWORK,
    )
    feature_frames: int | None = setting(
        None,
        "Frames that are taken of each video. [default: as the network declares, else all]",
        NETWORK,
        minimum=1,
        maximum=10_000,
    )
    clip: Path | None = setting(
        None, "Folder of a CLIP model, for the CLIP score of samples and their prompts.", NETWORK, metavar="DIR"
    )
    captions: Path | None = setting(
        None,
        "metadata.jsonl or .csv with the caption of each sample. [default: the prompts that the samples record]",
        metavar="FILE",
    )
    device: str = setting("auto", "cpu, cuda, cuda:N or mps; auto takes CUDA, else MPS, else the CPU.", NETWORK)
    save_statistics: Path | None = setting(
        None,
        "Write the statistics of the samples to this .npz file, a --reference of later runs.",
        OUTPUT,
        metavar="FILE.npz",
    )
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)

    def check(self) -> None:
        """Refuse values that no run can use.

        Raises:
            UsageError: A metric is unknown or lacks what it needs, there is no feature network, or the statistics
                would not be an .npz file.
        """
        for name in self.metric_names():
            if name not in METRIC_NAMES:
                raise UsageError(
                    f"Got --metrics '{name}' but expected a list of {', '.join(METRIC_NAMES)}."
                    f"{nearest(name.lower().replace('-', '_'), METRIC_NAMES)}"
                )
        if self.features is None and not is_digits(self.reference):
            raise UsageError(
                "Got no --features; give --features FILE, a TorchScript network on this machine such as Inception's, "
                "or --features digits for handwritten digits."
            )
        lacking = [name for name in self.metric_names() if name in NEED_REFERENCE] if self.metrics else []
        if lacking and self.reference is None:
            raise UsageError(
                f"Got --metrics {lacking[0]} without --reference, the real images to compare with; add it."
            )
        if self.metrics and "clip_score" in self.metric_names() and self.clip is None:
            raise UsageError("Got --metrics clip_score without --clip DIR, the folder of a CLIP model; add it.")
        if self.captions is not None and self.clip is None:
            raise UsageError("Got --captions without --clip DIR, whose score they are for; add it, or leave them out.")
        if self.save_statistics is not None and self.save_statistics.suffix != ".npz":
            raise UsageError(f"Got --save-statistics {self.save_statistics} but expected a .npz file.")

    def metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics to compute."""
        return METRIC_NAMES if not self.metrics else tuple(name.strip() for name in self.metrics.split(","))


def is_digits(name: str | None) -> bool:
    """Return whether images are named as the digits of the package, or as one of their splits: digits:test."""
    return name is not None and (name == DIGITS or name.startswith(f"{DIGITS}:"))
