"""The presets of all studies: their settings are read, and each command line that they stand for is parsed."""

import shlex

import pytest

from skipdit_cli.presets import load_preset, preset_names
from skipdit_cli.studies import STUDIES, load_study
from skipdit_cli.studies.study import read_settings
from skipdit_cli.studies.study_run import RUN, WRITERS
from tests.support.markdown_blocks import check_command

PRESETS = [name for name in preset_names() if name.startswith("study-")]


def test_every_study_has_a_preset_of_both_sizes():
    assert {f"study-{name}-{size}" for name in STUDIES for size in ("small", "full")} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_lines_of_a_preset_are_parsed(preset):
    study = load_study(preset.split("-")[1])
    lines = study.commands(read_settings(study, load_preset(preset).experiment, preset), (0,))
    made = set()
    for name, line in lines.items():
        words = shlex.split(line)
        assert {word.split("/")[1] for word in words if word.startswith(f"{RUN}/")} <= {*made, name}
        output = ["--output", f"{RUN}/{name}"] if words[0] in WRITERS else []
        check_command([*words, *output])
        made.add(name)
