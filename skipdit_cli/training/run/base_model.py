"""The model that a run begins with: a new one of a preset (``train``) or a converted one (``finetune``)."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights

from skipdit_cli.errors import NotFiniteError, UsageError
from skipdit_cli.families import FAMILIES, declared_trunk, family_of
from skipdit_cli.families.registry import config_value
from skipdit_cli.finite import first_broken
from skipdit_cli.models import build_transformer, default_scheduler, named_model, open_model, pipeline_around
from skipdit_cli.models.bounds import in_memory
from skipdit_cli.models.build import preset_config
from skipdit_cli.models.hub import find_folder
from skipdit_cli.models.index import check_index, transformer_config
from skipdit_cli.models.open import read_pipeline
from skipdit_cli.models.weights import check_variant, read_json
from skipdit_cli.presets import Preset
from skipdit_cli.skip import add_skip_branches
from skipdit_cli.training.data.demand import EXPERTS, Demand, demand_of
from skipdit_cli.training.objective.text_conditioning import as_trained
from skipdit_cli.training.run.run_folder import INDEX


def trainable_config(preset: Preset, with_vae: bool) -> dict:
    """Return the config of a preset's model, with the default of its class for ``in_channels``.

    Args:
        with_vae: A VAE is given.
    Raises:
        UsageError: The preset describes no model that can be trained from scratch, one of impossible sizes, or a
            latent model without a VAE.
    """
    config = preset_config(preset, in_memory()) if preset.model else {}
    name, trainable = config.get("_class_name", "no model"), [n for n, each in FAMILIES.items() if each.initialise]
    if name not in trainable:
        raise UsageError(f"Preset {preset.name} describes {name}, but train needs a {' or a '.join(trainable)}.")
    _check_sizes(preset, config)
    channels = config_value(config, "in_channels")
    if channels not in (1, 3) and not with_vae:
        raise UsageError(
            f"Preset {preset.name} is of a latent model ({channels} channels), and there is no VAE to make them; give "
            "--vae FOLDER_OR_HUB_ID."
        )
    return {**config, "in_channels": channels}


def _check_sizes(preset: Preset, config: dict) -> None:
    """Check that a forward of a model can run: diffusers builds one of no heads, or of patches that do not fit."""
    for key in ("num_layers", "num_attention_heads", "attention_head_dim", "sample_size", "patch_size"):
        value = config_value(config, key)
        if value is not None and value < 1:
            raise UsageError(f"Preset {preset.name} has a model with {key} {value} but expected at least 1.")
    size, patch = config_value(config, "sample_size"), config_value(config, "patch_size")
    if size % patch:
        raise UsageError(
            f"Preset {preset.name} has a model with patch_size {patch} but expected a divisor of its sample_size "
            f"{size}."
        )


def new_pipeline(preset: Preset, skip_branches: bool, vae=None, seed: int = 0, drops_labels: bool = True):
    """Return an untrained pipeline of a preset's model, in float32, its weights drawn from ``seed``.

    Args:
        skip_branches: Whether to attach skip branches.
        vae: The VAE of a latent model.
        drops_labels: Whether labels are dropped in training. Otherwise the null label is never trained, and the
            model's config says that it cannot be guided by it.
    Raises:
        UsageError: diffusers refuses the model's config.
    """
    config = preset_config(preset, in_memory())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = build_transformer(config)
        family_of(transformer).initialise(transformer)
    if not drops_labels:
        transformer.register_to_config(_null_class=False)
    if skip_branches:
        add_skip_branches(transformer)
    return pipeline_around(transformer, default_scheduler(config["_class_name"]), vae)


def model_folder(model: str | None, preset: str | None, **arguments) -> Path:
    """Return the folder of the model that ``--model`` names, or without it ``--preset``.

    Args:
        arguments: Arguments of ``from_pretrained``: revision, local_files_only, ...
    Raises:
        UsageError: There is no model, or it is damaged or quantised.
    """
    name = named_model(model, preset)
    folder = find_folder(name, **arguments)
    check_variant(folder, arguments.get("variant"), alone=True)
    check_index(name, folder, weights=False, plain=True)
    return folder


def demand_of_folder(folder: Path, expert: str | None = None) -> Demand:
    """Return what the model in a pipeline folder requires of its data.

    Args:
        expert: Which of two transformers is trained; None if there is one.
    Raises:
        UsageError: The config of its transformer is missing, or the model is of a kind that cannot be trained.
    """
    part, vae_config = folder / "transformer", folder / "vae" / "config.json"
    index = read_json(folder / INDEX)
    vae = read_json(vae_config) if vae_config.is_file() else None
    return demand_of(transformer_config(part, index), part / "config.json", index, vae, expert)


def open_to_train(folder: Path, demand: Demand, whole: bool):
    """Return the pipeline of a folder in float32.

    Args:
        whole: Whether to load the transformer that is not trained, too, of a model with two.
    """
    others = [] if demand.expert is None else [part for name, part in EXPERTS.items() if name != demand.expert]
    missing = {} if whole else dict.fromkeys(others)
    return as_trained(open_model(str(folder), dtype=torch.float32, **missing))


def open_encoders(folder: Path):
    """Return the pipeline of a folder in float32, its transformer without weights, to encode training data.

    Raises:
        NotFiniteError: A weight is NaN or infinite.
    """
    index = read_json(folder / INDEX)
    second = {EXPERTS["low"]: None} if EXPERTS["low"] in index else {}
    outline = _outline(transformer_config(folder / "transformer", index))
    pipe = as_trained(read_pipeline(folder, dtype=torch.float32, transformer=outline, **second))
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for name in parts.keys() - {"transformer"}:
        if weight := first_broken(parts[name].state_dict().items()):
            raise NotFiniteError(f"Model {folder} cannot be used: its {name} holds {weight}; get its weights again.")
    return pipe


def new_encoders(preset: Preset, vae):
    """Return a pipeline of a preset's model, its transformer without weights, to encode training data.

    Args:
        vae: The VAE of the model.
    """
    config = preset_config(preset)
    return pipeline_around(_outline(config), default_scheduler(config["_class_name"]), vae)


def _outline(config: dict):
    with init_empty_weights():
        return build_transformer(config)


def advice_without_branches(folder: Path) -> str:
    """Return what to do about a model that has no skip branches to train."""
    trunk = declared_trunk(transformer_config(folder / "transformer", read_json(folder / INDEX))["_class_name"])
    if trunk is not None and trunk.native_skips:
        return "it has long skips of its own: give --train all"
    return f"run 'skipdit convert -m {folder} -o FOLDER'"
