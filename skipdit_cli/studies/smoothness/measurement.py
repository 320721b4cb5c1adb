"""The measurements of study ``smoothness`` on one model in a folder, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from skipdit_cli.bench.similarity import measure_cached_similarity, measure_similarity
from skipdit_cli.cache import CachePolicy
from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.models import load_pipeline
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.studies.smoothness import spectral, surface
from skipdit_cli.trunk import Trunk, known_trunk


@dataclass(frozen=True)
class Measurement:
    """How a model is measured.

    Args:
        samples: Samples whose features are compared; their labels are the classes in turn.
        num_inference_steps: Denoising steps of the sampler.
        guidance_scale: Its guidance scale.
        scheduler: Its scheduler; None for the pipeline's own.
        steps: The numbers of the denoising steps, from 1 on, at which surfaces and Jacobians are taken.
        radius: Alpha and beta go from -radius to radius.
        points: Points of the grid along each axis, an odd number.
        block: The block whose output the features are; -1 is the last.
        jacobian_samples: Samples at which Jacobians are taken.
        cache_layers, cache_interval: The cache whose features are compared with those of all-full sampling.
        seed: That of the noise.
    """

    samples: int
    num_inference_steps: int
    guidance_scale: float
    steps: list[int]
    radius: float
    points: int
    scheduler: str | None = None
    block: int = -1
    jacobian_samples: int = 4
    cache_layers: int = 1
    cache_interval: int = 3
    seed: int = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """The arguments of ``generate``."""
        names = ("num_inference_steps", "guidance_scale", "scheduler", "seed")
        return {name: getattr(self, name) for name in names}


def surfaces(
    model: str, branches: bool, measurement: dict, direction: int, with_branches: bool, device: str
) -> list[dict[str, Any]]:
    """Return the perturbation surfaces of a model, one for each of the chosen steps, see ``surface.Surface``.

    Args:
        model: The folder of its pipeline.
        branches: Whether its skip branches are attached.
        measurement: The fields of a ``Measurement``.
        direction: The seed of the two directions.
        with_branches: Whether the weights of skip branches are perturbed as well.
        device: Where it runs.
    """
    how, pipe = Measurement(**measurement), _load(model, branches, device)
    calls = surface.record_calls(pipe, _labels(pipe, how.samples), how.steps, **how.sampling)
    values, transformer = surface.grid(how.radius, how.points), transformer_of(pipe)
    measured = surface.measure_surfaces(
        transformer,
        _trunk_of(transformer),
        calls,
        values,
        direction,
        block=how.block,
        with_branches=with_branches,
    )
    return [asdict(each) for each in measured]


def similarities(model: str, branches: bool, measurement: dict, device: str) -> dict[str, Any]:
    """Return the similarity of successive steps, and of cached to full features, of each block in each step."""
    how, pipe = Measurement(**measurement), _load(model, branches, device)
    labels = _labels(pipe, how.samples)
    policy = CachePolicy(how.cache_layers, interval=how.cache_interval, forecast="reuse")
    successive = measure_similarity(pipe, labels, **how.sampling)
    cached = measure_cached_similarity(pipe, labels, policy, **how.sampling)
    return {"successive": None if successive is None else successive.cosines, "cached": cached.cosines}


def norms(model: str, branches: bool, measurement: dict, device: str) -> dict[str, Any]:
    """Return the spectral norms of a model: of the halves of its branches, and at each of the chosen steps of the
    Jacobians of blocks and of the whole model."""
    how, pipe = Measurement(**measurement), _load(model, branches, device)
    sampling = {**how.sampling, "guidance_scale": 1.0}
    calls = surface.record_calls(pipe, _labels(pipe, how.jacobian_samples), how.steps, **sampling)
    transformer = transformer_of(pipe).requires_grad_(False)
    trunk = _trunk_of(transformer)
    return {
        "halves": [] if trunk.branches is None else spectral.half_norms(trunk.branches),
        "blocks": [spectral.block_norms(transformer, trunk, call) for call in calls],
        "model": [spectral.model_norm(transformer, call) for call in calls],
    }


def _load(model: str, branches: bool, device: str):
    """Return the pipeline in a folder, in float32.

    Raises:
        UsageError: It is text-conditional.
    """
    pipe = load_pipeline(model, branches=branches, dtype=torch.float32).to(device)
    if is_text_conditional(pipe):
        raise UsageError(f"Got {model}, but study smoothness takes class-conditional and unconditional models.")
    return pipe


def _trunk_of(transformer) -> Trunk:
    """Return the trunk of a transformer.

    Raises:
        UsageError: It is not known without a forward.
    """
    trunk = known_trunk(transformer)
    if trunk is None:
        raise UsageError(f"Got {type(transformer).__name__}, but study smoothness takes models of a known class.")
    return trunk


def _labels(pipe, count: int) -> list[int | None]:
    classes = transformer_of(pipe).config.get("num_embeds_ada_norm")
    return [None if classes is None else at % classes for at in range(count)]
