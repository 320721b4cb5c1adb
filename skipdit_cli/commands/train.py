"""``skipdit train``: train the model of a preset from scratch."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import files, presets
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.train_sweep import train_sweep
from skipdit_cli.commands.training_options import ConsoleObserver, report
from skipdit_cli.errors import UsageError
from skipdit_cli.families.conditioned_dit import with_conditioning
from skipdit_cli.training.training_settings import TrainingSettings

SWEEPS = "Sweep"
SkipBranches = Annotated[
    bool, typer.Option(help="Train the model with skip branches, or the vanilla model.", rich_help_panel="Model")
]
Sweep = Annotated[
    str | None,
    typer.Option(
        help="Preset with a grid of models and settings, its 'sweep'; each point is trained in a folder of its own.",
        metavar="NAME|PATH",
        is_eager=True,
        rich_help_panel=SWEEPS,
    ),
]
Points = Annotated[
    str | None,
    typer.Option(
        help="Points of the sweep to train, with commas between them. [default: all]", rich_help_panel=SWEEPS
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show the points of the sweep and what they cost; stop.", rich_help_panel=SWEEPS),
]
Conditioning = Annotated[
    str | None,
    typer.Option(
        help="Of a DiT: in-context, cross-attention, adaln or adaln-zero. [default: as the preset says]",
        rich_help_panel="Model",
        show_default=False,
    ),
]
Vae = Annotated[str | None, typer.Option(help="VAE of a latent model: folder or hub id.", rich_help_panel="Model")]


@with_settings(TrainingSettings)
def train(
    ctx: typer.Context,
    preset: options.Preset = None,
    skip_branches: SkipBranches = True,
    conditioning: Conditioning = None,
    vae: Vae = None,
    sweep: Sweep = None,
    points: Points = None,
    dry_run: DryRun = False,
    settings: TrainingSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train the model of a preset from scratch, or with --sweep every model of a grid.

    skipdit train --preset digits --data digits -o runs/digits
    """
    if sweep is not None:
        if preset is not None:
            raise UsageError(f"Got --preset {preset} and --sweep {sweep}; give one of the two.")
        if conditioning is not None:
            raise UsageError(f"Got --conditioning {conditioning} with --sweep, whose preset names the models.")
        train_sweep(ctx, sweep, settings, points, dry_run)
        return
    if points is not None or dry_run:
        raise UsageError(
            f"Got {'--dry-run' if dry_run else f'--points {points}'} without --sweep; add --sweep PRESET."
        )
    if preset is None:
        raise UsageError("Got no --preset, which names the model to train; see 'skipdit presets list'.")
    chosen = with_conditioning(presets.load_preset(preset), conditioning)
    settings.check({"--vae": vae}, presets.preset_path(preset))
    files.hold(settings.output)

    from skipdit_cli.models import load_vae
    from skipdit_cli.training.data.demand import demand_of
    from skipdit_cli.training.run import base_model, complete, session

    config = base_model.trainable_config(chosen, vae is not None)
    begun = session.begin(settings, demand_of(config, f"Preset {preset}"), ConsoleObserver())
    decoder = None if vae is None else load_vae(vae, config["in_channels"])
    pipe = base_model.new_pipeline(chosen, skip_branches, decoder, settings.seed, settings.label_dropout > 0)
    origin = session.origin_of(settings, ctx.meta["typed"])
    report("train", begun, complete.train(begun, pipe, origin))
