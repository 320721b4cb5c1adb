"""``skipdit prepare``: encode training data once, for all trainings to come."""

from __future__ import annotations

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.training_options import ConsoleObserver
from skipdit_cli.errors import INTERRUPTED
from skipdit_cli.training.prepare_settings import PrepareSettings


@with_settings(PrepareSettings)
def prepare(
    ctx: typer.Context,
    model: options.Model = None,
    preset: options.Preset = None,
    settings: PrepareSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Encode the samples and captions of training data once, for 'train' and 'finetune' with --cache-latents.

    An interrupted run goes on when it is started again, and 'accelerate launch -m skipdit_cli prepare' shares the
    work among GPUs.

    skipdit prepare -m converted --data images --cache-latents latents
    """
    settings.check(model, preset)
    if not settings.dry_run:
        files.hold(settings.source.cache_latents, "--cache-latents")

    from skipdit_cli.training.preparation import prepare_data

    folder = settings.source.cache_latents
    try:
        done = prepare_data(settings, model, preset, ConsoleObserver())
    except KeyboardInterrupt:
        console.error(f"interrupted: the same command goes on with what {folder} lacks.", INTERRUPTED)
        raise typer.Exit(INTERRUPTED) from None
    if not done.main:
        return
    missing = " and ".join(console.count(len(work.missing), work.kind[:-1], work.kind) for work in done.works)
    verb = "would be encoded" if settings.dry_run else "encoded"
    console.say(f"{missing} {verb}; {folder} holds {console.count(done.shards, 'shard')}.")
    console.emit(
        {
            "command": "prepare",
            "cache_latents": str(folder),
            "dry_run": settings.dry_run,
            "samples": len(done.samples),
            "samples_skipped": done.samples.skipped,
            **{
                work.kind: {"total": work.total, "kept": work.kept, "encoded": len(work.missing), "bytes": work.bytes}
                for work in done.works
            },
            "shards": done.shards,
            "bytes_free": done.free,
            "seconds": done.seconds,
        }
    )
