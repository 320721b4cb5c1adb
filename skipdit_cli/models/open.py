"""Reading models: a pipeline folder or hub id, with its skip branches and its recorded time embedding."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from skipdit_cli.errors import NotFiniteError, UsageError, reading
from skipdit_cli.families import family_of
from skipdit_cli.families.example import example_inputs
from skipdit_cli.families.pipeline_parts import SECOND, TRANSFORMERS
from skipdit_cli.models.bounds import in_memory, stored_shapes
from skipdit_cli.models.build import (
    build_transformer,
    default_scheduler,
    has_own_keys,
    pipeline_around,
    preset_config,
)
from skipdit_cli.models.claims import check_model, check_scheduler
from skipdit_cli.models.hub import is_local, why_not
from skipdit_cli.models.index import (
    INDEX,
    check_denoiser,
    check_folder,
    check_index,
    of_texts,
    pipeline_class,
    transformer_config,
)
from skipdit_cli.models.packages import check_packages
from skipdit_cli.models.vae import check_vae
from skipdit_cli.models.variants import variant_among, variant_of
from skipdit_cli.models.weights import assign_weights, read_json, read_weights
from skipdit_cli.presets import Preset, load_preset
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.diagnosis import broken_weight
from skipdit_cli.sampling.latents import latent_channels
from skipdit_cli.sampling.pipelines.denoiser_pipeline import DenoiserPipeline
from skipdit_cli.skip import SKIP, SkipBranches, add_skip_branches, skip_folder
from skipdit_cli.skip.time_embedding import RECORD, record_time_embedding
from skipdit_cli.trunk import known_trunk

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def open_model(model: str | None, preset_name: str | None = None, **arguments):
    """The pipeline that ``--model`` or, without it, ``--preset`` names.

    Args:
        arguments: As for ``load_pipeline``.
    Raises:
        UsageError: Neither names a model.
    """
    return load_pipeline(named_model(model, preset_name), **arguments)


def named_model(model: str | None, preset_name: str | None = None):
    """The path or hub id that ``--model`` or, without it, the embedded weights of ``--preset`` give.

    Raises:
        UsageError: Neither names a model.
    """
    if model is not None:
        return model
    if preset_name is None:
        raise UsageError("Got no model; give -m/--model FOLDER_OR_HUB_ID, or --preset digits for the embedded one.")
    preset = load_preset(preset_name)
    if preset.weights_path is None:
        raise UsageError(f"Preset {preset.name} brings no weights; give -m/--model FOLDER_OR_HUB_ID as well.")
    return preset.weights_path


def load_pipeline(path, *, branches: bool = True, **from_pretrained_arguments):
    """Load a diffusers pipeline, attach the skip branches of its ``skip/`` if it has one, and set eval mode.

    ``vae`` is None for a pixel-space model, whose ``model_index.json`` says ``"vae": [null, null]`` (plain
    ``DiTPipeline.from_pretrained`` wants ``vae=None`` passed for it).

    Args:
        path: A pipeline folder, or a hub id (its cache alone is asked with ``local_files_only=True`` or
            ``HF_HUB_OFFLINE=1``).
        branches: False leaves the branches off. The recorded time embedding is applied either way.
        from_pretrained_arguments: As for diffusers' ``from_pretrained``: dtype, variant, revision, token, ...; and
            parts to take instead of the folder's own: ``vae=...``.
    Raises:
        UsageError: There is no such model, its files are incomplete or damaged, or a package to read them is missing.
        NotFiniteError: A weight is NaN or infinite, which attention on some devices takes for a mask, and hides.
    """
    folder = find_folder(path, **from_pretrained_arguments)
    arguments = {key: value for key, value in from_pretrained_arguments.items() if key not in _HUB}
    index = check_index(path, folder, given=arguments)
    arguments = {**{name: None for name, value in index.items() if value == [None, None]}, **arguments}
    check_packages(path, folder, index)
    config = transformer_config(folder / "transformer", index)
    if index.get(SECOND) not in (None, [None, None]):
        transformer_config(folder / SECOND, index)
    if has_own_keys(config):
        dtype = arguments.get("dtype", arguments.get("torch_dtype"))
        arguments["transformer"] = _load_transformer(folder / "transformer", config, dtype)
    variant = _variant(path, folder, index, arguments)
    arguments |= {"variant": variant} if variant else {}
    if index.get("id2label"):
        arguments["id2label"] = {int(key): label for key, label in index["id2label"].items()}
    kind = pipeline_class(path, index)
    with quiet(text=of_texts(index)), reading(f"Model {path}"):
        pipe = kind.from_pretrained(folder, **arguments)
    if index.get("id2label"):
        pipe.register_to_config(id2label=index["id2label"])  # diffusers' DiTPipeline drops it when it is saved
    if arguments.get("vae") is not None:
        former = folder / "vae" / "config.json"  # of packed latents the model's channels are more
        own = latent_channels(read_json(former)) if former.is_file() else None
        check_vae(pipe.vae, own or pipe.transformer.config.in_channels)
    for part in TRANSFORMERS:
        transformer = getattr(pipe, part, None)
        if transformer is None:
            continue
        transformer.eval()
        tensors = chain(transformer.named_parameters(), transformer.named_buffers())
        empty = [name for name, tensor in tensors if tensor.is_meta]
        if empty:
            raise UsageError(f"Model {path} is incomplete: its files hold no {empty[0]} ({len(empty)} are missing).")
        found = load_branches(folder, part) if (folder / skip_folder(part)).is_dir() else None
        time_embedding = transformer.config.get(RECORD) if found is None else found.config.time_embedding
        if time_embedding is not None:
            record_time_embedding(transformer, time_embedding)
        if found is not None and branches:
            add_skip_branches(transformer, branches=found)
    if where := broken_weight(pipe):
        raise NotFiniteError(f"Model {path} cannot be used: its {where}; get its weights again.")
    return pipe


def _variant(path, folder: Path, index: dict, given: dict) -> str | None:
    """The variant that some of a pipeline's parts have weights of alone, for diffusers to ask for.

    Raises:
        UsageError: They have different ones.
    """
    if "variant" in given:
        return given["variant"]
    parts = [part for part in index if isinstance(index[part], list) and part not in given]
    found = {part: variant_of(folder / part) for part in parts}
    variants = sorted({variant for variant in found.values() if variant is not None})
    if len(variants) > 1:
        raise UsageError(f"Model {path} has its parts in the variants {', '.join(variants)}; rename the files of one.")
    return variants[0] if variants else None


def load_branches(folder, part: str = "transformer") -> SkipBranches:
    """The branches of ``folder/skip/``, not attached to anything; those of the second transformer are in ``skip_2/``.

    Raises:
        UsageError: Its files are incomplete or damaged.
    """
    where = Path(folder) / skip_folder(part)
    branches_config(where)
    named = {"variant": variant_of(where), "use_safetensors": True}
    with quiet(errors_only=True), reading(f"Skip branches {where}"):
        branches, found = SkipBranches.from_pretrained(where, output_loading_info=True, **named)
    if found["missing_keys"]:  # diffusers would leave them at random
        missing = sorted(found["missing_keys"])
        raise UsageError(f"Skip branches {where} are incomplete: their file holds no {missing[0]}.")
    return branches


def branches_config(where: Path) -> dict:
    """What the ``config.json`` of a ``skip/`` holds.

    Raises:
        UsageError: It is missing or damaged, or has keys that we do not know.
    """
    config = read_json(where / "config.json")
    known = inspect.signature(SkipBranches.__init__).parameters
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    if unknown:
        raise UsageError(f"{where / 'config.json'} has the unknown key '{unknown[0]}'; a newer skipdit may know it.")
    check_model(SkipBranches, config, f"Folder {where} of skip branches", stored_shapes(where))
    return config


def find_folder(path, flag: str = "--model", without: Sequence[str] = (), **arguments) -> Path:
    """The folder of a model: the one given, or the snapshot of a hub id in the local cache (fetched if need be).

    Args:
        flag: What gave it.
        without: Parts of a hub's pipeline that are not fetched.
        arguments: revision, token, local_files_only, variant, ... as for ``from_pretrained``; others are ignored.
    Raises:
        UsageError: It is not a pipeline folder, or the hub or its cache does not have it.
    """
    folder = Path(path).expanduser()
    if os.path.isdir(folder):  # pathlib's own raise where the text is too long for a path
        check_folder(folder)
        return folder
    if os.path.isfile(folder):
        raise UsageError(f"Got {flag} {path}, a file; run 'skipdit convert -m {path} -o FOLDER' first.")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)):
        raise UsageError(f"Got {flag} {path}, which does not exist; give a pipeline folder or a hub id (OWNER/NAME).")
    return _fetch(str(path), {key: arguments[key] for key in (*_HUB, "variant") if key in arguments}, without)


def _fetch(hub_id: str, arguments: dict, without: Sequence[str]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    given, arguments = arguments, {**arguments, "local_files_only": is_local(arguments)}
    with quiet(errors_only=True):
        try:
            plain = {name: value for name, value in arguments.items() if name != "variant"}
            index = read_json(hf_hub_download(hub_id, INDEX, **plain))
            check_denoiser(hub_id, index)
            left = dict.fromkeys(without)  # a part that is given, if only as None, is not downloaded
            if not arguments["local_files_only"] and arguments.get("variant") is None:
                arguments["variant"] = _published_variant(hub_id, plain)
            folder = Path(pipeline_class(hub_id, index).download(hub_id, **arguments, **left))
            if not arguments["local_files_only"]:  # diffusers fetches what the index lists, and skip/ is not listed
                patterns = [f"{SKIP}/*", f"{skip_folder(SECOND)}/*", "README.md", "LICEN*", "NOTICE*"]
                snapshot_download(hub_id, allow_patterns=patterns, **plain)
        except UsageError:
            raise
        except Exception as cause:  # of the hub's client, of its cache, of what lies there
            raise UsageError(why_not(hub_id, cause, given)) from cause
    check_folder(folder)
    return folder


def _published_variant(hub_id: str, arguments: dict) -> str | None:
    """The one variant that the transformer's weights have on the hub, where there are none without."""
    from huggingface_hub import HfApi

    asked = {name: arguments[name] for name in ("revision", "token") if name in arguments}
    files = map(Path, HfApi().list_repo_files(hub_id, **asked))
    return variant_among(file.name for file in files if file.parent.name == "transformer")


def _load_transformer(folder: Path, config: dict, dtype):
    """A transformer that diffusers alone would build in another shape (see ``build_transformer``)."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        transformer = build_transformer(config)
    assign_weights(transformer, read_weights(folder), folder)
    return torch.nn.Module.to(transformer, dtype if isinstance(dtype, torch.dtype) else None)


def random_pipeline(preset: Preset, dtype=torch.float32, seed: int = 0, merge: str | None = None):
    """The model of a preset at full size with seeded random weights and no VAE, to time it without a download.

    Args:
        merge: Attach skip branches of this merge, to a class that has no skips of its own; None attaches none. Their
            weights are random, too.
    Returns:
        A pipeline of classes or of Latte; of any other transformer a ``DenoiserPipeline``.
    Raises:
        UsageError: The preset names no model.
    """
    import diffusers

    if not preset.model:
        raise UsageError(f"Preset {preset.name} names no model; see 'skipdit presets list'.")
    config = preset_config(preset, in_memory())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = torch.nn.Module.to(build_transformer(config), dtype)
        trunk = known_trunk(transformer)
        if merge is not None and not (trunk is not None and trunk.backbone.native_skips):
            given = example_inputs(transformer, dtype=dtype, small=True) if trunk is None else None
            for linear in add_skip_branches(transformer, merge, given).linears:
                torch.nn.init.normal_(linear.weight, std=0.02)
    scheduler = default_scheduler(config["_class_name"])
    if "scheduler" in preset.model:
        own = preset.model["scheduler"]
        kind = getattr(diffusers, own["class"], None)
        if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
            raise UsageError(f"Preset {preset.name} has a scheduler of class {own['class']}, which diffusers has not.")
        check_scheduler(kind, own["config"], f"Preset {preset.name}")
        scheduler = kind(**own["config"])
    alone = family_of(transformer).pipeline is None
    return (DenoiserPipeline if alone else pipeline_around)(transformer, scheduler)
