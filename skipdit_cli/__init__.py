"""skipdit: long skip branches and a feature cache for diffusers' Diffusion Transformers."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "SkipBranches": "skip",
    "add_skip_branches": "skip",
    "remove_skip_branches": "skip",
    "CachePolicy": "cache",
    "SkipCache": "cache",
    "enable_skip_cache": "cache",
    "disable_skip_cache": "cache",
    "load_pipeline": "models",
    "LatteClassTransformer3DModel": "families.latte_class_model",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"skipdit_cli.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'skipdit_cli' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
