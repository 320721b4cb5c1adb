"""The source of a conversion: which kinds of model ``convert`` accepts, and how it tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights

from skipdit_cli.conversion.official.layouts import read_official
from skipdit_cli.conversion.process import DIT, SIT
from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES, family_of
from skipdit_cli.families.pipeline_parts import SECOND
from skipdit_cli.models.build import assign_weights, build_transformer, has_own_time
from skipdit_cli.models.hub import find_folder
from skipdit_cli.models.index import check_index, has_part, is_part, transformer_config
from skipdit_cli.models.packages import check_plain
from skipdit_cli.models.weights import check_variant, read_weights, variant_of
from skipdit_cli.settings import flag_name
from skipdit_cli.skip import SKIP, SkipBranches
from skipdit_cli.skip.time_embedding import RECORD

NUMBERS = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "sample_size", "patch_size")
"""Keys of a DiT's or Latte's config that must be positive integers."""


@dataclass
class Source:
    """A model to convert. Its weights are memory-mapped each time they are needed.

    Args:
        name: The model, as the user named it.
        layout: A few words that say what it is: "pipeline folder".
        config: The config of the diffusers transformer.
        pipeline: The pipeline folder, if it is a whole pipeline.
        transformer: The folder of the transformer, if diffusers wrote it.
        file: The official file, if it is one, and the arguments of ``read_official``.
        branches: The skip branches that the file brings, if any.
        official: Why the weights are known to be the DiT repository's or Latte's; empty if nothing says so.
        second: The second transformer of the pipeline (Wan 2.2), which is converted with it.
        process: ``dit`` or ``sit`` (flow matching, with the tensor names of a DiT).
        process_why: Why it is that process; empty where there is no question.
        notes: What was decided while reading the file, one sentence each.
    """

    name: str
    layout: str
    config: dict
    pipeline: Path | None = None
    transformer: Path | None = None
    file: tuple[Path, Mapping[str, int | str | None]] | None = None
    branches: SkipBranches | None = None
    official: str = ""
    second: Source | None = None
    process: str = DIT
    process_why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether the transformer stays alone, with ``skip/`` inside: no pipeline is known to be made around it."""
        return self.pipeline is None and family_of(self.config["_class_name"]).pipeline is None

    @property
    def place(self) -> Path:
        """The folder or file that holds the model."""
        return self.pipeline or self.transformer or self.file[0]

    @property
    def part(self) -> str:
        """The name of the transformer's folder in its pipeline."""
        return "transformer" if self.transformer is None or self.pipeline is None else self.transformer.name

    def weights(self) -> dict[str, torch.Tensor]:
        """Map the vanilla state dict anew; its memory is given back when the last tensor goes."""
        if self.file is None:
            return read_weights(self.transformer)
        path, arguments = self.file
        return read_official(path, **arguments).state

    def build(self):
        """Build the vanilla transformer on its memory-mapped weights, in eval mode.

        Raises:
            UsageError: The weights do not fit the config.
        """
        with init_empty_weights():
            model = build_transformer(self.config)
        state = self.weights()
        assign_weights(model, state, f"Model {self.name}", extra=self.transformer is not None)
        return torch.nn.Module.to(model, torch.bfloat16) if storage_dtype(state) is not None else model


def storage_dtype(state: dict[str, torch.Tensor]) -> torch.dtype | None:
    """Return the float8 dtype of some of the weights, in which nothing can be computed; None if there are none."""
    return next((each.dtype for each in state.values() if each.is_floating_point() and each.itemsize == 1), None)


def open_source(name, official_file: Mapping[str, int | str | None], **hub_arguments) -> Source:
    """Find out what a model is: an official file, a transformer folder, or a pipeline folder or hub id.

    Args:
        name: The path or hub id.
        official_file: What an official file may leave open, as keyword arguments of ``read_official``.
        hub_arguments: revision, token, local_files_only.
    Raises:
        UsageError: It is none of these, is damaged, or is converted already.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _official_source(name, path, official_file)
    for argument, value in official_file.items():
        if value is not None:
            raise UsageError(f"Got {flag_name(argument)} with a folder or hub id, whose configs say it; leave it out.")
    if is_part(path):
        return _transformer_source(name, path)
    folder = find_folder(name, **hub_arguments)
    check_variant(folder, hub_arguments.get("variant"), alone=True)
    return _pipeline_source(name, folder, path.is_dir())


def _official_source(name, path: Path, arguments: Mapping[str, int | str | None]) -> Source:
    checkpoint = read_official(path, **arguments)
    return Source(
        str(name),
        checkpoint.layout,
        checkpoint.config,
        file=(path, arguments),
        branches=checkpoint.branches,
        official=_only_official(checkpoint.config) or "the file has the DiT repository's layout",
        process=checkpoint.process,
        process_why=checkpoint.process_why,
        notes=checkpoint.notes,
    )


def _transformer_source(name, folder: Path) -> Source:
    config = _convertible_config(folder)
    check_plain(folder)
    if (folder / SKIP).exists():
        raise UsageError(
            f"Model {name} has skip branches already ({SKIP}/); attach them in Python, by add_skip_branches with "
            f"branches=SkipBranches.from_pretrained('{folder / SKIP}')."
        )
    return Source(
        str(name),
        f"transformer folder{_variant_note(folder)}",
        config,
        transformer=folder,
        official=_only_official(config) or _from_official_hub(name, config),
        process=SIT if config.get(RECORD) == SIT else DIT,
    )


def _pipeline_source(name, folder: Path, on_disk: bool) -> Source:
    if (folder / SKIP).exists():
        raise UsageError(f"Model {name} has skip branches already ({SKIP}/); run 'skipdit sample -m {name}', say.")
    index = check_index(name, folder, plain=True)
    config = _convertible_config(folder / "transformer", index)
    layout = "pipeline folder" if on_disk else "hub pipeline"
    layout += _variant_note(folder / "transformer")
    second = None
    if has_part(index, SECOND):
        own = _convertible_config(folder / SECOND, index)
        second = Source(f"{name}/{SECOND}", layout, own, folder, folder / SECOND, official=_only_official(own))
    return Source(
        str(name),
        layout,
        config,
        pipeline=folder,
        transformer=folder / "transformer",
        official=_only_official(config) or _from_official_hub(name, index, config, folder),
        second=second,
        process=SIT if index.get("_class_name") == _flow_pipeline(config) else DIT,
    )


def _convertible_config(folder: Path, index: dict | None = None) -> dict:
    """Read a transformer's config, and check that branches can be added to its class."""
    config = transformer_config(folder, index)
    family = family_of(config["_class_name"])
    if family.trunk is not None and family.trunk.native_skips:
        raise UsageError(f"Folder {folder} holds a {family.name}, which has skips of its own: sample it as it is.")
    for key in NUMBERS if family.official is not None else ():
        if type(config.get(key)) is not int or config[key] < 1:
            raise UsageError(f"Folder {folder} has a config.json with {key} {config.get(key)!r}, no whole number.")
    return config


def _flow_pipeline(config: dict) -> str:
    """Return the pipeline class of this family's models that were trained by flow matching; empty if there is none."""
    pipeline = family_of(config["_class_name"]).pipeline
    return "" if pipeline is None else pipeline.flow or ""


def _variant_note(folder: Path) -> str:
    variant = variant_of(folder)
    return "" if variant is None else f" ({variant} weights)"


def _only_official(config: dict) -> str:
    """Say why a model can have no other timestep frequencies than the official ones; empty where it can."""
    name = config["_class_name"]
    return f"{name} has no others" if has_own_time(name) else ""


def _from_official_hub(name, *traces) -> str:
    """Say why weights are known to come from an official hub repository: by id, by record, or by cache path."""
    texts = [str(trace.get("_name_or_path", "") if isinstance(trace, dict) else trace) for trace in (name, *traces)]
    for known in [each for family in FAMILIES.values() if family.official for each in family.official.hub_ids]:
        if any(known in text or f"models--{known.replace('/', '--')}" in text for text in texts):
            return f"{known} holds the DiT repository's weights"
    return ""
