"""``skipdit finetune``: continue the pretraining of a converted model."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli.commands import options
from skipdit_cli.commands.training_options import ConsoleObserver, report, with_training_settings
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import preset_path
from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.training_settings import TrainingSettings

PARTS = ("skip", "all")
Part = Annotated[
    str, typer.Option(help="Train 'skip': the branches alone, the trunk frozen (stage 1); or 'all': everything.")
]
Expert = Annotated[
    str | None,
    typer.Option(help="Transformer to train, of two (Wan 2.2): high (noise) or low.", rich_help_panel="Model"),
]
Lora = Annotated[
    str | None,
    typer.Option(help="LoRA to load under the branches: train with the one you sample with.", rich_help_panel="Model"),
]


@with_training_settings
def finetune(
    ctx: typer.Context,
    model: options.Model = None,
    preset: options.Preset = None,
    train: Part = "skip",
    expert: Expert = None,
    lora: Lora = None,
    settings: TrainingSettings = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Continue the pretraining of a converted model.

    First its skip branches alone (--train skip), then everything (--train all).

    skipdit finetune -m converted --data images -o stage1 --train skip
    """
    _check_parts(train, expert, lora)
    settings.check({"model": model, "--lora": lora}, preset and preset_path(preset))

    from skipdit_cli.models import named_model
    from skipdit_cli.sampling.fitting import check_lora, load_lora
    from skipdit_cli.skip import skip_folder
    from skipdit_cli.training.run import base_model, complete, session

    folder = base_model.model_folder(model, preset, revision=revision, local_files_only=local_files_only)
    check_lora(lora)
    demand = base_model.demand_of_folder(folder, expert)
    part = EXPERTS[expert or "high"]
    if train == "skip" and not (folder / skip_folder(part)).is_dir():
        advice = base_model.advice_without_branches(folder)
        raise UsageError(f"Model {folder} has no skip branches to train; {advice}.")
    begun = session.begin(settings, demand, ConsoleObserver())
    origin = session.origin_of(settings, ctx.meta["typed"], named_model(model, preset), folder)
    pipe = base_model.open_to_train(folder, demand, whole=lora is not None or settings.validation_steps > 0)
    if lora is not None:
        load_lora(pipe, lora, local_files_only, part)
    report("finetune", settings, begun.samples, complete.train(begun, pipe, origin, folder, train == "skip"))


def _check_parts(train: str, expert: str | None, lora: str | None) -> None:
    if train not in PARTS:
        raise UsageError(f"Got --train {train} but expected skip or all.{nearest(train, PARTS)}")
    if expert not in (None, *EXPERTS):
        raise UsageError(f"Got --expert {expert} but expected {' or '.join(EXPERTS)}.{nearest(expert, EXPERTS)}")
    if lora is not None and train != "skip":
        raise UsageError("Got --lora with --train all, but under a LoRA only the branches are trained: --train skip.")
