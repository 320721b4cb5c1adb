"""The study of smoothness: whether long skip branches make the features of a Diffusion Transformer smoother."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipdit_cli.errors import UsageError
from skipdit_cli.studies.study import Findings, Study, at_least
from skipdit_cli.studies.study_run import StudyRun

VANILLA, LONGER, SKIP = "vanilla", "vanilla-longer", "skip-dit"
"""The models: as it was, trained as long as Skip-DiT without branches, and with branches."""


@dataclass(frozen=True)
class SmoothnessSettings:
    """The settings of study ``smoothness``.

    Args:
        samples, num_inference_steps, guidance_scale, scheduler, steps, radius, points, block, jacobian_samples,
        cache_layers, cache_interval: See ``measurement.Measurement``.
        directions: Seeds of the two random directions, from 0 on.
        level: The cosine above which the area of a surface is taken.
        preset: The preset of the model and of its training; None for ``model`` alone.
        model: The folder or hub id of the vanilla model; None for the weights of the preset.
        skip_model: The folder or hub id of a trained Skip-DiT. Nothing is trained then, and vanilla has no longer
            training to be compared with.
        stage_1_steps, stage_2_steps: Optimizer steps of the branches alone, and then of all weights.
        train_batch_size, learning_rate: As for ``finetune``.
    """

    samples: int
    num_inference_steps: int
    guidance_scale: float
    steps: tuple[int, ...]
    radius: float
    points: int
    directions: int
    level: float
    preset: str | None = None
    model: str | None = None
    skip_model: str | None = None
    stage_1_steps: int = at_least(0, 0)
    stage_2_steps: int = at_least(0, 0)
    train_batch_size: int = 128
    learning_rate: float = 1e-4
    scheduler: str | None = None
    block: int = at_least(-1, -1)
    jacobian_samples: int = 4
    cache_layers: int = 1
    cache_interval: int = 3


def commands(settings: SmoothnessSettings, seeds: tuple[int, ...]) -> dict[str, str]:
    """Return the conversion of the vanilla model, and for each seed its longer training and Skip-DiT's two stages."""
    if settings.skip_model is not None:
        return {}
    preset = "" if settings.preset is None else f" --preset {shlex.quote(settings.preset)}"
    model = "" if settings.model is None else f" -m {shlex.quote(settings.model)}"
    first, second = settings.stage_1_steps, settings.stage_2_steps

    def finetune(source: str, part: str, steps: int, seed: int) -> str:
        return (
            f"finetune{source}{preset} --train {part} --max-train-steps {steps} --train-batch-size "
            f"{settings.train_batch_size} --learning-rate {settings.learning_rate:g} --seed {seed}"
        )

    lines = {"converted": f"convert{model}{preset}"}
    for seed in seeds:
        lines[f"stage-1-{seed}"] = finetune(" -m {run}/converted", "skip", first, seed)
        lines[f"{SKIP}-{seed}"] = finetune(f" -m {{run}}/stage-1-{seed}", "all", second, seed)
        lines[f"{LONGER}-{seed}"] = finetune(model, "all", first + second, seed)
    return lines


def needs(settings: SmoothnessSettings, seeds: tuple[int, ...]) -> Sequence[str]:
    """Return what the study needs.

    Raises:
        UsageError: Its grid has no middle, or a step does not exist.
    """
    if settings.points < 3 or settings.points % 2 == 0:
        raise UsageError(f"Got 'experiment: points: {settings.points}' but expected an odd number of 3 or more.")
    if not settings.steps or not all(1 <= step <= settings.num_inference_steps for step in settings.steps):
        raise UsageError(
            f"Got 'experiment: steps: {list(settings.steps)}' but expected numbers from 1 to num_inference_steps, "
            f"{settings.num_inference_steps}."
        )
    if settings.directions < 1:
        raise UsageError(f"Got 'experiment: directions: {settings.directions}' but expected 1 or more.")
    if settings.model is None and settings.preset is None:
        raise UsageError("Got no model; set 'experiment: model' or 'experiment: preset'.")
    if settings.skip_model is None:
        return []
    return [
        f"It needs two trained models, {settings.model or settings.preset} and {settings.skip_model}, and memory for "
        "four copies of the weights: nothing is trained, so training seeds change nothing."
    ]


def measure(run: StudyRun) -> Findings:
    """Measure the surfaces, the similarities and the spectral norms of all models, and compare them."""
    from skipdit_cli.models import named_model
    from skipdit_cli.studies.smoothness import measurement
    from skipdit_cli.studies.smoothness.smoothness_findings import find

    settings: SmoothnessSettings = run.settings
    fields = ["samples", "num_inference_steps", "guidance_scale", "steps", "radius", "points", "block"]
    fields += ["scheduler", "jacobian_samples", "cache_layers", "cache_interval"]
    shared: dict[str, Any] = {
        "measurement": {name: getattr(settings, name) for name in fields},
        "device": run.device,
    }
    folders = {VANILLA: {0: str(named_model(settings.model, settings.preset))}}
    if settings.skip_model is None:
        folders |= {name: {seed: str(run.folder(f"{name}-{seed}")) for seed in run.seeds} for name in (LONGER, SKIP)}
    else:
        folders[SKIP] = {0: settings.skip_model}
    models = [(name, seed, folder) for name, each in folders.items() for seed, folder in each.items()]
    kinds = [(name, seed, folder, True) for name, seed, folder in models]
    kinds += [(f"{name}, trunk", seed, folder, False) for name, seed, folder in models if name == SKIP]
    surfaces = run.measured_all(
        measurement.surfaces,
        {
            _key("surface", name, seed, direction): {
                "model": folder,
                "branches": name not in (VANILLA, LONGER),
                "direction": direction,
                "with_branches": with_branches,
                **shared,
            }
            for name, seed, folder, with_branches in kinds
            for direction in range(settings.directions)
        },
    )
    calls = {(name, seed): {"model": folder, "branches": name == SKIP, **shared} for name, seed, folder in models}
    similar = run.measured_all(measurement.similarities, {_key("similarity", *key): of for key, of in calls.items()})
    norms = run.measured_all(measurement.norms, {_key("norms", *key): of for key, of in calls.items()})
    return find(
        settings,
        {
            name: {
                (seed, direction): surfaces[_key("surface", name, seed, direction)]
                for other, seed, *_ in kinds
                if other == name
                for direction in range(settings.directions)
            }
            for name in dict.fromkeys(kind[0] for kind in kinds)
        },
        {name: [similar[_key("similarity", name, seed)] for seed in each] for name, each in folders.items()},
        {name: [norms[_key("norms", name, seed)] for seed in each] for name, each in folders.items()},
    )


def _key(kind: str, name: str, *numbers: int) -> str:
    return "-".join([kind, name.replace(", ", "-"), *map(str, numbers)])


STUDY = Study(
    name="smoothness",
    summary="do skip branches make features smoother?",
    claim=(
        "features of a Skip-DiT change less than those of a DiT when its weights are perturbed, and from one "
        "denoising step to the next, so that they can be cached (Skip-DiT, arXiv 2411.17616, and figures of its "
        "repository)."
    ),
    settings=SmoothnessSettings,
    commands=commands,
    measure=measure,
    needs=needs,
)
