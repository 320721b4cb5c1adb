"""``skipdit train``: train the model of a preset from scratch."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import presets
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.training_options import ConsoleObserver, report
from skipdit_cli.errors import UsageError
from skipdit_cli.training.training_settings import TrainingSettings

SkipBranches = Annotated[
    bool, typer.Option(help="Train the model with skip branches, or the vanilla model.", rich_help_panel="Model")
]
Vae = Annotated[str | None, typer.Option(help="VAE of a latent model: folder or hub id.", rich_help_panel="Model")]


@with_settings(TrainingSettings)
def train(
    ctx: typer.Context,
    preset: options.Preset = None,
    skip_branches: SkipBranches = True,
    vae: Vae = None,
    settings: TrainingSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train the model of a preset from scratch.

    skipdit train --preset digits --data digits -o runs/digits
    """
    if preset is None:
        raise UsageError("Got no --preset, which names the model to train; see 'skipdit presets list'.")
    chosen = presets.load_preset(preset)
    settings.check({"--vae": vae}, presets.preset_path(preset))

    from skipdit_cli.models import load_vae
    from skipdit_cli.training.data.demand import demand_of
    from skipdit_cli.training.run import base_model, complete, session

    config = base_model.trainable_config(chosen, vae is not None)
    begun = session.begin(settings, demand_of(config, f"Preset {preset}"), ConsoleObserver())
    decoder = None if vae is None else load_vae(vae, config["in_channels"])
    pipe = base_model.new_pipeline(chosen, skip_branches, decoder, settings.seed, settings.label_dropout > 0)
    origin = session.origin_of(settings, ctx.meta["typed"])
    report("train", begun, complete.train(begun, pipe, origin))
