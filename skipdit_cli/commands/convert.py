"""``skipdit convert``: any diffusion transformer's checkpoint to a pipeline folder with skip branches."""

from __future__ import annotations

import typer

from skipdit_cli import console, files
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.conversion.convert_settings import ConvertSettings
from skipdit_cli.presets import preset_path


@with_settings(ConvertSettings)
def convert(
    ctx: typer.Context,
    model: options.Model = None,
    settings: ConvertSettings = None,
    preset: options.Preset = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Give a diffusion transformer its skip branches.

    Takes a pipeline folder or hub id, or a transformer folder; of DiT, SiT and Latte also an official .pt file.

    skipdit convert -m facebook/DiT-XL-2-256 -o dit-xl
    """
    settings.check()
    from skipdit_cli.cards.card import find_origin
    from skipdit_cli.commands import convert_report
    from skipdit_cli.commands.upload import upload
    from skipdit_cli.conversion import convert as conversion
    from skipdit_cli.models import named_model

    name = named_model(model, preset)
    settings.check_output({"model": name, "--preset": preset and preset_path(preset)})
    plan = conversion.plan_from_settings(name, settings)
    result = convert_report.facts(plan)
    for line in convert_report.lines(plan, result):
        console.say(line)
    output, source = settings.output, plan.source
    if settings.dry_run:
        console.say(f"Dry run: nothing written; {output} would take {console.size_text(plan.needed_bytes())}.")
    else:
        files.hold(output)
        folder = source.pipeline or source.transformer
        origin = find_origin(output, settings.push_to_hub, ctx.meta["typed"], source.name, folder)
        proof = conversion.convert(plan, settings, origin)
        if origin.note:
            console.say(origin.note)
        console.say(str(proof))
        console.say(f"Wrote {output}. Next: skipdit {convert_report.next_command(source, output)}")
        result.update(weights_equal=proof.weights, bitwise_equal=proof.outputs)
        result["pushed_to"] = upload(output, settings.push_to_hub, settings.private)
    console.emit({**result, "output": str(output), "dry_run": settings.dry_run})
