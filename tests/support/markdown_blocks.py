"""The fenced blocks of Markdown files, and their ``skipdit`` lines against the real parser."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from typer.main import get_command

import skipdit_cli
from skipdit_cli.app import app
from skipdit_cli.commands.flags import check_ranges

GUIDE = Path(skipdit_cli.__file__).parent / "guide"
README = GUIDE.parent.parent / "README.md"
PAGES = [README, *sorted(GUIDE.glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what it needs beyond the package ("" for nothing), and its text."""

    page: Path
    language: str
    needs: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The command lines, without comments and joined where they go on in the next line."""
        joined = self.text.replace("\\\n", " ").replace("&&", "\n")
        return [line for each in joined.splitlines() if (line := re.sub(r"\s+#.*", "", each).strip())]

    @property
    def commands(self) -> list[list[str]]:
        """The words of each ``skipdit`` line after "skipdit"."""
        starts = ("skipdit ", "python -m skipdit_cli ", "accelerate launch")
        words = [shlex.split(line) for line in self.lines if line.startswith(starts)]
        return [each[1 + each.index("skipdit_cli") if "skipdit_cli" in each else 1 :] for each in words]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)(?: needs ([\w ]+))?\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [Block(page, language, needs, text) for language, needs, text in found]


@cache
def _app_command():
    return get_command(app)


def check_command(words: list[str]) -> None:
    """Parse the words of a command with the real parser, types and ranges included, without running it."""
    command = _app_command()
    context = command.context_class(command, info_name="skipdit")
    words = list(words)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
        context = command.context_class(command, info_name=command.name, parent=context)
    values, rest, _ = command.make_parser(context).parse_args(words)
    assert len(rest) <= 1
    converted = {
        parameter.name: parameter.process_value(context, values[parameter.name])
        for parameter in command.params
        if values.get(parameter.name) is not None and parameter.callback is None
    }
    check_ranges(command, converted)
