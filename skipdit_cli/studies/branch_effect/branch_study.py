"""The study of skip branches: the same caches on models with and without them that are trained equally long."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.studies.branch_effect.cache_grid import make_cells
from skipdit_cli.studies.study import Findings, Study, at_least
from skipdit_cli.studies.study_run import StudyRun

VANILLA, RESIDUAL, REPLACE = "vanilla", "residual", "replace"
TRAINED = (VANILLA, RESIDUAL, REPLACE)
"""The arms that are trained: without branches, and with those of each merge."""
UNTRAINED = "base"
"""The arm that all others begin with."""
PARTS = {VANILLA: ("all", "all"), RESIDUAL: ("skip", "all"), REPLACE: ("skip", "all")}
"""What each arm trains in its two stages; without branches there is nothing to freeze the trunk for."""


@dataclass(frozen=True)
class BranchSettings:
    """The settings of study ``branches``.

    Args:
        model: The preset of the model, with its training data, digits, in ``finetune``.
        base_steps: Optimizer steps of the model that all arms begin with, by ``train``, one for each seed; 0 for the
            embedded weights of the preset.
        lengths: Optimizer steps of both stages together, half of them in each, of each training.
        batch_size, learning_rates: Of both stages of every arm.
        samples, guidance_scale, seed: The samples of every cached run, from the same noise.
        exact_db: The accuracy of the exact solutions.
        samplers, layers, intervals, full_steps, forecasts, levels: The caches, as of ``make_cells``.
        score_samples: Samples of the runs that are scored against real digits.
        score_samplers, score_layers, score_intervals, score_full_steps, score_forecasts, score_levels: Their caches.
        batch: Samples at one time; all if None.
        budgets: Costs, in full forwards without branches, at which the best caches of all kinds are compared.
    """

    model: str
    lengths: tuple[int, ...]
    batch_size: int
    learning_rates: tuple[float, ...]
    samples: int
    guidance_scale: float
    samplers: tuple[str, ...]
    layers: tuple[int, ...]
    intervals: tuple[int, ...]
    full_steps: tuple[int, ...]
    forecasts: tuple[str, ...]
    levels: tuple[str, ...]
    score_samples: int
    score_samplers: tuple[str, ...]
    score_layers: tuple[int, ...]
    score_intervals: tuple[int, ...]
    score_full_steps: tuple[int, ...]
    score_forecasts: tuple[str, ...]
    score_levels: tuple[str, ...]
    base_steps: int = at_least(0, 0)
    seed: int = at_least(0, 0)
    exact_db: float = 50.0
    batch: int | None = None
    budgets: tuple[int, ...] = (8, 10, 13, 16, 20)

    @property
    def grid(self) -> dict[str, Any]:
        """The arguments of ``make_cells`` for the caches of every model."""
        return self._grid("")

    @property
    def score_grid(self) -> dict[str, Any]:
        """The arguments of ``make_cells`` for the caches whose samples are scored."""
        return self._grid("score_")

    def _grid(self, prefix: str) -> dict[str, Any]:
        names = ("samplers", "layers", "intervals", "full_steps", "forecasts", "levels")
        return {name: getattr(self, prefix + name) for name in names}


def commands(settings: BranchSettings, seeds: tuple[int, ...]) -> dict[str, str]:
    """Return the conversions and, for each arm, length and seed, the trainings of two stages.

    Raises:
        UsageError: The settings describe no study.
    """
    _check(settings)
    lines: dict[str, str] = {}
    for seed in seeds:
        base = f"--preset {shlex.quote(settings.model)}"
        if settings.base_steps:
            lines[f"{UNTRAINED}-{seed}"] = f"train {base} --max-train-steps {settings.base_steps} --seed {seed}"
            base = f"-m {{run}}/{UNTRAINED}-{seed}"
        lines[f"{RESIDUAL}-{seed}"] = f"convert {base}"
        lines[f"{REPLACE}-{seed}"] = f"convert {base} --merge replace --seed {seed}"
        begin = {VANILLA: base, **{arm: f"-m {{run}}/{arm}-{seed}" for arm in (RESIDUAL, REPLACE)}}
        for length in settings.lengths:
            for arm in TRAINED:
                name = trained_name(arm, length, seed)
                stages = (f"{name}-stage-1", name)
                models = (begin[arm], f"-m {{run}}/{stages[0]}")
                lines |= {
                    stages[at]: _finetune(settings, models[at], PARTS[arm][at], length, at, seed) for at in (0, 1)
                }
    return lines


def trained_name(arm: str, length: int, seed: int) -> str:
    """Return the name of the command that ends the training of an arm."""
    return f"{arm}-{length}-{seed}"


def _finetune(settings: BranchSettings, model: str, part: str, length: int, stage: int, seed: int) -> str:
    """Return the command line of a stage, 0 or 1."""
    steps = (length // 2, length - length // 2)[stage]
    preset = "" if "--preset" in model else f" --preset {shlex.quote(settings.model)}"
    return (
        f"finetune {model}{preset} --train {part} --max-train-steps {steps} --train-batch-size {settings.batch_size} "
        f"--learning-rate {settings.learning_rates[stage]:g} --checkpoints-total-limit 1 --seed {seed}"
    )


def _check(settings: BranchSettings) -> None:
    if len(settings.learning_rates) != len(PARTS[VANILLA]):
        rates = " ".join(map(str, settings.learning_rates))
        raise UsageError(f"Got learning_rates {rates} but expected two, one for each stage of training.")
    lengths = settings.lengths
    if not lengths or min(lengths) < 2 or list(lengths) != sorted(set(lengths)):
        raise UsageError(
            f"Got lengths {' '.join(map(str, lengths))} but expected 2 or more steps each, in ascending order."
        )
    if not settings.samplers or not settings.forecasts:
        raise UsageError("Got no samplers or no forecasts but expected one or more of each.")
    if not settings.base_steps and load_preset(settings.model).weights_path is None:
        raise UsageError(
            f"Got preset {settings.model}, which has no weights; set 'experiment: base_steps' to train it."
        )
    for grid in (settings.grid, settings.score_grid):
        make_cells(**grid)


def check(settings: BranchSettings) -> None:
    """Refuse a run that could not be scored."""
    from skipdit_cli.evaluation.distances import check_torchmetrics

    if settings.score_samples == 1:
        raise UsageError("Got 'experiment: score_samples: 1' but expected 2 or more.")
    check_torchmetrics()


def measure(run: StudyRun) -> Findings:
    """Measure every arm with every cache, and compare those with branches with the one without."""
    from skipdit_cli.studies.branch_effect.branch_findings import find
    from skipdit_cli.studies.branch_effect.cached_runs import measure_caches, measure_scores

    settings: BranchSettings = run.settings
    names = [trained_name(arm, length, seed) for arm in TRAINED for length in settings.lengths for seed in run.seeds]
    folders = {name: str(run.folder(name)) for name in names}
    if settings.base_steps:
        folders |= {f"{UNTRAINED}-{seed}": str(run.folder(f"{UNTRAINED}-{seed}")) for seed in run.seeds}
    else:
        folders[UNTRAINED] = str(load_preset(settings.model).weights_path)
    sampling = {"guidance_scale": settings.guidance_scale, "seed": settings.seed, "batch_size": settings.batch}
    shared = {"run": sampling, "device": run.device}
    caches = {"grid": settings.grid, "samples": settings.samples, "exact_db": settings.exact_db, **shared}
    measured = run.measured_all(
        measure_caches, {f"caches-{name}": {"model": folder, **caches} for name, folder in folders.items()}
    )
    scoring = {"grid": settings.score_grid, "samples": settings.score_samples, **shared}
    longest = settings.lengths[-1]
    scored = [name for name in folders if name.startswith(UNTRAINED) or f"-{longest}-" in name]
    scores = run.measured_all(
        measure_scores, {f"scores-{name}": {"model": folders[name], **scoring} for name in scored}
    )
    return find(settings, run.seeds, measured, scores)


STUDY = Study(
    name="branches",
    summary="do skip branches make a cache better, or does training longer?",
    claim=(
        "long skip branches make features stable over denoising steps, and so a cache more accurate (Skip-DiT, arXiv "
        "2411.17616). The paper compares no vanilla model that is trained equally long and has the same cache."
    ),
    settings=BranchSettings,
    commands=commands,
    measure=measure,
    check=check,
)
