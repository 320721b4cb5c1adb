"""``skipdit guide``: the user guide by topic, formatted on a terminal and as Markdown in a pipe."""

from __future__ import annotations

from typing import Annotated

import typer

from skipdit_cli import console
from skipdit_cli.commands.options import Debug, Json
from skipdit_cli.guide.topics import for_terminal, topic_path, topics

Topic = Annotated[
    str | None, typer.Argument(metavar="[TOPIC]", help="Topic to read. [default: list all topics]", show_default=False)
]


def guide(topic: Topic = None, json: Json = False, debug: Debug = False) -> None:
    """Read the user guide, by topic.

    Formatted on a terminal; in a pipe the topic is printed as Markdown.

    skipdit guide first-model
    """
    if topic is None:
        listed = topics()
        console.table(["topic", "about"], list(listed.items()))
        console.say("\nRead one with 'skipdit guide TOPIC', such as 'skipdit guide first-model'.")
        console.emit({"topics": [{"name": name, "about": about} for name, about in listed.items()]})
        return
    path = topic_path(topic)
    text = path.read_text(encoding="utf-8")
    console.markdown(text, for_terminal(text))
    console.emit({"topic": topic, "path": path, "markdown": text})
