"""``skipdit convert``: any diffusion transformer's checkpoint to a pipeline folder with skip branches."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands.options import (
    Debug,
    Json,
    LocalFilesOnly,
    Model,
    ModelArgument,
    Output,
    Overwrite,
    Preset,
    Private,
    PushToHub,
    Revision,
    one_model,
)
from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families import family_of
from skipdit_cli.presets import preset_path

Merge = Annotated[str | None, typer.Option(help="residual (default), or replace, the official form.")]
Heads = Annotated[int | None, typer.Option(help="For an official file of a width other than DiT-S, B, L or XL.")]
SampleSize = Annotated[int | None, typer.Option(min=1, help="Latent height of an official text-to-video file.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of an official text-to-video file.")]
Process = Annotated[
    str | None,
    typer.Option(help="What an official image file was trained for, if it does not say: dit, or sit (flow matching)."),
]
Classes = Annotated[
    int | None, typer.Option(min=1, help="Classes of an official file whose label table may have a row for none.")
]
TimeEmbedding = Annotated[
    str, typer.Option(help="Timestep frequencies: auto, official (DiT repository) or diffusers.")
]
Vae = Annotated[str | None, typer.Option(help="VAE folder or hub id to put into a new latent pipeline.")]
TextFrom = Annotated[
    str | None,
    typer.Option(help="LattePipeline whose text encoder, tokenizer and VAE an official text-to-video file gets."),
]
Dtype = Annotated[str, typer.Option(help="Of the transformer written: auto keeps it; float32, bfloat16, float16.")]
Verify = Annotated[bool, typer.Option(help="Prove on a seeded forward that outputs stay equal.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and write nothing.")]


def convert(
    ctx: typer.Context,
    model_argument: ModelArgument = None,
    model: Model = None,
    output: Output = None,
    merge: Merge = None,
    num_attention_heads: Heads = None,
    sample_size: SampleSize = None,
    num_frames: Frames = None,
    process: Process = None,
    num_classes: Classes = None,
    time_embedding: TimeEmbedding = "auto",
    vae: Vae = None,
    text_from: TextFrom = None,
    dtype: Dtype = "auto",
    verify: Verify = True,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    push_to_hub: PushToHub = None,
    private: Private = False,
    preset: Preset = None,
    revision: Revision = None,
    local_files_only: LocalFilesOnly = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Give a diffusion transformer its skip branches.

    Takes a pipeline folder or hub id, or a transformer folder; of DiT, SiT and Latte also an official .pt file.

    skipdit convert -m facebook/DiT-XL-2-256 -o dit-xl
    """
    _one_of("--merge", merge, (None, "residual", "replace"))
    _one_of("--time-embedding", time_embedding, ("auto", "official", "diffusers"))
    _one_of("--process", process, (None, "dit", "sit"))
    if output is None:
        raise UsageError("Got no output; give -o/--output FOLDER.")
    from skipdit_cli.cards.card import find_origin
    from skipdit_cli.cards.publish import check_push, push
    from skipdit_cli.conversion import write as work
    from skipdit_cli.conversion.plan import plan_conversion
    from skipdit_cli.conversion.source import open_source
    from skipdit_cli.conversion.text_parts import find_text_parts
    from skipdit_cli.models import load_vae, named_model
    from skipdit_cli.sampling.device import DTYPES

    _one_of("--dtype", dtype, ("auto", *DTYPES))
    check_push(push_to_hub, private)
    named = named_model(one_model(model_argument, model), preset)
    reads = {"model": named, "--vae": vae, "--text-from": text_from, "--preset": preset and preset_path(preset)}
    work.check_output(output, overwrite, reads)
    hub = {"revision": revision, "local_files_only": local_files_only}
    given = {"num_attention_heads": num_attention_heads, "sample_size": sample_size, "num_frames": num_frames}
    given |= {"process": process, "num_classes": num_classes}
    source = open_source(named, **given, **hub)
    decoder = None if vae is None else load_vae(vae, source.config["in_channels"], **hub)
    text = None if text_from is None else find_text_parts(text_from, source.config, with_vae=vae is None, **hub)
    plan = plan_conversion(source, merge, time_embedding, DTYPES.get(dtype), decoder, text)
    result = _describe(plan)
    if dry_run:
        console.say(f"Dry run: nothing written; {output} would take {plan.needed_bytes() / 1e6:,.1f} MB.")
    else:
        origin = find_origin(
            output, push_to_hub, ctx.meta["typed"], source.name, source.pipeline or source.transformer
        )
        proof = work.convert(plan, output, origin, overwrite, verify)
        console.say(str(proof))
        console.say(f"Wrote {output}. Next: skipdit {_next(source, output)}")
        result.update(weights_equal=proof.weights, bitwise_equal=proof.outputs)
        result["pushed_to"] = push(output, push_to_hub, private) if push_to_hub else None
    console.emit({**result, "output": str(output), "dry_run": dry_run})


def _one_of(flag: str, value, allowed: tuple) -> None:
    if value not in allowed:
        known = [choice for choice in allowed if choice is not None]
        raise UsageError(f"Got {flag} {value}, allowed are {', '.join(known)}.{nearest(value, known)}")


def _next(source, output) -> str:
    """What to run on what was written."""
    if source.alone:
        return f"info -m {output}"
    return f"sample -m {output}{_conditions(source)} --cache-layers 1"


def _conditions(source) -> str:
    """What ``sample`` needs besides the model."""
    pipeline = family_of(source.config["_class_name"]).pipeline
    if pipeline is None or not pipeline.by_class:
        return " --prompt TEXT"
    several = (source.config.get("num_embeds_ada_norm") or 0) > 1
    return f" {pipeline.sample_flags}" if pipeline.sample_flags and several else ""


def _describe(plan) -> dict:
    """Say what is converted, into what, and what it costs; returns the same for ``--json``."""
    from skipdit_cli.bench.flops import count_step
    from skipdit_cli.models.build import has_own_time
    from skipdit_cli.skip.parameters import count_parameters

    source, settings, model = plan.source, plan.branches.config, plan.model()
    flops, parameters = count_step(model), count_parameters(model)
    added = {
        "parameters": parameters.skip,
        "parameters_percent": 100 * parameters.skip / parameters.model,
        "macs": flops and flops.full - flops.vanilla,
        "macs_percent": flops and 100 * (flops.full / flops.vanilla - 1),
    }
    size = f"{console.amount(parameters.model)} parameters"
    size += f", {console.amount(flops.vanilla)} multiply-adds a forward" if flops else ""
    console.say(f"Source: {source.name}, {source.layout}: {settings.num_layers} blocks, {size}.")
    for note in source.notes:
        console.say(note)
    pipeline = family_of(source.config["_class_name"]).pipeline
    if source.process_why and pipeline is not None and pipeline.flow:
        kind = "flow matching (SiT)" if source.process == "sit" else "denoising diffusion (DiT)"
        console.say(f"Process: {kind}, {source.process_why}.")
        if source.process == "sit":
            console.say("Output layer: the velocity alone, its sign turned to noise - data, as diffusers has it.")
    if not has_own_time(source.config["_class_name"]):  # where there is a choice
        console.say(f"Time embedding: {settings.time_embedding} ({plan.time_embedding_why}).")
    if source.branches is not None:
        console.say("Merge: replace, the form of the official branches that the file brings.")
    for line in _new_pipeline(plan):
        console.say(line)
    cost = f"+{console.amount(added['parameters'])} parameters (+{added['parameters_percent']:.1f} %)"
    cost += f", +{console.amount(added['macs'])} multiply-adds (+{added['macs_percent']:.1f} %)" if flops else ""
    console.say(f"Skip branches: {plan.branches.num_pairs} pairs, {settings.merge} merge, {cost}.")
    if plan.second is not None:
        console.say("Second transformer: the same, its branches in skip_2/.")
    return {
        "source": source.name, "layout": source.layout, "blocks": settings.num_layers,
        "pairs": plan.branches.num_pairs, "merge": settings.merge, "time_embedding": settings.time_embedding,
        "time_embedding_why": plan.time_embedding_why, "process": source.process,
        "notes": list(source.notes), "parameters": parameters.model, "macs": flops and flops.vanilla,
        "added": added,
    }  # fmt: skip


def _new_pipeline(plan) -> list[str]:
    """What was decided for a source that is no pipeline."""
    from skipdit_cli.families.dit import MLP_RATIO
    from skipdit_cli.models.build import has_own_keys

    lines, config = [], plan.source.config
    if plan.source.alone:
        return ["Pipeline: none in the source, so a transformer folder is written, with skip/ in it."]
    if plan.source.pipeline is None:
        taken = "DDIM on 1000 linear betas 1e-4..0.02 (that of DiT and Latte)"
        if plan.source.process == "sit":
            taken = "flow matching in Euler steps of one length (that of SiT)"
        lines.append(f"Scheduler: none in the source, took {taken}.")
        channels = config["in_channels"]
        if plan.vae is not None or plan.text is not None:
            lines.append(f"Space: latent, with the decoder of {'--text-from' if plan.vae is None else '--vae'}.")
        elif channels in (1, 3):
            lines.append(f"Space: pixels ({channels} channels), no VAE.")
        else:
            lines.append(f"Space: latent ({channels} channels), no VAE in the source: samples stay latents unless "
                         "--vae gives a decoder (stabilityai/sd-vae-ft-mse for official files).")  # fmt: skip
    if has_own_keys(config) and config["mlp_ratio"] != MLP_RATIO:
        ratio = f"MLP ratio: {config['mlp_ratio']:g}, recorded in transformer/config.json"
        lines.append(f"{ratio}; plain diffusers has 4 only and refuses these weights by their shape.")
    pipeline = family_of(config["_class_name"]).pipeline
    if pipeline is not None and not pipeline.by_class and plan.source.pipeline is None:
        text = "those of --text-from" if plan.text else "none in the source; --text-from gives them"
        size = f"Size: latents {config['sample_size']} high, {config['video_length']} frames"
        lines.append(f"{size}. Text encoder and tokenizer: {text}.")
    return lines
