"""The interface is frozen: adding a flag means adding it to tests/flags.txt and to the changelog."""

from pathlib import Path

from typer.main import get_command

from skipdit_cli.app import app

FROZEN = Path(__file__).with_name("flags.txt")


def interface(command, path: str = "") -> list[str]:
    """One line per command, option and argument."""
    lines = [path] if path else []
    for parameter in command.params:
        names = [*parameter.opts, *parameter.secondary_opts]
        spelled = (
            " ".join(names) if parameter.param_type_name == "option" else (parameter.metavar or parameter.name).upper()
        )
        lines.append(f"{path} {spelled}".strip())
    for name, below in sorted(getattr(command, "commands", {}).items()):
        lines += interface(below, f"{path} {name}".strip())
    return lines


def test_the_flags_are_those_on_the_list():
    actual, frozen = interface(get_command(app)), FROZEN.read_text().splitlines()
    added, gone = set(actual) - set(frozen), set(frozen) - set(actual)
    assert not added and not gone, f"edit tests/flags.txt: added {sorted(added)}, gone {sorted(gone)}"


def test_flags_are_kebab_case():
    for line in FROZEN.read_text().splitlines():
        assert "_" not in line, line
