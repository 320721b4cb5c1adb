"""The model that ``finetune`` starts from: its folder, what it requires of the data, and its pipeline."""

from __future__ import annotations

from pathlib import Path

import torch

from skipdit_cli.families import declared_trunk
from skipdit_cli.models import named_model, open_model
from skipdit_cli.models.index import check_index, transformer_config
from skipdit_cli.models.open import find_folder
from skipdit_cli.models.weights import read_json
from skipdit_cli.training.data.demand import EXPERTS, Demand, demand_of
from skipdit_cli.training.objective.text_conditioning import as_trained
from skipdit_cli.training.run.run_folder import INDEX


def model_folder(model: str | None, preset: str | None, **arguments) -> Path:
    """Return the folder of the model that ``--model`` names, or without it ``--preset``.

    Args:
        arguments: Arguments of ``from_pretrained``: revision, local_files_only, ...
    Raises:
        UsageError: There is no model, or it is damaged or quantised.
    """
    name = named_model(model, preset)
    folder = find_folder(name, **arguments)
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


def advice_without_branches(folder: Path) -> str:
    """Return what to do about a model that has no skip branches to train."""
    trunk = declared_trunk(transformer_config(folder / "transformer", read_json(folder / INDEX))["_class_name"])
    if trunk is not None and trunk.native_skips:
        return "it has long skips of its own: give --train all"
    return f"run 'skipdit convert -m {folder} -o FOLDER'"
