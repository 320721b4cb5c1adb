"""What ``convert`` accepts, and how it tells which it got."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import init_empty_weights

from skipdit_cli.conversion.official.layouts import read_official
from skipdit_cli.conversion.process import DIT, SIT
from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES, family_of
from skipdit_cli.families.pipeline_parts import SECOND
from skipdit_cli.models.build import build_transformer, has_own_time
from skipdit_cli.models.index import check_index, check_plain, is_part, transformer_config
from skipdit_cli.models.open import find_folder
from skipdit_cli.models.variants import variant_of
from skipdit_cli.models.weights import assign_weights, read_weights
from skipdit_cli.skip import SKIP, SkipBranches
from skipdit_cli.skip.time_embedding import RECORD

NUMBERS = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "sample_size", "patch_size")
"""What the configuration of a DiT or Latte says in whole numbers."""


@dataclass
class Source:
    """A model to convert. Its weights are memory-mapped when they are asked for.

    Args:
        name: As the user gave it.
        layout: What it is, in words.
        config: Of the diffusers transformer.
        pipeline: Its folder, if it is a whole pipeline.
        transformer: The folder of its transformer, if diffusers wrote that.
        file: An official file, with what was given that it does not tell.
        branches: The ones that came with it.
        official: Why the weights are known to be the DiT repository's or Latte's; empty if nothing says so.
        second: The second transformer of its pipeline (Wan 2.2), which is converted with it.
        process: ``dit`` or ``sit`` (a model of flow matching under a DiT's names).
        process_why: Why it is that one; empty where there is no question.
        notes: What was decided while reading it, a sentence each.
    """

    name: str
    layout: str
    config: dict
    pipeline: Path | None = None
    transformer: Path | None = None
    file: tuple[Path, dict[str, int | str | None]] | None = None
    branches: SkipBranches | None = None
    official: str = ""
    second: Source | None = None
    process: str = DIT
    process_why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether no pipeline can be made here around this transformer: it stays one, and gets ``skip/`` inside."""
        return self.pipeline is None and family_of(self.config["_class_name"]).pipeline is None

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.pipeline or self.transformer or self.file[0]

    @property
    def part(self) -> str:
        """Name of the transformer's folder in its pipeline."""
        return "transformer" if self.transformer is None or self.pipeline is None else self.transformer.name

    def weights(self) -> dict[str, torch.Tensor]:
        """The vanilla state dict, mapped anew; memory it took is given back when the last tensor goes."""
        if self.file is None:
            return read_weights(self.transformer)
        path, given = self.file
        return read_official(path, **given).state

    def build(self):
        """The vanilla transformer on its memory-mapped weights, in eval mode.

        Raises:
            UsageError: The weights do not fit the config.
        """
        with init_empty_weights():
            model = build_transformer(self.config)
        state = self.weights()
        assign_weights(model, state, f"Model {self.name}", extra=self.transformer is not None)
        return torch.nn.Module.to(model, torch.bfloat16) if narrow(state) is not None else model


def narrow(state: dict[str, torch.Tensor]) -> torch.dtype | None:
    """The float8 dtype that some weights are kept in, if any: nothing is computed in it."""
    return next((each.dtype for each in state.values() if each.is_floating_point() and each.itemsize == 1), None)


def open_source(
    name,
    num_attention_heads: int | None = None,
    sample_size: int | None = None,
    num_frames: int | None = None,
    process: str | None = None,
    num_classes: int | None = None,
    **hub_arguments,
) -> Source:
    """Find out what ``name`` is: a pipeline folder or hub id, a transformer folder, or an official file.

    Args:
        num_attention_heads: For official files of a non-standard width.
        sample_size, num_frames: For official text-to-video files of a non-standard width.
        process: For official files that do not tell whether they are of a DiT or a SiT.
        num_classes: For official files that do not tell whether the last row of their label table is "no class".
        hub_arguments: revision, token, local_files_only.
    Raises:
        UsageError: It is none of these, is damaged, or is converted already.
    """
    path = Path(name).expanduser()
    given = {"num_attention_heads": num_attention_heads, "sample_size": sample_size, "num_frames": num_frames}
    given |= {"process": process, "num_classes": num_classes}
    if path.is_file():
        read = read_official(path, **given)
        why = _native(read.config) or "the file has the DiT repository's layout"
        source = Source(str(name), read.layout, read.config, file=(path, given), branches=read.branches, official=why)
        return replace(source, process=read.process, process_why=read.process_why, notes=read.notes)
    for flag, value in given.items():
        if value is not None:
            flag = f"--{flag.replace('_', '-')}"
            raise UsageError(f"Got {flag} with a folder or hub id, whose configs say it; leave it out.")
    if is_part(path):
        config = _config(path)
        check_plain(path)
        if (path / SKIP).exists():
            raise UsageError(
                f"Model {name} has skip branches already ({SKIP}/); attach them in Python, by add_skip_branches with "
                f"branches=SkipBranches.from_pretrained('{path / SKIP}')."
            )
        official = _native(config) or _on_hub(name, config)
        process = SIT if config.get(RECORD) == SIT else DIT
        return Source(
            str(name),
            f"transformer folder{_variant(path)}",
            config,
            transformer=path,
            official=official,
            process=process,
        )
    folder = find_folder(name, **hub_arguments)
    if (folder / SKIP).exists():
        raise UsageError(f"Model {name} has skip branches already ({SKIP}/); run 'skipdit sample -m {name}', say.")
    index = check_index(name, folder, plain=True)
    config = _config(folder / "transformer", index)
    layout = "pipeline folder" if path.is_dir() else "hub pipeline"
    layout += _variant(folder / "transformer")
    official = _native(config) or _on_hub(name, index, config, folder)
    second = None
    if index.get(SECOND) not in (None, [None, None]):
        own = _config(folder / SECOND, index)
        second = Source(f"{name}/{SECOND}", layout, own, folder, folder / SECOND, official=_native(own))
    process = SIT if index.get("_class_name") == _flow_pipeline(config) else DIT
    source = Source(str(name), layout, config, folder, folder / "transformer", official=official, second=second)
    return replace(source, process=process)


def _config(folder: Path, index: dict | None = None) -> dict:
    config = transformer_config(folder, index)
    family = family_of(config["_class_name"])
    if family.trunk is not None and family.trunk.native_skips:
        raise UsageError(f"Folder {folder} holds a {family.name}, which has skips of its own: sample it as it is.")
    for key in NUMBERS if family.official is not None else ():
        if type(config.get(key)) is not int or config[key] < 1:
            raise UsageError(f"Folder {folder} has a config.json with {key} {config.get(key)!r}, no whole number.")
    return config


def _flow_pipeline(config: dict) -> str:
    """The pipeline class of models of this family that were trained by flow matching; empty if there are none."""
    pipeline = family_of(config["_class_name"]).pipeline
    return "" if pipeline is None else pipeline.flow or ""


def _variant(folder: Path) -> str:
    variant = variant_of(folder)
    return "" if variant is None else f" ({variant} weights)"


def _native(config: dict) -> str:
    """Why a model can have no other timestep frequencies than the official ones; empty where it can."""
    name = config["_class_name"]
    return f"{name} has no others" if has_own_time(name) else ""


def _on_hub(name, *traces) -> str:
    """Why these weights are known to come from an official hub repository, by id, record or cache path."""
    said = [str(trace.get("_name_or_path", "") if isinstance(trace, dict) else trace) for trace in (name, *traces)]
    for known in [each for family in FAMILIES.values() if family.official for each in family.official.hub_ids]:
        if any(known in text or f"models--{known.replace('/', '--')}" in text for text in said):
            return f"{known} holds the DiT repository's weights"
    return ""
