"""The study of conditioning: the four strategies of DiT, trained for equally many steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from skipdit_cli.console import count
from skipdit_cli.families.conditioned_dit import ADALN_ZERO, CONDITIONINGS, with_conditioning
from skipdit_cli.presets import load_preset
from skipdit_cli.reports import Column, Plot, Series, Table
from skipdit_cli.studies.compute.curves import checkpointing_steps, seed_points
from skipdit_cli.studies.launch import flags
from skipdit_cli.studies.spread import RULE, sign_beyond_spread, spread
from skipdit_cli.studies.study import Findings, Study, at_least
from skipdit_cli.studies.study_run import StudyRun

GIGA, MILLION = 1e9, 1e6
SHAPES = ("circle", "square", "diamond", "triangle")
METRICS = {
    "fid": ("FID", 2),
    "kid": ("KID", 4),
    "agreement": ("Classifier agreement", 3),
    "loss": ("Held-out loss", 4),
}
"""Heading and decimals of each score."""
PAPER_ORDER = "adaln-zero, adaln, cross-attention, in-context"
NOTE = (
    "All strategies have the same blocks, data, steps, batches and learning rate, and the same noise in a held-out "
    "loss. Qualities are those of the averaged weights (EMA), of samples without guidance. Equal steps is the paper's "
    "comparison: parameters and GFLOPs (multiply-adds of a forward, as the paper counts) differ, and stand beside it. "
    "A new model predicts zero whatever its strategy; only the blocks of adaln-zero begin as the identity. The paper "
    "does not say how adaLN's regression begins: here it is Xavier-uniform, as the other Linear layers."
)


LEARNED = 0.5
"""The classifier agreement from which on a model has learned its classes."""


@dataclass(frozen=True)
class ConditioningSettings:
    """The settings of study ``conditioning``.

    Args:
        preset: The preset of a DiT, whose ``train`` flags are used.
        train_steps: Optimizer steps of each model.
        checkpoints: Checkpoints of each training, evenly spaced, at which the quality is measured.
        samples: Generated samples to score at each of them; 0 for none.
        num_inference_steps: Denoising steps of those samples.
        data: ``--data`` of the trainings.
        held_out, held_out_samples, draws: The held-out loss, see ``training_curves.Measurement``.
        reference, reference_samples, features, batch_size: As for ``training_curves.Measurement``.
        train_batch_size, gradient_accumulation_steps, lr_scheduler, lr_warmup_steps, ema_decay: Flags of the
            trainings. The schedule must not depend on the number of steps, for each checkpoint stands for a training
            of its length.
        learning_rate: ``--learning-rate`` of the trainings; None for that of the preset.
        vae: ``--vae`` of the trainings; None for models of pixels.
    """

    preset: str
    train_steps: int
    checkpoints: int
    samples: int = at_least(0)
    num_inference_steps: int
    data: str
    held_out: str
    reference: str
    train_batch_size: int
    gradient_accumulation_steps: int = 1
    held_out_samples: int = at_least(0, 0)
    draws: int = 4
    reference_samples: int = at_least(0, 0)
    features: str = "digits"
    batch_size: int = 250
    lr_scheduler: str = "constant"
    lr_warmup_steps: int = at_least(0, 20)
    ema_decay: float = 0.99
    learning_rate: float | None = None
    vae: str | None = None


@dataclass(frozen=True)
class Strategy:
    """A conditioning strategy and what was measured of it.

    Args:
        name: One of ``CONDITIONINGS``.
        parameters: The parameters of its model.
        macs: Multiply-adds of a forward; None if they cannot be counted.
        curves: For each seed the quality at each checkpoint, in the order of their steps.
    """

    name: str
    parameters: int
    macs: int | None
    curves: list[list[dict[str, float]]]

    def last(self, metric: str) -> list[float]:
        """Return a score at the end of training, one for each seed."""
        return [curve[-1][metric] for curve in self.curves]


def commands(settings: ConditioningSettings, seeds: tuple[int, ...]) -> dict[str, str]:
    """Return one training for each strategy and seed."""
    training = flags(
        skip_branches=False,
        data=settings.data,
        max_train_steps=settings.train_steps,
        checkpointing_steps=checkpointing_steps(settings.train_steps, settings.checkpoints),
        checkpoints_total_limit=settings.checkpoints + 1,
        train_batch_size=settings.train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        lr_scheduler=settings.lr_scheduler,
        lr_warmup_steps=settings.lr_warmup_steps,
        ema_decay=settings.ema_decay,
        learning_rate=settings.learning_rate,
        vae=settings.vae,
    )
    return {
        f"{name}-seed-{seed}": f"train {flags(preset=settings.preset, conditioning=name)} {training} --seed {seed}"
        for seed in seeds
        for name in CONDITIONINGS
    }


def needs(settings: ConditioningSettings, seeds: tuple[int, ...]) -> list[str]:
    """Return what is missing on this machine."""
    from skipdit_cli.studies.compute.required_files import missing_files

    return [f"It needs {what}, which is not here." for what in missing_files(_data(settings), settings.features)]


def check(settings: ConditioningSettings) -> None:
    """Refuse a run whose files or packages are missing."""
    from skipdit_cli.studies.compute.required_files import check_measurable

    check_measurable(_data(settings), settings.features, (settings.samples,), settings.reference_samples)


def _data(settings: ConditioningSettings) -> tuple[str, ...]:
    """Return all data sources, as ``--data``."""
    return settings.data, settings.held_out, settings.reference


def measure(run: StudyRun) -> Findings:
    """Measure all strategies over training, and compare them."""
    from skipdit_cli.studies import training_curves
    from skipdit_cli.training.sweep import cost_of
    from skipdit_cli.training.training_settings import TrainingSettings

    settings: ConditioningSettings = run.settings
    folders = {name: run.folder(name) for name in run.lines}
    every = checkpointing_steps(settings.train_steps, settings.checkpoints)
    curves = training_curves.curves_of(run, folders, training_curves.measurement_of(settings), every)
    strategies = []
    for name in CONDITIONINGS:
        cost = cost_of(with_conditioning(load_preset(settings.preset), name), TrainingSettings(), False)
        of_seeds = [curves[f"{name}-seed-{seed}"] for seed in run.seeds]
        strategies.append(Strategy(name, cost.parameters, cost.macs, of_seeds))
    return find(strategies)


def leads(strategies: Sequence[Strategy], metric: str) -> dict[str, list[float]]:
    """Return by how much adaLN-Zero is better than each other strategy at the end of training, one for each seed.

    Args:
        metric: ``agreement`` is better when it is higher, all others when they are lower.
    """
    ends = {strategy.name: strategy.last(metric) for strategy in strategies}
    sign = -1 if metric == "agreement" else 1
    return {
        name: [sign * (value - zero) for value, zero in zip(values, ends[ADALN_ZERO])]
        for name, values in ends.items()
        if name != ADALN_ZERO
    }


def find(strategies: Sequence[Strategy]) -> Findings:
    """Return what the strategies show."""
    metrics = [name for name in METRICS if all(name in row for each in strategies for row in each.curves[0])]
    by_metric = {metric: leads(strategies, metric) for metric in metrics}
    first, *others = metrics
    numbers = {"strategies": {each.name: asdict(each) for each in strategies}, "lead_of_adaln_zero": by_metric}
    order = ", ".join(each.name for each in sorted(strategies, key=lambda each: fmean(each.last(first))))
    details = [
        f"By mean {METRICS[first][0]} the order here is {order}; that of the paper's figure 5 is {PAPER_ORDER}.",
        *(_lead_words(by_metric[metric], metric) for metric in others),
    ]
    plots = [_plot(strategies, metric) for metric in metrics]
    steps = int(strategies[0].curves[0][-1]["step"])
    return Findings(
        f"After {count(steps, 'step')} of training, {_lead_words(by_metric[first], first)}",
        details,
        numbers,
        plots=plots,
        tables=[_table(strategies, metrics)],
        notes=[NOTE, RULE],
        warnings=_warnings(strategies, metrics),
    )


def _warnings(strategies: Sequence[Strategy], metrics: Sequence[str]) -> list[str]:
    """Return a warning if no model has learned its classes, so that the order of the strategies says nothing."""
    if "agreement" not in metrics:
        return []
    best = max(fmean(strategy.last("agreement")) for strategy in strategies)
    if best >= LEARNED:
        return []
    return [
        f"A classifier agrees with the class of at most {best:.0%} of the samples of a strategy: the models have not "
        "learned their classes yet, so their order says little; train longer."
    ]


def _lead_words(differences: Mapping[str, Sequence[float]], metric: str) -> str:
    """Return adaLN-Zero's lead over each other strategy, and whether it is more than the spread."""
    name, digits = METRICS[metric]
    words = []
    for other, values in differences.items():
        mean = fmean(values)
        if len(values) < 2:
            judged = "of one seed, so its spread is unknown"
        else:
            judged = "in every seed" if sign_beyond_spread(values) else "within the spread"
        kind = "ahead of" if mean > 0 else "behind" if mean < 0 else "level with"
        words.append(
            f"{kind} {other} by {spread([abs(mean)] if len(values) < 2 else _upright(values), digits)}, {judged}"
        )
    return f"{name}: adaln-zero is {'; '.join(words)}."


def _upright(values: Sequence[float]) -> list[float]:
    """Return differences with the sign that makes their mean positive."""
    return [-value for value in values] if fmean(values) < 0 else list(values)


def _plot(strategies: Sequence[Strategy], metric: str) -> Plot:
    name, digits = METRICS[metric]
    series = [
        Series(
            strategy.name,
            seed_points(strategy.curves, metric, digits),
            at,
            SHAPES[at % len(SHAPES)],
            joined=True,
        )
        for at, strategy in enumerate(strategies)
    ]
    about = "Each strategy at its checkpoints: means and spread over seeds."
    return Plot(f"{name} over training", about, "optimizer steps", name, series)


def _table(strategies: Sequence[Strategy], metrics: Sequence[str]) -> Table:
    columns = [
        Column("conditioning", "how the model gets its timestep and class label", numeric=False),
        Column("parameters", "parameters of the model, in millions"),
        Column("GFLOPs", "multiply-adds of a forward of one sample, as the paper counts"),
        *(Column(METRICS[metric][0], "at the end of training, mean and spread over seeds") for metric in metrics),
    ]
    rows = [
        [
            strategy.name,
            f"{strategy.parameters / MILLION:.3f} M",
            "-" if strategy.macs is None else f"{strategy.macs / GIGA:.5g}",
            *(spread(strategy.last(metric), METRICS[metric][1]) for metric in metrics),
        ]
        for strategy in strategies
    ]
    return Table("Strategies at equal steps", columns, rows)


STUDY = Study(
    name="conditioning",
    summary="which of DiT's four conditioning strategies trains best?",
    claim=(
        "adaLN-Zero gives the lowest FID of the four strategies at every point of training, with less compute than "
        "in-context and cross-attention conditioning, and adaLN-Zero is well ahead of adaLN (DiT, arXiv 2212.09748, "
        "figure 5)."
    ),
    settings=ConditioningSettings,
    commands=commands,
    measure=measure,
    needs=needs,
    check=check,
)
