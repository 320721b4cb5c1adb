"""The settings of ``skipdit prepare``: the data, as training reads them, and the model that encodes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skipdit_cli import files
from skipdit_cli.errors import UsageError
from skipdit_cli.settings import MODEL, OUTPUT, HubSettings, setting
from skipdit_cli.training.data_settings import DataSettings
from skipdit_cli.training.data_source import parse_data


@dataclass(frozen=True)
class PrepareSettings:
    """The settings of ``skipdit prepare``."""

    HELP = {
        "random_flip": "Encode the mirrored samples, too, for trainings with --random-flip.",
        "label_dropout": "Share of captions that trainings drop; above 0 the empty caption is encoded, too.",
        "cache_latents": "Folder for the encoded samples and captions, which 'train' and 'finetune' read.",
        "dataloader_num_workers": "Number of processes that read the data, beside each that encodes them.",
        **dict.fromkeys(("crop", "clip", "image_frames")),  # which change nothing that is encoded
    }

    vae: str | None = setting(
        None, "VAE of the latent model that --preset names, as for 'train': folder or hub id.", MODEL
    )
    hub: HubSettings = field(default_factory=HubSettings)
    source: DataSettings = field(default_factory=DataSettings)
    dry_run: bool = setting(False, "Count what would be encoded and the bytes it takes; write nothing.", OUTPUT)

    def check(self, model: str | None, preset: str | None) -> None:
        """Refuse values that cannot be used, before anything is read.

        Args:
            model, preset: The model, and the name of the preset.
        Raises:
            UsageError: A value is out of range, a flag is missing, or two exclude each other.
        """
        if self.source.cache_latents is None:
            raise UsageError("Got no --cache-latents but expected a folder for the latents, such as latents.")
        self.source.check_data()
        if self.vae is not None and model is not None:
            raise UsageError(
                f"Got --vae {self.vae} with --model {model}, which has a VAE of its own; give one of them."
            )
        if self.vae is not None and preset is None:
            raise UsageError(f"Got --vae {self.vae} without --preset, which names the model that it is for.")
        reads: Mapping[str, object] = {"--model": model, "--vae": self.vae, "--data": self._folder}
        files.check_outside(self.source.cache_latents, reads, "--cache-latents")

    @property
    def _folder(self) -> Path | None:
        """The path of the data, if they are files of this machine."""
        return parse_data(str(self.source.data)).path
