"""Pipelines, transformers and schedulers, as this package uses them: any object with these attributes will do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Transformer(Protocol):
    """A transformer of diffusers: a ``torch.nn.Module`` with a config and lists of blocks.

    Attributes:
        training: Whether it is in training mode.
    """

    training: bool

    @property
    def config(self) -> Any:
        """The arguments of its ``__init__``, by name: a mapping whose keys are attributes as well."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its weights."""

    @property
    def device(self) -> torch.device:
        """The device of its weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on latents, a timestep and a condition, by the names of its ``forward``."""

    def modules(self) -> Iterator[Any]:
        """Iterate over the model and all modules in it."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Iterate over its parameters."""


class Scheduler(Protocol):
    """A scheduler of diffusers.

    Attributes:
        timesteps: The timesteps of a run, in order, after ``set_timesteps``.
    """

    timesteps: Any

    @property
    def config(self) -> Any:
        """The arguments of its ``__init__``, by name."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a run."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Make one denoising step."""


class Pipeline(Protocol):
    """A pipeline of diffusers, or one of ``sampling/pipelines/``. Most have a ``vae`` as well.

    Attributes:
        scheduler: A ``Scheduler``.
        transformer: A ``Transformer``, or its ``torch.compile`` wrapper, which type checkers take for a function.
    """

    scheduler: Any
    transformer: Any

    @property
    def components(self) -> Mapping[str, Any]:
        """The parts of the pipeline, by name."""

    @property
    def config(self) -> Any:
        """The content of its ``model_index.json``, by name."""

    @property
    def device(self) -> torch.device:
        """The device of its parts."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parts."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample, with the arguments of the pipeline's class."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        """Save all parts to a folder."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move all parts to a device or to a dtype."""
