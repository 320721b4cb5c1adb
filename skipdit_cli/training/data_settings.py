"""The settings of training data, which ``skipdit train``, ``finetune`` and ``prepare`` share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.settings import flag_name, setting
from skipdit_cli.training.data_source import check_source, parse_data

POSITIONS = ("center", "random")
"""Where a clip lies in its video and a crop in its picture."""
DATA, VIDEO = "Data", "Video"
"""The panels of ``--help`` for training data."""


def training_setting(default, help: str, panel: str | None = None, *, least=None, choices=(), free=False, **more):
    """Declare a setting of training or of its data.

    Args:
        least: The smallest number allowed.
        choices: The names allowed; empty where any text is.
        free: Whether a resumed run may have another value than its checkpoint.
        more: Further arguments of ``setting``.
    """
    return setting(default, help, panel, least=least, choices=choices, free=free, **more)


@dataclass(frozen=True)
class DataSettings:
    """The data of a training: where they lie, how they are read, and the folder that keeps them encoded."""

    data: str | None = training_setting(
        None,
        "Folder of images or videos, with one folder per class or a metadata.jsonl; hf:NAME[:SPLIT] of Hugging Face "
        "datasets; WebDataset shards, 'wds:shards/{000..009}.tar'; or 'digits', 'moving-digits', 'digits:train'.",
        free=True,
    )

    allow_outside: bool = training_setting(
        False, "Accept files outside --data, listed by path or reached by a link.", DATA, free=True
    )
    image_column: str | None = training_setting(
        None, "Column of images in hf: data, or extension in shards. [default: found by type]", DATA, free=True
    )
    caption_column: str | None = training_setting(
        None, "Column of captions, or extension or JSON key in shards. [default: found by type]", DATA, free=True
    )
    label_column: str | None = training_setting(
        None, "Column of class labels, or extension or JSON key in shards. [default: found by type]", DATA, free=True
    )
    dataset_config_name: str | None = training_setting(
        None, "Configuration (subset) of hf: data on the hub.", DATA, free=True
    )
    random_flip: bool = training_setting(False, "Mirror a random half of the images, drawn anew each time.", DATA)
    label_dropout: float = training_setting(
        0.1, "Share of labels or captions dropped, for classifier-free guidance.", DATA
    )
    crop: str = training_setting(
        "center", "Crop of an image: center, or random, drawn anew each time.", DATA, choices=POSITIONS
    )
    height: int | None = training_setting(
        None,
        "Height of the images for a text-conditional model. [default: the model's own]",
        DATA,
        least=1,
        maximum=16_384,
    )
    width: int | None = training_setting(
        None, "Width of the images. [default: the model's own]", DATA, least=1, maximum=16_384
    )
    cache_latents: Path | None = training_setting(
        None, "Folder that keeps VAE latents and encoded captions for this run and later ones.", DATA, free=True
    )
    dataloader_num_workers: int = training_setting(
        0, "Number of processes that load the data.", DATA, least=0, maximum=1_000, free=True
    )

    num_frames: int | None = training_setting(
        None, "Frames per clip. [default: the model's own]", VIDEO, least=1, maximum=100_000
    )
    frame_stride: int = training_setting(1, "Take every N-th frame of a video.", VIDEO, least=1, maximum=10_000)
    fps_target: float | None = training_setting(
        None, "Pick frames by time, at this many frames per second, instead of by --frame-stride.", VIDEO
    )
    clip: str | None = training_setting(
        None,
        "Clip of a video: center, or random, drawn anew each time. [default: random; center with --cache-latents]",
        VIDEO,
        choices=POSITIONS,
    )
    image_frames: int = training_setting(
        0, "Single frames of other videos to train on beside each clip (Latte).", VIDEO, least=0, maximum=10_000
    )

    def check_data(self) -> None:
        """Refuse values that no reader of training data can use.

        Raises:
            UsageError: A value is out of range, a name is unknown, or a flag is missing.
        """
        if self.data is None:
            raise UsageError("Got no --data but expected a folder of images or videos, or --data digits.")
        columns = {flag_name(name): getattr(self, name) for name in ("image_column", "caption_column", "label_column")}
        check_source(parse_data(self.data), columns, self.dataset_config_name)
        for each in fields(self):
            self._check_least(each.name, each.metadata["least"])
            self._check_choice(each.name, each.metadata["choices"])
        if not 0 <= self.label_dropout < 1:
            raise UsageError(f"Got --label-dropout {self.label_dropout} but expected 0 <= value < 1.")
        self._check_rate()
        if self.cache_latents is not None:
            self._check_cached(self.cache_latents)

    def _check_least(self, name: str, least: int | None) -> None:
        value = getattr(self, name)
        if least is not None and value is not None and not value >= least:
            raise UsageError(f"Got {flag_name(name)} {value} but expected at least {least}.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if choices and value is not None and value not in choices:
            expected = f"but expected one of {', '.join(choices)}.{nearest(value, choices)}"
            raise UsageError(f"Got {flag_name(name)} {value} {expected}")

    def _check_rate(self) -> None:
        if self.fps_target is not None and not 0 < self.fps_target <= 1000:
            raise UsageError(f"Got --fps-target {self.fps_target:g} but expected more than 0 and at most 1000.")
        if self.fps_target is not None and self.frame_stride != 1:
            raise UsageError(
                f"Got --fps-target {self.fps_target:g} with --frame-stride {self.frame_stride}, which both pick the "
                "frames of a clip; give one (every third of 24 frames per second is 8)."
            )

    def _check_cached(self, folder: Path) -> None:
        for name in ("clip", "crop"):
            if getattr(self, name) == "random":
                conflict = "--cache-latents, which keeps one latent a sample"
                raise UsageError(f"Got {flag_name(name)} random with {conflict}; expected center.")
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"Got --cache-latents {folder}, which is a file; give a folder.")

    @property
    def random_clip(self) -> bool:
        """Whether the clip of a video is drawn anew each time."""
        return self.clip == "random" or (self.clip is None and self.cache_latents is None)
