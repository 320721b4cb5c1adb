"""Reading and writing models: pipeline folders with ``skip/``, and the official layouts."""

from skipdit_cli.checkpoints.architecture import (
    build_transformer,
    default_scheduler,
    pipeline_around,
)
from skipdit_cli.checkpoints.folder import save_branches, save_pipeline
from skipdit_cli.checkpoints.pipeline import (
    load_branches,
    load_pipeline,
    named_model,
    open_model,
    random_pipeline,
)
from skipdit_cli.checkpoints.vae import load_vae

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
