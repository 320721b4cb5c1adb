"""The parts of a text-to-video pipeline that an official checkpoint lacks, copied as files from another pipeline."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.models.folder import drop_variant
from skipdit_cli.models.hub import find_folder
from skipdit_cli.models.index import INDEX, has_part
from skipdit_cli.models.weights import read_json

PARTS = ("tokenizer", "text_encoder", "vae")
FITS = {"text_encoder": ("d_model", "caption_channels"), "vae": ("latent_channels", "in_channels")}
"""A part, the key of its config, and the key of the transformer's config that must have the same value."""
OTHER_FORMATS = ("*.bin", "*.bin.index.json", "*.pt", "*.msgpack", "*.h5", "*.onnx")
"""Weight files that are not copied where the same weights lie there as safetensors."""


@dataclass(frozen=True)
class TextParts:
    """Tokenizer, text encoder and, unless one is given, VAE of another pipeline.

    Args:
        folder: The folder of that pipeline.
        index: The parts, and for each ``[library, class]``, as its ``model_index.json`` has it.
    """

    folder: Path
    index: dict[str, list[str]]

    def files(self) -> list[Path]:
        """List the files to copy: all files of the parts, but weights in one format alone."""
        copied = []
        for part in self.index:
            files = sorted(file for file in (self.folder / part).rglob("*") if file.is_file())
            others = OTHER_FORMATS if any(file.suffix == ".safetensors" for file in files) else ()
            copied += [file for file in files if not any(file.match(pattern) for pattern in others)]
        return copied

    def copy_into(self, pipeline: Path) -> None:
        """Copy the files as they are into a pipeline folder, and list the parts in its ``model_index.json``."""
        for file in self.files():
            target = pipeline / file.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        for part in self.index:
            drop_variant(pipeline / part)
        index = {**read_json(pipeline / INDEX), **self.index}
        (pipeline / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def find_text_parts(name, config: dict, with_vae: bool = True, **hub_arguments) -> TextParts:
    """Find the text parts of a pipeline folder or hub id; nothing else of it is downloaded.

    Args:
        name: The folder or hub id.
        config: The config of the transformer that the parts are for.
        with_vae: Include the VAE.
        hub_arguments: revision, token, local_files_only.
    Raises:
        UsageError: The transformer is not text-conditional, or the pipeline lacks a part or has one that does not fit.
    """
    if "caption_channels" not in config:
        raise UsageError(f"Got --text-from {name}, but a {config['_class_name']} needs no text; leave the flag out.")
    parts = [part for part in PARTS if with_vae or part != "vae"]
    folder = find_folder(name, flag="--text-from", without=("transformer", "scheduler"), **hub_arguments)
    index = read_json(folder / INDEX)
    for part in parts:
        if not has_part(index, part) or not (folder / part).is_dir():
            raise UsageError(f"Got --text-from {name}, which has no {part}; give maxin-cn/Latte-1, say.")
        key, needed = FITS.get(part, (None, None))
        width = read_json(folder / part / "config.json").get(key) if key else None
        if key and width != config[needed]:
            raise UsageError(
                f"Got --text-from {name}, whose {part} has {key} {width}, but the model has {needed} {config[needed]}."
            )
    return TextParts(folder, {part: index[part] for part in parts})
