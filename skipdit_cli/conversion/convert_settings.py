"""The settings of ``skipdit convert``: each flag, its default, its help text and its checks, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.files import CONVERT, check_apart, check_folder, check_outside
from skipdit_cli.settings import LARGEST_SEED, OUTPUT, HubSettings, flag_name, setting

MERGES = ("residual", "replace")
PROCESSES = ("dit", "sit")
TIME_EMBEDDINGS = ("auto", "official", "diffusers")
CONVERSION = "Conversion"
"""The panel of ``--help`` for what is made of the model."""


@dataclass(frozen=True)
class ConvertSettings:
    """The flags of ``skipdit convert`` that say what is made of a model, and where it is written."""

    output: Path | None = setting(None, "Folder to write the converted model to.")
    merge: str | None = setting(None, "residual (default), or replace, the official form.", CONVERSION)
    seed: int = setting(
        0,
        "Seed of the first weights of replace branches; residual ones begin at 0.",
        CONVERSION,
        minimum=0,
        maximum=LARGEST_SEED,
    )
    num_attention_heads: int | None = setting(
        None,
        "Attention heads of an official file of another width than DiT-S, B, L or XL.",
        CONVERSION,
        maximum=100_000,
    )
    sample_size: int | None = setting(
        None, "Latent height of an official text-to-video file.", CONVERSION, minimum=1, maximum=16_384
    )
    num_frames: int | None = setting(
        None, "Frames of an official text-to-video file.", CONVERSION, minimum=1, maximum=100_000
    )
    process: str | None = setting(
        None,
        "What an official image file was trained for, if it does not say: dit, or sit (flow matching).",
        CONVERSION,
    )
    num_classes: int | None = setting(
        None,
        "Classes of an official file, whose label table may have one more row, for the null class.",
        CONVERSION,
        minimum=1,
    )
    time_embedding: str = setting(
        "auto", "Timestep frequencies: auto, official (DiT repository) or diffusers.", CONVERSION
    )
    vae: str | None = setting(None, "VAE folder or hub id to put into a new latent pipeline.", CONVERSION)
    text_from: str | None = setting(
        None, "LattePipeline whose text encoder, tokenizer and VAE an official text-to-video file gets.", CONVERSION
    )
    dtype: str = setting(
        "auto", "Precision of the transformer written: auto keeps it; float32, bfloat16, float16.", CONVERSION
    )
    verify: bool = setting(True, "Prove on a seeded forward pass that the outputs stay equal.", CONVERSION)
    dry_run: bool = setting(False, "Say what would be done and write nothing.", OUTPUT)
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)
    push_to_hub: str | None = setting(
        None, "Upload the finished folder to this repository on the hub.", OUTPUT, metavar="OWNER/NAME"
    )
    private: bool = setting(False, "Make the repository of --push-to-hub private.", OUTPUT)
    hub: HubSettings = HubSettings()

    @property
    def official_file(self) -> dict[str, int | str | None]:
        """What an official file may leave open, as keyword arguments of ``read_official``."""
        names = ("num_attention_heads", "sample_size", "num_frames", "process", "num_classes")
        return {name: getattr(self, name) for name in names}

    def check(self) -> None:
        """Check the values of the flags; no file and no server is read.

        Raises:
            UsageError: A value is not allowed, ``--output`` is missing, or nothing could be pushed to the hub.
        """
        choices = {"merge": (None, *MERGES), "time_embedding": TIME_EMBEDDINGS, "process": (None, *PROCESSES)}
        for name, allowed in choices.items():
            self._check_choice(name, allowed)
        if self.output is None:
            raise UsageError("Got no output; give -o/--output FOLDER.")
        from skipdit_cli.cards.publish import check_push
        from skipdit_cli.sampling.device import DTYPES

        self._check_choice("dtype", ("auto", *DTYPES))
        check_push(self.push_to_hub, self.private)

    def _check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            choices = [choice for choice in allowed if choice is not None]
            flag = flag_name(name)
            raise UsageError(f"Got {flag} {value}, allowed are {', '.join(choices)}.{nearest(value, choices)}")

    def check_output(self, reads: Mapping[str, object]) -> None:
        """Check that the output folder can be written beside what the conversion reads.

        Args:
            reads: Flag, or a word for it, to the path or hub id that it names.
        Raises:
            UsageError: It cannot; nothing was written.
        """
        reads = {**reads, "--vae": self.vae, "--text-from": self.text_from}
        check_apart(self.output, reads)
        check_outside(self.output, reads)
        check_folder(self.output, CONVERT, self.overwrite)
