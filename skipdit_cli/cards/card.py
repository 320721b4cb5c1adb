"""The model card of a folder: ``README.md`` in the hub's format, from what the folder holds and how it was made."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skipdit_cli import __version__, console
from skipdit_cli.cards.card_parts import cell, is_marked, marked, marked_text, replace_marked, without_home
from skipdit_cli.cards.kind import Kind, kind_of
from skipdit_cli.cards.snippet import loading_snippet, plain_snippet
from skipdit_cli.errors import UsageError, first_line
from skipdit_cli.families.labels import null_label
from skipdit_cli.files import check_writable, replacing
from skipdit_cli.models.build import has_own_keys, has_own_time
from skipdit_cli.models.outline import Outline, read_outline
from skipdit_cli.skip.parameters import count_parameters
from skipdit_cli.skip.time_embedding import RECORD

CARD = "README.md"
BENCH, COMMANDS = "bench", "commands"
INHERITED = ("license", "license_name", "license_link", "base_model", "datasets", "language", "tags")
PAPER = "[arXiv 2411.17616](https://arxiv.org/abs/2411.17616)"


@dataclass(frozen=True)
class Origin:
    """Where a new folder comes from, found out before it is made.

    Args:
        name: What it is called: its id on the hub, or its own name.
        command: The command line that makes it, as typed.
        source: What it is made from: a hub id, or the last part of a path; empty if it begins from nothing.
        on_hub: Whether ``source`` is an id.
        front_matter: What its card takes over from that of the source.
        commands: Those that made the source.
        note: What its README.md gave and what not, in a sentence; empty where there is none but our own.
    """

    name: str
    command: str
    source: str = ""
    on_hub: bool = False
    front_matter: dict = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    note: str = ""


def find_origin(
    output: Path, hub_id: str | None, command: str, source=None, folder: Path | None = None, former: Path | None = None
) -> Origin:
    """Read what the card of ``output`` will take over from others.

    Args:
        hub_id: Where it will be pushed.
        source: What it is made from, as given: a path or hub id.
        folder: The pipeline folder of that, if it is one.
        former: A folder whose place the new one takes: what its card says goes before what the source's says.
    """
    on_hub = source is not None and not Path(source).expanduser().exists()
    shown = str(source) if on_hub else Path(source).expanduser().resolve().name if source else ""
    text = _read(folder)
    taken, note = _front_matter(folder, text)
    if on_hub:
        taken["base_model"] = shown
    commands = tuple(line for line in marked_text(text, COMMANDS).splitlines() if line.startswith("skipdit "))
    taken |= _front_matter(former, _read(former))[0]
    return Origin(hub_id or output.resolve().name, command, shown, on_hub, taken, commands, note)


def write_card(
    folder: Path, origin: Origin, facts: Mapping[str, str], training: Mapping[str, str] | None = None
) -> None:
    """Write ``folder/README.md``; the folder is whole otherwise.

    Args:
        facts: Rows of the table of the model, beside those that every model has.
        training: Rows of the table of its training, if it was trained.
    """
    from huggingface_hub import ModelCard, ModelCardData

    kind, outline = kind_of(folder), read_outline(str(folder), lone=True)
    data = ModelCardData(**_metadata(kind, origin, outline.attached, training is not None))
    card = ModelCard(f"---\n{data}\n---\n\n{_body(kind, outline, origin, facts, training)}")
    (folder / CARD).write_text(without_home(str(card)), encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Whether a file is a card that ``write_card`` wrote, and not somebody's own."""
    return path.is_file() and is_marked(path.read_text(encoding="utf-8", errors="replace"), COMMANDS)


def check_card(model: str | None) -> Path:
    """The card of the folder that a bench is of.

    Raises:
        UsageError: The model is no folder, has no card, or it cannot be read or written.
    """
    card = Path(model or "").expanduser() / CARD
    if model is None or not card.parent.is_dir():
        raise UsageError(f"Got --update-card, which needs -m/--model FOLDER, but the model is {model or 'no folder'}.")
    if not card.is_file():
        raise UsageError(f"Got --update-card, but {card} does not exist; 'skipdit convert' and 'finetune' write one.")
    try:
        card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"Got --update-card, but {card} cannot be read: {first_line(cause)}.") from cause
    check_writable(card)
    return card


def put_bench(card: Path, results: str) -> None:
    """Put a bench into a card: between the two marks of its section, or in a section at its end. All else stays."""
    text = card.read_text(encoding="utf-8")
    if is_marked(text, BENCH):
        text = replace_marked(text, BENCH, without_home(results))
    else:
        text = f"{text.rstrip()}\n\n## Speed and quality\n\n{marked(BENCH, without_home(results))}\n"
    with replacing(card) as part:
        part.write_text(text, encoding="utf-8")


def _read(folder: Path | None) -> str:
    path = (folder or Path()) / CARD
    if folder is None or not path.is_file():
        return ""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _front_matter(folder: Path | None, text: str) -> tuple[dict, str]:
    """What of a README.md's front matter is taken over, and a sentence that says so if the file is not our own."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    if not text:
        return {}, ""
    try:
        found = metadata_load(folder / CARD) or {}
    except (YAMLError, ValueError, OSError) as cause:
        why = first_line(cause)
        return {}, f"Card: the front matter of {folder / CARD} cannot be read ({why}), so nothing was taken from it."
    taken = {key: found[key] for key in INHERITED if found.get(key)}
    note = f"Card: took {', '.join(taken) or 'nothing'} from {folder / CARD}, and not its text."
    return taken, "" if is_marked(text, COMMANDS) else note


def _metadata(kind: Kind, origin: Origin, attached: bool, trained: bool) -> dict:
    """The front matter, as arguments of ``ModelCardData``."""
    taken = dict(origin.front_matter)
    former = taken.pop("tags", [])
    tags = ["diffusers", *["skip-dit"] * attached, *["diffusers-training"] * trained]
    tags += [tag for tag in (former if isinstance(former, list) else [former]) if tag not in tags]
    own = {"library_name": "diffusers", "base_model": taken.pop("base_model", None), "pipeline_tag": kind.task}
    return {**own, "tags": tags, **taken}


def _body(kind: Kind, outline: Outline, origin: Origin, facts: Mapping, training: Mapping | None) -> str:
    title, blocks = origin.name.rsplit("/", 1)[-1], len(outline.trunk)
    snippet = loading_snippet(origin.name, kind, blocks, outline.transformer.config["_class_name"])
    bench = "Not measured yet. `skipdit bench -m FOLDER --update-card` measures it and writes it here."
    measured = ["## Speed and quality", marked(BENCH, bench)] if kind.pipeline else []
    parts = [
        f"# {title}",
        _summary(outline, origin),
        _table({**_rows(outline, origin), **facts}),
        "## Loading",
        f"With the Python package `skipdit-cli`:\n\n```python\n{snippet}```",
        *_plain(kind, outline, origin),
        *measured,
        *(["## Training", _table(training)] if training else []),
        "## How it was made",
        marked(COMMANDS, "\n".join(["```", *origin.commands, origin.command, "```"])),
        _versions(),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(outline: Outline, origin: Origin) -> str:
    what = "A Diffusion Transformer"
    if outline.attached:
        what = f"A Skip-DiT ({PAPER}): a Diffusion Transformer with long skip branches, from block i to block L-1-i"
        what += ", so that on most steps the blocks between can be taken from a cache"
    source = f"[{origin.source}](https://huggingface.co/{origin.source})" if origin.on_hub else f"`{origin.source}`"
    return f"{what}. Made from {source}." if origin.source else f"{what}."


def _rows(outline: Outline, origin: Origin) -> dict[str, object]:
    branches, counted = outline.branches, count_parameters(outline.transformer)
    rows = {"class": f"`{outline.transformer.config['_class_name']}`", "blocks": len(outline.trunk)}
    native = outline.trunk.backbone.native_skips
    rows |= {"parameters": console.amount(counted.model), "skip branches": "its own" if native else "none"}
    if outline.attached:
        added = f"+{console.amount(counted.skip)} parameters, +{100 * counted.skip / counted.model:.1f} %"
        rows["skip branches"] = f"{branches.num_pairs} pairs, `{branches.config.merge}` merge ({added})"
        if not has_own_time(outline.transformer.config["_class_name"]):
            rows["time embedding"] = branches.config.time_embedding
    if origin.source:
        rows["licence"] = origin.front_matter.get("license", "not known: the source does not say it")
    return rows


def _plain(kind: Kind, outline: Outline, origin: Origin) -> list[str]:
    """What plain diffusers makes of the folder, if it can load it."""
    import diffusers

    config, vae = outline.transformer.config, outline.config.get("vae")
    if not hasattr(diffusers, kind.pipeline) or has_own_keys(config):
        return []
    said = ["Plain diffusers loads this folder too, but without the skip branches."] * outline.attached
    if kind.pipeline == "DiTPipeline":
        recorded = outline.branches.config.time_embedding if outline.branches else config.get(RECORD, "diffusers")
        snippet = plain_snippet(origin.name, config, recorded, vae not in (None, [None, None]))
        said += [f"It has to be told more than for other models:\n\n```python\n{snippet}```"] * bool(snippet)
        if null_label(config) is None:
            said.append('The model has no "no class" to guide away from: it is sampled at a guidance scale of 1.')
    return said


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(
        ["| | |", "| --- | --- |", *(f"| {cell(name)} | {cell(value)} |" for name, value in rows.items())]
    )


def _versions() -> str:
    import diffusers
    import torch

    day = datetime.datetime.now(datetime.timezone.utc).date()
    used = {"skipdit": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    used["Python"] = platform.python_version()
    return ", ".join([*(f"{name} {version}" for name, version in used.items()), f"{day}."])
