"""Open a model: load a pipeline, attach its skip branches, apply its recorded time embedding, check its weights."""

from __future__ import annotations

import inspect
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from skipdit_cli.errors import NotFiniteError, UsageError, reading
from skipdit_cli.families import family_of
from skipdit_cli.families.example import example_inputs
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.families.protocols import Pipeline
from skipdit_cli.models.bounds import in_memory, stored_shapes
from skipdit_cli.models.build import (
    assign_weights,
    build_transformer,
    default_scheduler,
    has_own_keys,
    pipeline_around,
    preset_config,
)
from skipdit_cli.models.claims import check_model, check_scheduler
from skipdit_cli.models.hub import HUB_ARGUMENTS, find_folder
from skipdit_cli.models.index import (
    check_index,
    has_part,
    needs_transformers,
    pipeline_class,
    transformer_config,
)
from skipdit_cli.models.packages import check_packages
from skipdit_cli.models.vae import check_vae
from skipdit_cli.models.weights import read_json, read_weights, variant_of
from skipdit_cli.presets import Preset, load_preset
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.diagnosis import broken_weight
from skipdit_cli.sampling.latents import latent_channels
from skipdit_cli.sampling.pipelines.denoiser_pipeline import DenoiserPipeline
from skipdit_cli.skip import SkipBranches, add_skip_branches, skip_folder
from skipdit_cli.skip.time_embedding import RECORD, record_time_embedding
from skipdit_cli.trunk import known_trunk


def named_model(model: str | Path | None, preset_name: str | None = None) -> str | Path:
    """Return the path or hub id that ``--model`` gives or, without it, the embedded model that ``--preset`` names.

    Raises:
        UsageError: Neither is given, or the preset brings no weights.
    """
    if model is not None:
        return model
    if preset_name is None:
        raise UsageError("Got no model; give -m/--model FOLDER_OR_HUB_ID, or --preset digits for the embedded one.")
    preset = load_preset(preset_name)
    if preset.weights_path is None:
        raise UsageError(f"Preset {preset.name} brings no weights; give -m/--model FOLDER_OR_HUB_ID as well.")
    return preset.weights_path


def open_model(model: str | Path | None, preset_name: str | None = None, **arguments) -> Pipeline:
    """Load the pipeline that ``--model`` or, without it, ``--preset`` names.

    Args:
        arguments: As for ``load_pipeline``.
    Raises:
        UsageError: Neither names a model.
    """
    return load_pipeline(named_model(model, preset_name), **arguments)


def load_pipeline(path: str | Path, *, branches: bool = True, **from_pretrained_arguments: Any) -> Pipeline:
    """Load a diffusers pipeline, attach the skip branches of its ``skip/`` if it has one, and set eval mode.

    ``vae`` is None for a pixel-space model, whose ``model_index.json`` says ``"vae": [null, null]`` (plain
    ``DiTPipeline.from_pretrained`` wants ``vae=None`` passed for it).

    Args:
        path: A pipeline folder, or a hub id. The hub's local cache alone is read with ``local_files_only=True`` or
            ``HF_HUB_OFFLINE=1``.
        branches: False leaves the branches off. The recorded time embedding is applied either way.
        from_pretrained_arguments: As for diffusers' ``from_pretrained``: dtype, variant, revision, token, ...; and
            parts to use in the place of the folder's own: ``vae=...``.
    Raises:
        UsageError: There is no such model, its files are incomplete or damaged, or a package to read them is missing.
        NotFiniteError: A weight is NaN or infinite, which attention on some devices takes for a mask, and hides.
    """
    pipe = read_pipeline(path, branches=branches, **from_pretrained_arguments)
    if weight := broken_weight(pipe):
        raise NotFiniteError(f"Model {path} cannot be used: its {weight}; get its weights again.")
    return pipe


def read_pipeline(path: str | Path, *, branches: bool = True, **from_pretrained_arguments: Any) -> Pipeline:
    """Load a pipeline as ``load_pipeline`` does, but let weights that are NaN or infinite pass.

    Raises:
        UsageError: As ``load_pipeline``.
    """
    folder = find_folder(path, **from_pretrained_arguments)
    arguments = {key: value for key, value in from_pretrained_arguments.items() if key not in HUB_ARGUMENTS}
    index = check_index(path, folder, replaced=arguments)
    check_packages(path, folder, index)
    configs = {part: transformer_config(folder / part, index) for part in TRANSFORMERS if has_part(index, part)}
    arguments = _loading_arguments(path, folder, index, configs["transformer"], arguments)
    with quiet(text=needs_transformers(index)), reading(f"Model {path}"):
        pipe = pipeline_class(path, index).from_pretrained(folder, **arguments)
    if index.get("id2label"):
        pipe.register_to_config(id2label=index["id2label"])  # diffusers' DiTPipeline drops it when it is saved
    if from_pretrained_arguments.get("vae") is not None:
        _check_replaced_vae(pipe, folder)
    for part in TRANSFORMERS:
        if getattr(pipe, part, None) is not None and part not in from_pretrained_arguments:
            _prepare_transformer(path, folder, part, getattr(pipe, part), branches)
    return pipe


def _loading_arguments(path, folder: Path, index: dict, config: dict, arguments: dict) -> dict:
    """Return the arguments of ``from_pretrained``: the caller's, and those that diffusers has to be told."""
    absent = {name: None for name, value in index.items() if value == [None, None]}
    arguments = {**absent, **arguments}
    if has_own_keys(config):
        dtype = arguments.get("dtype", arguments.get("torch_dtype"))
        arguments["transformer"] = _load_transformer(folder / "transformer", config, dtype)
    variant = arguments.get("variant") or _variant(path, folder, index, arguments)
    if variant:
        arguments["variant"] = variant
    if index.get("id2label"):
        arguments["id2label"] = {int(key): label for key, label in index["id2label"].items()}
    return arguments


def _load_transformer(folder: Path, config: dict, dtype):
    """Load a transformer that diffusers alone would build in another shape (see ``build_transformer``)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        transformer = build_transformer(config)
    assign_weights(transformer, read_weights(folder), folder)
    return torch.nn.Module.to(transformer, dtype if isinstance(dtype, torch.dtype) else None)


def _variant(path, folder: Path, index: dict, replaced: dict) -> str | None:
    """Return the variant of the parts whose weights have no other, for diffusers to look for; None if there is none.

    Raises:
        UsageError: Two parts have different variants.
    """
    parts = [part for part in index if isinstance(index[part], list) and part not in replaced]
    variants = sorted(filter(None, {variant_of(folder / part) for part in parts}))
    if len(variants) > 1:
        raise UsageError(f"Model {path} has its parts in the variants {', '.join(variants)}; rename the files of one.")
    return variants[0] if variants else None


def _check_replaced_vae(pipe, folder: Path) -> None:
    """Check the latent channels of a VAE that replaces the folder's own."""
    config = folder / "vae" / "config.json"  # a pipeline that packs latents has more channels in its transformer
    channels = latent_channels(read_json(config)) if config.is_file() else None
    check_vae(pipe.vae, channels or pipe.transformer.config.in_channels)


def _prepare_transformer(path, folder: Path, part: str, transformer, attach: bool) -> None:
    """Set a transformer to eval mode, apply its time embedding and attach its skip branches."""
    transformer.eval()
    tensors = chain(transformer.named_parameters(), transformer.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise UsageError(f"Model {path} is incomplete: its files hold no {empty[0]} ({len(empty)} are missing).")
    where = folder / skip_folder(part)
    branches = read_branches(where) if where.is_dir() else None
    time_embedding = transformer.config.get(RECORD) if branches is None else branches.config.time_embedding
    if time_embedding is not None:
        record_time_embedding(transformer, time_embedding)
    if branches is not None and attach:
        add_skip_branches(transformer, branches=branches)


def load_branches(folder, part: str = "transformer") -> SkipBranches:
    """Load the skip branches of a pipeline folder from its ``skip/`` (``skip_2/`` for the second transformer).

    They are not attached to anything.

    Raises:
        UsageError: The files are incomplete or damaged.
    """
    return read_branches(Path(folder) / skip_folder(part))


def read_branches(where: Path) -> SkipBranches:
    """Load the skip branches of their own folder.

    Raises:
        UsageError: The files are incomplete or damaged.
    """
    branches_config(where)
    arguments = {"variant": variant_of(where), "use_safetensors": True, "output_loading_info": True}
    with quiet(errors_only=True), reading(f"Skip branches {where}"):
        branches, loading_info = SkipBranches.from_pretrained(where, **arguments)
    if loading_info["missing_keys"]:  # diffusers would leave them at random
        missing = sorted(loading_info["missing_keys"])
        raise UsageError(f"Skip branches {where} are incomplete: their file holds no {missing[0]}.")
    return branches


def branches_config(where: Path) -> dict:
    """Read the ``config.json`` of a folder ``skip/`` and check it against the headers of its weights.

    Raises:
        UsageError: It is missing or damaged, or has unknown keys.
    """
    config = read_json(where / "config.json")
    known = inspect.signature(SkipBranches.__init__).parameters
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    if unknown:
        raise UsageError(f"{where / 'config.json'} has the unknown key '{unknown[0]}'; a newer skipdit may know it.")
    check_model(SkipBranches, config, f"Folder {where} of skip branches", stored_shapes(where))
    return config


def random_pipeline(
    preset: Preset, dtype: torch.dtype = torch.float32, seed: int = 0, merge: str | None = None
) -> Pipeline:
    """Build the model of a preset at full size with seeded random weights and no VAE, to time it without a download.

    Args:
        merge: Attach skip branches of this merge, with random weights, too, to a class that has no skips of its own;
            None attaches none.
    Returns:
        A class-conditional pipeline or a ``LattePipeline``; of any other transformer a ``DenoiserPipeline``.
    Raises:
        UsageError: The preset names no model.
    """
    if not preset.model:
        raise UsageError(f"Preset {preset.name} names no model; see 'skipdit presets list'.")
    config = preset_config(preset, in_memory())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = torch.nn.Module.to(build_transformer(config), dtype)
        trunk = known_trunk(transformer)
        if merge is not None and not (trunk is not None and trunk.backbone.native_skips):
            inputs = example_inputs(transformer, dtype=dtype, small=True) if trunk is None else None
            linears: Any = add_skip_branches(transformer, merge, inputs).linears
            for linear in linears:
                torch.nn.init.normal_(linear.weight, std=0.02)
    pipeline = DenoiserPipeline if family_of(transformer).pipeline is None else pipeline_around
    return pipeline(transformer, _preset_scheduler(preset) or default_scheduler(config["_class_name"]))


def _preset_scheduler(preset: Preset) -> Any:
    """Return the scheduler that a preset describes; None if it describes none."""
    import diffusers

    if "scheduler" not in preset.model:
        return None
    name, config = preset.model["scheduler"]["class"], preset.model["scheduler"]["config"]
    kind: Any = getattr(diffusers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise UsageError(f"Preset {preset.name} has a scheduler of class {name}, which diffusers has not.")
    check_scheduler(kind, config, f"Preset {preset.name}")
    return kind(**config)
