"""``skipdit guide``: what it prints, and that what its pages tell people to type works."""

import ast
import importlib
import re
import shlex

import pytest

from skipdit_cli.guide.topics import FOLDER, INDEX, for_terminal, topics
from tests.support.markdown_blocks import PAGES, README, blocks, check_command

BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = sorted({shlex.join(words) for block in BLOCKS for words in block.commands})
RUN_ELSEWHERE = {
    "demo",
    "demo --video",
    "calibrate --preset digits --guidance-scale 1.5 --cost 9 -o plan.yaml",
    "sample --preset digits --plan plan.yaml -o planned.png",
    "bench --preset digits --plan plan.yaml",
}
"""Commands that other tests run: ``test_demo.py`` and ``test_calibrate.py`` of ``tests/commands``."""
TRAINING = ("--max-train-steps", "1", "--train-batch-size", "2", "--lr-warmup-steps", "0", "--overwrite")
SHORT = {
    "sample": ("--steps", "14", "--overwrite"),
    "bench": ("--steps", "14", "--rounds", "1", "--warmup", "0", "--no-exact", "--batch-size", "1", "--overwrite"),
    "train": TRAINING,
    "finetune": TRAINING,
    "convert": ("--no-verify", "--overwrite"),
}
"""Flags that make a run short, added to what the page says."""


# The command


def test_it_lists_the_topics_and_prints_one_as_markdown(skipdit):
    listed = skipdit("guide")
    assert listed.code == 0 and all(f"{name} " in listed.stdout for name in topics())
    assert [topic["name"] for topic in skipdit("guide", "--json").json["topics"]] == list(topics())
    page = (FOLDER / "plans.md").read_text()
    assert skipdit("guide", "plans").stdout == page
    assert skipdit("guide", "plans", "--json").json["markdown"] == page


def test_an_unknown_topic_is_one_sentence_with_the_nearest(skipdit):
    for topic in ("plan", "../plans", "README"):
        ended = skipdit("guide", topic)
        assert ended.code == 2 and ended.stdout == "" and len(ended.stderr.splitlines()) == 1
    assert "Did you mean 'plans'?" in skipdit("guide", "plan").stderr


def test_on_a_terminal_it_is_formatted_and_links_are_commands(monkeypatch, capsys):
    from rich.console import Console

    from skipdit_cli import console

    monkeypatch.setattr(console, "screen", lambda: Console(force_terminal=True, width=60))
    command = "skipdit sample --preset digits --cache balanced --class-labels 3,8 -o digits.png"
    text = f"# Title\n\nSee [plans](plans.md#x), [it](plans.md).\n\n```sh needs weights\n{command}\n```\n"
    console.markdown(text, for_terminal(text))
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "# Title" not in printed and "See skipdit guide plans, it (skipdit guide plans)." in printed
    assert f"    # needs weights\n    {command}\n" in printed, "a command to copy is in one line"


# The pages


def test_the_index_lists_every_page():
    assert set(topics()) == {path.stem for path in FOLDER.glob("*.md")} - {INDEX.stem}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_and_lines_fit(page):
    text = page.read_text()
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}"
        titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, f"{page.name} links to {path}#{anchor}"
    wide = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    assert not [line for line in wide if len(line) > 100]
    assert text.count("```") == 2 * len(blocks(page)), "a fence that the tests do not read"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_parsed(command):
    check_command(shlex.split(command))


def test_commands_in_a_sentence_name_flags_that_exist():
    for page in PAGES:
        for words in re.findall(r"`skipdit ([a-z]+[^`\n]*)`", page.read_text()):
            check_command([word for word in words.split() if word not in ("|", "...")])


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_commands_that_need_nothing_run_in_the_order_of_the_guide(skipdit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pages = [blocks(README), *(blocks(FOLDER / f"{topic}.md") for topic in topics())]
    words = [words for page in pages for block in page if not block.needs for words in block.commands]
    commands = list(dict.fromkeys(map(shlex.join, words)))
    assert RUN_ELSEWHERE < set(commands)
    for command in commands:
        if command not in RUN_ELSEWHERE:
            words = shlex.split(command)
            ran = skipdit(*words, *SHORT.get(words[0], ()))
            assert ran.code == 0, f"skipdit {command}: {ran.stderr}"


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "python"], ids=lambda b: b.page.stem)
def test_python_runs_or_at_least_imports(block, digits_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").symlink_to(digits_model)
    if not block.needs:
        exec(compile(block.text, str(block.page), "exec"), {"__name__": "example"})
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(importlib.import_module(node.module), each.name) for each in node.names)
