"""skipdit: long skip branches and a feature cache for diffusers' Diffusion Transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skipdit_cli.version import __version__

if TYPE_CHECKING:
    from skipdit_cli.adapters.pipeline_branches import (
        load_skip_branches,
        loaded_skip_branches,
        unload_skip_branches,
    )
    from skipdit_cli.adapters.pipeline_cache import disable_skip_cache, enable_skip_cache
    from skipdit_cli.cache import CachePolicy, SkipCache
    from skipdit_cli.families.latte_class_model import LatteClassTransformer3DModel
    from skipdit_cli.models import load_pipeline
    from skipdit_cli.planning.plan import load_plan
    from skipdit_cli.sampling.generate import generate
    from skipdit_cli.skip import SkipBranches, add_skip_branches, remove_skip_branches

_HOMES = {
    "SkipBranches": "skip",
    "add_skip_branches": "skip",
    "remove_skip_branches": "skip",
    "CachePolicy": "cache",
    "SkipCache": "cache",
    "enable_skip_cache": "adapters.pipeline_cache",
    "disable_skip_cache": "adapters.pipeline_cache",
    "load_skip_branches": "adapters.pipeline_branches",
    "loaded_skip_branches": "adapters.pipeline_branches",
    "unload_skip_branches": "adapters.pipeline_branches",
    "load_pipeline": "models",
    "load_plan": "planning.plan",
    "generate": "sampling.generate",
    "LatteClassTransformer3DModel": "families.latte_class_model",
}
__all__ = [
    "CachePolicy",
    "LatteClassTransformer3DModel",
    "SkipBranches",
    "SkipCache",
    "__version__",
    "add_skip_branches",
    "disable_skip_cache",
    "enable_skip_cache",
    "generate",
    "load_pipeline",
    "load_plan",
    "load_skip_branches",
    "loaded_skip_branches",
    "remove_skip_branches",
    "unload_skip_branches",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"skipdit_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'skipdit_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
