"""``skipdit finetune``: continue the pretraining of a converted model."""

from __future__ import annotations

import typer

from skipdit_cli import files
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.training_options import ConsoleObserver, report
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import preset_path
from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.finetune_settings import FinetuneSettings

PARTS = ("skip", "all")


@with_settings(FinetuneSettings)
def finetune(
    ctx: typer.Context,
    model: options.Model = None,
    preset: options.Preset = None,
    settings: FinetuneSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Continue the pretraining of a converted model.

    First its skip branches alone (--train skip), then everything (--train all).

    skipdit finetune -m converted --data images -o stage1 --train skip
    """
    _check_parts(settings)
    settings.training.check({"model": model, "--lora": settings.lora}, preset and preset_path(preset))
    files.hold(settings.training.output)

    from skipdit_cli.models import named_model
    from skipdit_cli.sampling.fitting import check_lora, load_lora
    from skipdit_cli.skip import skip_folder
    from skipdit_cli.training.run import base_model, complete, session

    folder = base_model.model_folder(model, preset, **vars(settings.hub))
    check_lora(settings.lora)
    demand = base_model.demand_of_folder(folder, settings.expert)
    part = EXPERTS[settings.expert or "high"]
    if settings.only_branches and not (folder / skip_folder(part)).is_dir():
        advice = base_model.advice_without_branches(folder)
        raise UsageError(f"Model {folder} has no skip branches to train; {advice}.")
    begun = session.begin(settings.training, demand, ConsoleObserver())
    origin = session.origin_of(settings.training, ctx.meta["typed"], named_model(model, preset), folder)
    whole = settings.lora is not None or settings.training.validation_steps > 0
    pipe = base_model.open_to_train(folder, demand, whole)
    if settings.lora is not None:
        load_lora(pipe, settings.lora, settings.hub.local_files_only, part)
    report("finetune", begun, complete.train(begun, pipe, origin, folder, settings.only_branches))


def _check_parts(settings: FinetuneSettings) -> None:
    train, expert = settings.train, settings.expert
    if train not in PARTS:
        raise UsageError(f"Got --train {train} but expected skip or all.{nearest(train, PARTS)}")
    if expert not in (None, *EXPERTS):
        raise UsageError(f"Got --expert {expert} but expected {' or '.join(EXPERTS)}.{nearest(expert, EXPERTS)}")
    if settings.lora is not None and train != "skip":
        raise UsageError("Got --lora with --train all, but under a LoRA only the branches are trained: --train skip.")
