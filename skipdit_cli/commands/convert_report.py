"""What ``skipdit convert`` reports about a conversion: lines for people, and the same facts for ``--json``."""

from __future__ import annotations

from skipdit_cli.console import amount
from skipdit_cli.conversion.conversion_plan import Conversion
from skipdit_cli.conversion.process import SIT
from skipdit_cli.conversion.source import Source
from skipdit_cli.families import family_of
from skipdit_cli.families.dit import MLP_RATIO
from skipdit_cli.models.build import has_own_keys, has_own_time
from skipdit_cli.planning.flops import count_step
from skipdit_cli.skip.parameters import count_parameters


def facts(plan: Conversion) -> dict:
    """Return what is converted, into what, and what the branches cost, as ``--json`` has it.

    Costs are null where the multiply-adds of the model cannot be counted.
    """
    source, branches, model = plan.source, plan.branches.config, plan.build_empty()
    flops, parameters = count_step(model), count_parameters(model)
    added = {
        "parameters": parameters.skip,
        "parameters_percent": 100 * parameters.skip / parameters.model,
        "macs": flops and flops.full - flops.vanilla,
        "macs_percent": flops and 100 * (flops.full / flops.vanilla - 1),
    }
    return {
        "source": source.name,
        "layout": source.layout,
        "blocks": branches.num_layers,
        "pairs": plan.branches.num_pairs,
        "merge": branches.merge,
        "time_embedding": branches.time_embedding,
        "time_embedding_why": plan.time_embedding_why,
        "process": source.process,
        "notes": list(source.notes),
        "parameters": parameters.model,
        "macs": flops and flops.vanilla,
        "added": added,
    }


def lines(plan: Conversion, facts: dict) -> list[str]:
    """Return what is decided about a conversion, one sentence a line.

    Args:
        facts: As ``facts`` returns them.
    """
    source, added = plan.source, facts["added"]
    size = f"{amount(facts['parameters'])} parameters"
    cost = f"+{amount(added['parameters'])} parameters (+{added['parameters_percent']:.1f} %)"
    if facts["macs"]:
        size += f", {amount(facts['macs'])} multiply-adds a forward"
        cost += f", +{amount(added['macs'])} multiply-adds (+{added['macs_percent']:.1f} %)"
    text = [f"Source: {source.name}, {source.layout}: {facts['blocks']} blocks, {size}.", *source.notes]
    text += _process(source)
    if not has_own_time(source.config["_class_name"]):  # where there is a choice
        text.append(f"Time embedding: {facts['time_embedding']} ({plan.time_embedding_why}).")
    if source.branches is not None:
        text.append("Merge: replace, the form of the official branches that the file brings.")
    text += _new_parts(plan)
    text.append(f"Skip branches: {facts['pairs']} pairs, {facts['merge']} merge, {cost}.")
    if plan.second is not None:
        text.append("Second transformer: the same, its branches in skip_2/.")
    return text


def _process(source: Source) -> list[str]:
    """Say which process an official image file was trained for."""
    pipeline = family_of(source.config["_class_name"]).pipeline
    if not source.process_why or pipeline is None or not pipeline.flow:
        return []
    if source.process != SIT:
        return [f"Process: denoising diffusion (DiT), {source.process_why}."]
    return [
        f"Process: flow matching (SiT), {source.process_why}.",
        "Output layer: the velocity alone, its sign turned to noise - data, as diffusers has it.",
    ]


def _new_parts(plan: Conversion) -> list[str]:
    """Say what is put around a transformer that comes without a pipeline."""
    source, config = plan.source, plan.source.config
    if source.alone:
        return ["Pipeline: none in the source, so a transformer folder is written, with skip/ in it."]
    text = [] if source.pipeline is not None else [_scheduler(source), _space(plan)]
    if has_own_keys(config) and config["mlp_ratio"] != MLP_RATIO:
        ratio = f"MLP ratio: {config['mlp_ratio']:g}, recorded in transformer/config.json"
        text.append(f"{ratio}; plain diffusers has 4 only and refuses these weights by their shape.")
    pipeline = family_of(config["_class_name"]).pipeline
    if pipeline is not None and not pipeline.by_class and source.pipeline is None:
        encoder = "those of --text-from" if plan.text else "none in the source; --text-from gives them"
        size = f"Size: latents {config['sample_size']} high, {config['video_length']} frames"
        text.append(f"{size}. Text encoder and tokenizer: {encoder}.")
    return text


def _scheduler(source: Source) -> str:
    if source.process == SIT:
        schedule = "flow matching in Euler steps of one length (that of SiT)"
    else:
        schedule = "DDIM on 1000 linear betas 1e-4..0.02 (that of DiT and Latte)"
    return f"Scheduler: none in the source, took {schedule}."


def _space(plan: Conversion) -> str:
    """Say whether the model makes pixels or latents, and what decodes those."""
    channels = plan.source.config["in_channels"]
    if plan.vae is not None or plan.text is not None:
        return f"Space: latent, with the decoder of {'--text-from' if plan.vae is None else '--vae'}."
    if channels in (1, 3):
        return f"Space: pixels ({channels} channels), no VAE."
    return (
        f"Space: latent ({channels} channels), no VAE in the source: samples stay latents unless "
        "--vae gives a decoder (stabilityai/sd-vae-ft-mse for official files)."
    )


def next_command(source: Source, output) -> str:
    """Return the command to run on what was written."""
    if source.alone:
        return f"info -m {output}"
    return f"sample -m {output}{_condition(source)} --cache-layers 1"


def _condition(source: Source) -> str:
    """Return the flags of ``sample`` that say what to sample."""
    pipeline = family_of(source.config["_class_name"]).pipeline
    if pipeline is None or not pipeline.by_class:
        return " --prompt TEXT"
    several_classes = (source.config.get("num_embeds_ada_norm") or 0) > 1
    return f" {pipeline.sample_flags}" if pipeline.sample_flags and several_classes else ""
