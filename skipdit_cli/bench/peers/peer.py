"""What the bench knows of a peer: its name, its sweep of settings, and how it is enabled on a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PeerSetting:
    """A peer with values of its knobs.

    Args:
        peer: Name of the peer, as in ``--peers``.
        knobs: Name and value of each knob.
    """

    peer: str
    knobs: tuple[tuple[str, Any], ...]

    def describe(self) -> str:
        """Return the knobs as text, such as "threshold 0.05"."""
        return ", ".join(f"{name} {value}" for name, value in self.knobs)


@dataclass
class RunFacts:
    """The runs in which peers take part, as far as peers depend on them.

    Args:
        timesteps: Those of a run, one per denoising step.
        calls: Calls of the transformer in a step: 2 where guidance does not double the batch.
        doubled: Whether one call holds both branches of guidance.
        by_class: Whether our own sampler calls the transformer (``sampling/by_class.py``), whose doubled batch begins
            with the conditional half, and not the pipeline's.
        batches: Number of batches of a run.
        dimensions: Number of dimensions of the noisy input: 4 of images, 5 of videos, 3 of packed tokens.
        uncached: Samples once without a cache, from the same seeds, for peers that calibrate.

    Attributes:
        position: Denoising steps of the batch that are done.
        calibrations: Results of calibrations by the name of the peer; each is made once.
    """

    timesteps: Sequence[float]
    calls: int
    doubled: bool
    by_class: bool
    dimensions: int
    batches: int
    uncached: Callable[[], Any]
    position: int = 0
    calibrations: dict[str, Any] = field(default_factory=dict)

    @property
    def timestep(self) -> float:
        """The timestep of the step that is under way."""
        return self.timesteps[min(self.position, len(self.timesteps) - 1)]


@dataclass(frozen=True)
class Peer:
    """A caching method of another library.

    Args:
        package: The distribution that has it.
        module: The module of that distribution to import.
        enabled: Enables the peer on a pipeline for a ``with`` block, given the pipeline, the run and the values of its
            knobs. The block gets a function that forgets all state, which is called before each batch.
        sweep: The values of its knobs in each row.
    """

    package: str
    module: str
    enabled: Callable[[Any, RunFacts, Mapping[str, Any]], AbstractContextManager[Callable[[], None]]]
    sweep: Sequence[Mapping[str, Any]]


class PeerUnsupported(Exception):
    """A peer cannot run on this model; the message is one sentence."""
