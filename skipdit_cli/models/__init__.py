"""Models on disk and on the hub: open, check, build from a config, and save them."""

from skipdit_cli.models.build import build_transformer, default_scheduler, pipeline_around
from skipdit_cli.models.folder import save_branches, save_pipeline
from skipdit_cli.models.open import load_branches, load_pipeline, named_model, open_model, random_pipeline
from skipdit_cli.models.vae import load_vae

__all__ = [
    "build_transformer",
    "default_scheduler",
    "load_branches",
    "load_pipeline",
    "load_vae",
    "named_model",
    "open_model",
    "pipeline_around",
    "random_pipeline",
    "save_branches",
    "save_pipeline",
]
