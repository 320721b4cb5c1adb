"""``skipdit info``: what a model is, what its skip branches cost, and how fast the cache could make it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from skipdit_cli import console
from skipdit_cli.commands import options
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.commands.info_hardware import show_plan
from skipdit_cli.commands.known_facts import KnownFacts
from skipdit_cli.errors import UsageError
from skipdit_cli.formats import markdown_table
from skipdit_cli.planning.hardware.hardware_settings import HardwareSettings
from skipdit_cli.settings import MODEL, OUTPUT, HubSettings, setting, steps_setting

INTERVALS = (2, 3, 4, 5)
UNKNOWN = "found in a forward of the model, which 'skipdit convert' makes and info does not"
STATES = {
    "declared": "known by class name",
    "own skips": "known by class name; has skips of its own, so the cache uses those and 'convert' adds none",
    "found": "found by watching one forward (example_inputs, or the first forward)",
    "refused": "does not work",
    "not tried": "found or refused at its first forward; no tiny model of it was tried",
}
"""What ``--families`` says of how the trunk of a class is known."""


@dataclass(frozen=True)
class InfoSettings:
    """The settings of ``skipdit info``."""

    hub: HubSettings = HubSettings()
    num_inference_steps: int = steps_setting("Number of denoising steps that the ideal speedups are for.")
    conditioning: str | None = setting(
        None,
        "With the --preset of a DiT: in-context, cross-attention, adaln or adaln-zero in place of its own.",
        MODEL,
    )
    families: bool = setting(
        False, "Show every transformer class of diffusers and how its blocks are found, in place of a model.", OUTPUT
    )
    markdown: bool = setting(False, "With --families: print the table in Markdown.", OUTPUT)
    hardware: HardwareSettings = HardwareSettings()


@with_settings(InfoSettings)
def info(
    model: options.Model = None,
    preset: options.Preset = None,
    settings: InfoSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Count blocks, parameters, FLOPs and ideal speedups of a model.

    Reads configuration files alone, no weights.

    skipdit info facebook/DiT-XL-2-256

    skipdit info --preset dit-xl-2-256 --plan-hardware 8xH100 --train-batch-size 32
    """
    if settings.markdown and not settings.families:
        raise UsageError("Got --markdown without --families, whose table it is for; add --families.")
    if settings.families:
        if model is not None or preset is not None:
            raise UsageError("Got --families with a model, but it shows all classes; leave one of the two out.")
        _show_families(settings.markdown)
        return
    settings.hardware.check()
    if settings.hardware.plan_hardware is not None:
        show_plan(model, preset, settings)
        return
    steps = settings.num_inference_steps
    known = KnownFacts(model, preset, steps, settings.conditioning)
    facts, speedups = known.read() or (None, [])
    if facts is None:
        facts, speedups = _count(model, preset, settings)
        known.write([facts, speedups])
    console.table(["what", "here"], _rows(facts))
    if speedups:
        _show_speedups(speedups, steps)
    console.emit({**facts, "num_inference_steps": steps, "ideal_speedups": speedups})


def _count(model: str | None, preset: str | None, settings: InfoSettings) -> tuple[dict, list[dict]]:
    """Return the facts about a model and its ideal speedups, from its configs."""
    from skipdit_cli.models.outline import read_outline
    from skipdit_cli.planning.flops import count_step

    outline = read_outline(model, preset, True, settings.conditioning, **vars(settings.hub))
    flops = None if outline.trunk is None else count_step(outline.transformer)
    return _facts(outline, flops), _ideal_speedups(flops, settings.num_inference_steps) if flops else []


def _facts(outline, flops) -> dict:
    """Return what is known of a model, as ``--json`` has it; None for what is not known without a forward.

    Args:
        flops: The ``StepFlops`` of its transformer, or None.
    """
    from skipdit_cli.models.build import has_own_time
    from skipdit_cli.skip.parameters import count_parameters

    parameters = count_parameters(outline.transformer)
    branches = None if outline.branches is None else outline.branches.config
    blocks = None if outline.trunk is None else len(outline.trunk)
    return {
        "model": outline.name,
        "class": outline.transformer.config["_class_name"],
        "attached": outline.attached,
        "sample": "video" if "3D" in type(outline.transformer).__name__ else "image",
        "blocks": blocks,
        "pairs": None if branches is None else blocks // 2,
        "merge": branches and branches.merge,
        "time_embedding": branches and branches.time_embedding,
        "own_time": has_own_time(outline.transformer.config["_class_name"]),
        "parameters": parameters.model,
        "parameters_copied_by_diffusers": parameters.copies,
        "macs": flops and flops.vanilla - flops.copies,
        "macs_copied_by_diffusers": flops and flops.copies,
        "macs_of": flops and flops.shape,
        "skip_parameters": None if branches is None else parameters.skip,
        "skip_macs": flops and flops.full - flops.vanilla,
    }


def _ideal_speedups(flops, steps: int) -> list[dict]:
    """Return the limits of N x K, for a few N from 1 to the deepest."""
    deepest = (len(flops.units) - 1) // 2
    depths = sorted({n for n in (1, 2, 4, deepest // 2, deepest) if 1 <= n <= deepest})
    return [
        {"cache_layers": n, "cache_interval": k, "vs_skip": limit, "vs_vanilla": limit * flops.vanilla / flops.full}
        for n in depths
        for k in INTERVALS
        for limit in [flops.ideal_speedup(n, k, steps)]
    ]


def _rows(facts: dict) -> list[list[str]]:
    """Return the rows of the table of a model."""
    copies, blocks, pairs = facts["parameters_copied_by_diffusers"], facts["blocks"], facts["pairs"]
    copied = f" (diffusers holds {console.amount(copies)} more: embedders per block)" if copies else ""
    rows = [
        ["model", f"{facts['model']} ({facts['class']})"],
        ["blocks", f"{blocks}, {console.count(pairs, 'pair') if pairs else 'no pairs'}" if blocks else UNKNOWN],
        ["parameters", f"{console.amount(facts['parameters'])}{copied}"],
    ]
    if facts["macs"]:
        size = f"one {facts['sample']} of {'x'.join(map(str, facts['macs_of']))} latents"
        copied = facts.get("macs_copied_by_diffusers")  # facts kept by an earlier commit lack it
        runs = f"; diffusers runs {console.amount(copied)} more: an embedder per block" if copied else ""
        rows.append(["a forward", f"{console.amount(facts['macs'])} multiply-adds ({size}, vanilla{runs})"])
    elif blocks:
        rows.append(["a forward", "not counted: no example inputs of this class are known; 'bench' counts it"])
    if pairs:
        rows += _skip_rows(facts)
    elif blocks:
        why = "one block has no pair" if blocks < 2 else "the class has skips of its own, which the cache uses"
        rows.append(["skip branches", f"none: {why}"])
    return rows


def _skip_rows(facts: dict) -> list[list[str]]:
    skip, macs = facts["skip_parameters"], facts["skip_macs"]
    attached = "attached" if facts["attached"] else "none yet; what 'skipdit convert' would add"
    rows = [
        ["skip branches", f"{attached}; {facts['merge']} merge"],
        ["skip parameters", f"+{console.amount(skip)} (+{100 * skip / facts['parameters']:.1f} %)"],
    ]
    if not facts["own_time"]:  # where there is a choice
        rows.insert(0, ["time embedding", facts["time_embedding"]])
    if facts["macs"]:
        rows.append(["skip multiply-adds", f"+{console.amount(macs)} (+{100 * macs / facts['macs']:.1f} %)"])
    return rows


def _show_speedups(speedups: list[dict], steps: int) -> None:
    over = console.count(steps, "step")
    title = f"Ideal speedup over {over}, against vanilla / uncached Skip-DiT (multiply-adds, not time)"
    cells = {(s["cache_layers"], s["cache_interval"]): f"{s['vs_vanilla']:.2f} / {s['vs_skip']:.2f}" for s in speedups}
    depths = sorted({layers for layers, _ in cells})
    columns = ["--cache-layers N", *(f"--cache-interval {k}" for k in INTERVALS)]
    console.say("")
    console.table(columns, [[n, *(cells[n, k] for k in INTERVALS)] for n in depths], title=title)


def _show_families(markdown: bool) -> None:
    """Print every transformer class of diffusers and how its trunk is known; emit the same for ``--json``."""
    import diffusers

    from skipdit_cli.families.table import family_rows, recorded_with

    families, version = family_rows(), recorded_with()
    columns = ["class", "trunk", "blocks", "note"]
    rows = [[each.name, each.known, ", ".join(each.blocks) or "-", each.note or "-"] for each in families]
    if markdown:
        console.say(markdown_table(columns, [[f"`{row[0]}`", *row[1:]] for row in rows]))
    else:
        console.table(columns, rows)
    counts = Counter(each.known for each in families)
    console.say("")
    for known, meaning in STATES.items():
        if counts[known]:
            console.say(f"{'* ' if markdown else ''}{known} ({counts[known]}): {meaning}.")
    if diffusers.__version__ != version:
        console.warn(f"tried out with diffusers {version}, but {diffusers.__version__} is installed.")
    records = [asdict(each) for each in families]
    console.emit({"diffusers": diffusers.__version__, "recorded_with": version, "families": records})
