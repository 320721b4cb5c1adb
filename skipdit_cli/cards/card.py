"""The model card of a folder: a ``README.md`` in the hub's format, made from the folder and its history."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skipdit_cli.cards.card_parts import front_matter, is_marked, marked, marked_text, replace_marked, without_home
from skipdit_cli.cards.kind import Kind, kind_of
from skipdit_cli.cards.snippet import loading_snippet, plain_snippet
from skipdit_cli.console import amount
from skipdit_cli.errors import UsageError, first_line
from skipdit_cli.families.labels import null_label
from skipdit_cli.files import check_writable, replacing
from skipdit_cli.formats import markdown_table
from skipdit_cli.models.build import has_own_keys, has_own_time
from skipdit_cli.models.index import has_part
from skipdit_cli.models.outline import Outline, read_outline
from skipdit_cli.skip.parameters import count_parameters
from skipdit_cli.skip.time_embedding import RECORD
from skipdit_cli.version import __version__, list_versions

CARD = "README.md"
LONGEST_CARD = 1 << 22
"""Characters that are read of another card."""
BENCH, COMMANDS = "bench", "commands"
"""Names of the marked parts of a card."""
INHERITED = ("license", "license_name", "license_link", "base_model", "datasets", "language", "tags")
"""Keys of the front matter that a card takes over from the source's."""
PAPER = "[arXiv 2411.17616](https://arxiv.org/abs/2411.17616)"


@dataclass(frozen=True)
class Origin:
    """Where a new folder comes from, determined before it is made.

    Args:
        name: The name of the new model: its id on the hub, or the folder's.
        command: The command line that makes it, as typed.
        source: The model it is made from: a hub id, or the last part of a path; empty for training from scratch.
        on_hub: Whether ``source`` is a hub id.
        front_matter: What its card takes over from the source's front matter.
        commands: The command lines that made the source.
        note: One sentence about what was taken from the source's README.md, for the command to print; empty where
            there is none, or skipdit wrote it.
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
    """Read what the card of a new folder takes over from the cards of its source and its predecessor.

    Args:
        output: The new folder.
        hub_id: The repository that it will be pushed to.
        command: The command line that makes it, as typed.
        source: The model it is made from, as the user named it: a path or hub id.
        folder: The folder of that model, if it is one.
        former: The folder that the new one replaces; its card wins over the source's.
    """
    on_hub = source is not None and not Path(source).expanduser().exists()
    shown = str(source) if on_hub else Path(source).expanduser().resolve().name if source else ""
    text = _read(folder)
    front_matter, note = _front_matter(folder, text)
    if on_hub:
        front_matter["base_model"] = shown
    commands = tuple(line for line in marked_text(text, COMMANDS).splitlines() if line.startswith("skipdit "))
    front_matter |= _front_matter(former, _read(former))[0]
    return Origin(hub_id or output.resolve().name, command, shown, on_hub, front_matter, commands, note)


def write_card(
    folder: Path, origin: Origin, facts: Mapping[str, str], training: Mapping[str, str] | None = None
) -> None:
    """Write ``README.md`` into a folder that is complete otherwise.

    Args:
        facts: Rows of the model's table, beside those that every model has.
        training: Rows of the training's table; None for a model that was not trained.
    """
    from huggingface_hub import ModelCard, ModelCardData

    kind, outline = kind_of(folder), read_outline(str(folder), lone=True)
    data = ModelCardData(**_metadata(kind, origin, outline.attached, training is not None))
    card = ModelCard(f"---\n{data}\n---\n\n{_body(kind, outline, origin, facts, training)}")
    (folder / CARD).write_text(without_home(str(card)), encoding="utf-8")


def is_own_card(path: Path) -> bool:
    """Return whether ``write_card`` wrote a file, and not the user."""
    return path.is_file() and is_marked(path.read_text(encoding="utf-8", errors="replace"), COMMANDS)


def check_card(model: str | None) -> Path:
    """Return the card of a model's folder, for ``bench --update-card``.

    Raises:
        UsageError: The model is no folder, or its card is missing, or cannot be read or written.
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
    """Put the results of a bench into a card."""
    put_section(card, BENCH, "Speed and quality", results)


def put_section(card: Path, name: str, title: str, content: str) -> None:
    """Put a text into a card, between the marks of its section or, without marks, in a new section at the end."""
    text, content = card.read_text(encoding="utf-8"), without_home(content)
    if is_marked(text, name):
        text = replace_marked(text, name, content)
    else:
        text = f"{text.rstrip()}\n\n## {title}\n\n{marked(name, content)}\n"
    with replacing(card) as part:
        part.write_text(text, encoding="utf-8")


def _read(folder: Path | None) -> str:
    """Return the text of a folder's card; empty if it has none."""
    path = (folder or Path()) / CARD
    if folder is None or not path.is_file():
        return ""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(LONGEST_CARD)


def _front_matter(folder: Path | None, text: str) -> tuple[dict, str]:
    """Return what is taken over from a README.md's front matter, and a note of it if the user wrote the file."""
    if not text:
        return {}, ""
    try:
        metadata = front_matter(text, f"The front matter of {folder / CARD}")
    except UsageError as cause:
        return {}, f"Card: {str(cause).rstrip('.')}; nothing was taken from it."
    inherited = {key: metadata[key] for key in INHERITED if metadata.get(key)}
    note = f"Card: took {', '.join(inherited) or 'nothing'} from {folder / CARD}, and not its text."
    return inherited, "" if is_marked(text, COMMANDS) else note


def _metadata(kind: Kind, origin: Origin, attached: bool, trained: bool) -> dict:
    """Return the front matter, as arguments of ``ModelCardData``."""
    inherited = dict(origin.front_matter)
    former = inherited.pop("tags", [])
    tags = ["diffusers", *["skip-dit"] * attached, *["diffusers-training"] * trained]
    tags += [tag for tag in (former if isinstance(former, list) else [former]) if tag not in tags]
    new = {"library_name": "diffusers", "base_model": inherited.pop("base_model", None), "pipeline_tag": kind.task}
    return {**new, "tags": tags, **inherited}


def _body(kind: Kind, outline: Outline, origin: Origin, facts: Mapping, training: Mapping | None) -> str:
    """Return the text below the front matter."""
    title, blocks = origin.name.rsplit("/", 1)[-1], len(outline.trunk)
    snippet = loading_snippet(origin.name, kind, blocks, outline.transformer.config["_class_name"])
    bench = "Not measured yet. `skipdit bench -m FOLDER --update-card` measures it and writes it here."
    speed = ["## Speed and quality", marked(BENCH, bench)] if kind.pipeline else []
    parts = [
        f"# {title}",
        _summary(outline, origin),
        markdown_table(["", ""], {**_rows(outline, origin), **facts}.items()),
        "## Loading",
        f"With the Python package `skipdit-cli`:\n\n```python\n{snippet}```",
        *_plain_diffusers(kind, outline, origin),
        *speed,
        *(["## Training", markdown_table(["", ""], training.items())] if training else []),
        "## How it was made",
        marked(COMMANDS, "\n".join(["```", *origin.commands, origin.command, "```"])),
        _versions(),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(outline: Outline, origin: Origin) -> str:
    model = "A Diffusion Transformer"
    if outline.attached:
        model = f"A Skip-DiT ({PAPER}): a Diffusion Transformer with long skip branches, from block i to block L-1-i"
        model += ", so that on most steps the blocks between can be taken from a cache"
    source = f"[{origin.source}](https://huggingface.co/{origin.source})" if origin.on_hub else f"`{origin.source}`"
    return f"{model}. Made from {source}." if origin.source else f"{model}."


def _rows(outline: Outline, origin: Origin) -> dict[str, object]:
    """Return the rows of the model's table that every model has."""
    branches, count = outline.branches, count_parameters(outline.transformer)
    rows = {"class": f"`{outline.transformer.config['_class_name']}`", "blocks": len(outline.trunk)}
    native = outline.trunk.backbone.native_skips
    rows |= {"parameters": amount(count.model), "skip branches": "its own" if native else "none"}
    if outline.attached:
        added = f"+{amount(count.skip)} parameters, +{100 * count.skip / count.model:.1f} %"
        rows["skip branches"] = f"{branches.num_pairs} pairs, `{branches.config.merge}` merge ({added})"
        if not has_own_time(outline.transformer.config["_class_name"]):
            rows["time embedding"] = branches.config.time_embedding
    if origin.source:
        rows["licence"] = origin.front_matter.get("license", "not known: the source does not say it")
    return rows


def _plain_diffusers(kind: Kind, outline: Outline, origin: Origin) -> list[str]:
    """Return paragraphs on how plain diffusers loads the folder; none where it cannot."""
    import diffusers

    config = outline.transformer.config
    if not hasattr(diffusers, kind.pipeline) or has_own_keys(config):
        return []
    text = ["Plain diffusers loads this folder too, but without the skip branches."] * outline.attached
    if kind.pipeline == "DiTPipeline":
        recorded = outline.branches.config.time_embedding if outline.branches else config.get(RECORD, "diffusers")
        snippet = plain_snippet(origin.name, config, recorded, has_part(outline.config, "vae"))
        text += [f"It has to be told more than for other models:\n\n```python\n{snippet}```"] * bool(snippet)
        if null_label(config) is None:
            text.append("The model has no null class to guide away from: it is sampled at a guidance scale of 1.")
    return text


def _versions() -> str:
    import diffusers
    import torch

    day = datetime.datetime.now(datetime.timezone.utc).date()
    versions = {"skipdit": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}
    versions["Python"] = platform.python_version()
    return f"{list_versions(versions)}, {day}."
