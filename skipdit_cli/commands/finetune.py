"""``skipdit finetune``: continued pretraining of a converted model."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli.commands import options
from skipdit_cli.commands.training_options import report, with_training_settings
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import preset_path
from skipdit_cli.training.data.demand import EXPERTS
from skipdit_cli.training.training_settings import TrainingSettings

PARTS = ("skip", "all")
Expert = Annotated[
    str | None, typer.Option(help="Of a model of two transformers (Wan 2.2), which: high (noise), or low.")
]
Lora = Annotated[
    str | None, typer.Option(help="A LoRA to load below the branches, as it will be when the result is used.")
]
Part = Annotated[str, typer.Option(help="'skip': the branches alone, trunk frozen (stage 1); 'all': everything.")]


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
    if train not in PARTS:
        raise UsageError(f"Got --train {train} but expected skip or all.{nearest(train, PARTS)}")
    if expert not in (None, *EXPERTS):
        raise UsageError(f"Got --expert {expert} but expected {' or '.join(EXPERTS)}.{nearest(expert, EXPERTS)}")
    if lora is not None and train != "skip":
        raise UsageError("Got --lora with --train all, but under a LoRA only the branches are trained: --train skip.")
    settings.check({"model": model, "--lora": lora, "--preset": preset and preset_path(preset)})

    from skipdit_cli.models import named_model
    from skipdit_cli.sampling.fitting import check_lora, load_lora
    from skipdit_cli.skip import skip_folder
    from skipdit_cli.training.run import session

    folder = session.model_folder(model, preset, revision=revision, local_files_only=local_files_only)
    check_lora(lora)
    asked = session.demand(folder, expert)
    part = EXPERTS[expert or "high"]
    if train == "skip" and not (folder / skip_folder(part)).is_dir():
        raise UsageError(f"Model {folder} has no skip branches to train; {session.way_out(folder)}.")
    begun = session.begin(settings, asked)
    origin = session.origin_of(settings, ctx.meta["typed"], named_model(model, preset), folder)
    pipe = session.open_to_train(folder, asked, whole=lora is not None or settings.validation_steps > 0)
    if lora is not None:
        load_lora(pipe, lora, local_files_only, part)
    report("finetune", settings, begun.samples, session.train(begun, pipe, origin, folder, train == "skip"))
