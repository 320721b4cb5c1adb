"""The player: one loaded model, sampled with and without a cache from the same noise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from skipdit_cli.bench.quality import Quality, compare
from skipdit_cli.play.choices import Choice, Choices
from skipdit_cli.sampling.generate import Generated

KEPT = 8
"""Uncached runs that are kept, the last ones."""


@dataclass(frozen=True)
class Conditions:
    """What to sample: a class label, a prompt, or neither for an unconditional model; and from which noise."""

    label: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int = 0
    guidance_scale: float | None = None

    def flags(self) -> list[str]:
        """Return the flags of ``skipdit sample`` that set them."""
        flags: list[str] = []
        if self.label is not None:
            flags += ["--class-labels", str(self.label)]
        if self.prompt is not None:
            flags += ["--prompt", self.prompt]
        if self.negative_prompt:
            flags += ["--negative-prompt", self.negative_prompt]
        if self.guidance_scale is not None:
            flags += ["--guidance-scale", f"{self.guidance_scale:g}"]
        return [*flags, "--seed", str(self.seed)]


@dataclass(frozen=True)
class Sample:
    """One picture or video.

    Args:
        content: The file that ``skipdit sample`` writes.
        suffix: Of that file: ".png", or ".mp4" for a video.
        generated: The samples, and what they cost.
        warning: A sentence for the reader, or None.
    """

    content: bytes
    suffix: str
    generated: Generated
    warning: str | None = None


class SampleCommand(Protocol):
    """``skipdit sample`` on a loaded model."""

    def __call__(self, flags: Sequence[str], is_cached: bool, advance: Callable[[], None]) -> Sample:
        """Return what the command with these flags makes; without the cache that they set unless ``is_cached``."""


@dataclass(frozen=True)
class Comparison:
    """The same noise sampled twice: in full and by a choice.

    Args:
        quality: The distance of the second from the first.
        speedup: FLOPs of the first over FLOPs of the second, as counted.
        was_kept: Whether the uncached sample was made for an earlier comparison.
    """

    uncached: Sample
    cached: Sample
    choice: Choice
    quality: Quality
    speedup: float
    was_kept: bool


@dataclass(frozen=True)
class Model:
    """What the page needs to know of the model.

    Args:
        name: As the user named it.
        labels: The name and the number of each class; empty unless it is a class-conditional model.
        is_text_conditional: Whether it takes a prompt.
        is_guided: Whether it takes a guidance scale.
        is_video: Whether it makes videos.
        flags: The flags of ``skipdit sample`` that name it and prepare it, for every run.
        run_flags: The flags of the uncached run, which a plan replaces: the steps and the scheduler.
    """

    name: str
    labels: Sequence[tuple[str, int]] = ()
    is_text_conditional: bool = False
    is_guided: bool = True
    is_video: bool = False
    flags: Sequence[str] = ()
    run_flags: Sequence[str] = ()


class Player:
    """Samples a model as ``skipdit sample`` does, and keeps the uncached samples.

    Args:
        model: The model.
        choices: The ways to sample it.
        start: The conditions that the page begins with.
        sample: Runs ``skipdit sample``.
    """

    def __init__(self, model: Model, choices: Choices, start: Conditions, sample: SampleCommand):
        self.model, self.choices, self.start, self.sample = model, choices, start, sample
        self._uncached: OrderedDict[Conditions, Sample] = OrderedDict()

    def flags(self, conditions: Conditions, choice: Choice | None = None) -> list[str]:
        """Return the flags of ``skipdit sample`` for a choice; for the uncached run without one."""
        run_flags = self.model.run_flags if choice is None or choice.plan is None else ()
        return [*self.model.flags, *run_flags, *conditions.flags(), *(choice.flags if choice else ())]

    def counted_steps(self, conditions: Conditions, choice: Choice) -> int:
        """Return the number of denoising steps that ``compare`` runs."""
        steps = len(self.choices.timesteps)
        return (0 if conditions in self._uncached else steps) + (len(choice.full) if choice.flags else 0)

    def compare(
        self, conditions: Conditions, choice: Choice, advance: Callable[[], None] = lambda: None
    ) -> Comparison:
        """Sample the same noise in full, unless that is kept, and by a choice.

        Args:
            advance: Called after each denoising step.

        Raises:
            UsageError: The model does not support the conditions or the choice.
            NotFiniteError: A sample is NaN or infinite.
        """
        was_kept = conditions in self._uncached
        if not was_kept:
            self._uncached[conditions] = self.sample(self.flags(conditions), False, advance)
        self._uncached.move_to_end(conditions)
        while len(self._uncached) > KEPT:
            self._uncached.popitem(last=False)
        uncached = self._uncached[conditions]
        cached = self.sample(self.flags(conditions, choice), True, advance) if choice.flags else uncached
        first, second = uncached.generated, cached.generated
        quality = compare(second.images, first.images, second.latents, first.latents)
        return Comparison(uncached, cached, choice, quality, len(self.choices.timesteps) / choice.cost, was_kept)
