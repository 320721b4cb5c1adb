"""The presets of all studies: their settings are read, and each command line that they stand for is parsed."""

import re
import shlex
from pathlib import Path

import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset, preset_names
from skipdit_cli.studies import STUDIES, load_study
from skipdit_cli.studies.study import read_settings
from skipdit_cli.studies.study_run import RUN, WRITERS
from tests.support.markdown_blocks import check_command

PRESETS = [name for name in preset_names() if name.startswith("study-")]


def test_every_study_has_a_preset_of_both_sizes():
    assert {f"study-{name}-{size}" for name in STUDIES for size in ("small", "full")} == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_lines_of_a_preset_are_parsed_and_what_it_needs_is_said(preset):
    study, seeds, made = load_study(preset.split("-")[1]), (0, 1, 2), set()
    settings = read_settings(study, load_preset(preset).experiment, preset)
    for name, line in study.commands(settings, seeds).items():
        assert Path(name).name == name
        words = shlex.split(line)
        assert {word.split("/")[1] for word in words if word.startswith(f"{RUN}/")} <= {*made, name}
        output = ["--output", f"{RUN}/{name}"] if words[0] in WRITERS else []
        check_command([*words, *output])
        made.add(name)
    assert all(sentence and sentence[-1] in ".)" for sentence in (study.needs or no_needs)(settings, seeds))
    if "small" in preset and study.name != "released" and study.check is not None:
        study.check(settings)  # whatever it needs is in the package


def no_needs(settings, seeds):
    return []


@pytest.mark.parametrize(
    ("study", "changes", "problem"),
    [
        ("conditioning", {"checkpoints": 0}, "'experiment: checkpoints: 0' but expected 1 or more"),
        ("conditioning", {"draws": 0}, "draws: 0' but expected 1"),
        ("conditioning", {"held_out_samples": -1}, "held_out_samples: -1' but expected 0"),
        ("conditioning", {"samples": 1}, "Got 1 sample to score"),
        ("conditioning", {"held_out": "nowhere"}, "The study needs the data set nowhere, which is not here"),
        ("conditioning", {"held_out": "digits:dev"}, "has the splits train and test"),
        ("conditioning", {"features": "x.pt", "reference": "nowhere"}, "nowhere and the TorchScript file x.pt"),
        ("conditioning", {"preset": "absent.yaml"}, "absent.yaml; expected a path relative to the preset"),
        ("efficiency", {"timing_rounds": 0}, "timing_rounds: 0' but expected 1"),
        ("efficiency", {"batch_sizes": [8, 0]}, "but expected 1 or more"),
        ("efficiency", {"presets": []}, "no preset in 'experiment: presets'"),
        ("efficiency", {"presets": ["digits", "digits"]}, "two presets of the name digits"),
        ("efficiency", {"samples": [0, 1]}, "Got 1 sample to score"),
        ("scaling", {"sampling_steps": []}, "no number in 'experiment: sampling_steps'"),
        ("scaling", {"sampling_steps": [0]}, "but expected 1 or more"),
        ("branches", {"model": "dit-s-8-256"}, "dit-s-8-256, which has no weights"),
        ("branches", {"score_samples": 1}, "score_samples: 1' but expected 2"),
        ("branches", {"seed": -1}, "seed: -1' but expected 0"),
        ("branches", {"samplers": []}, "no samplers"),
        ("smoothness", {"jacobian_samples": 0}, "jacobian_samples: 0' but expected 1"),
    ],
)
def test_settings_that_would_fail_after_hours_of_training_are_refused_before_it(study, changes, problem):
    study, experiment = load_study(study), load_preset(f"study-{study}-small").experiment
    with pytest.raises(UsageError, match=re.escape(problem)):
        settings = read_settings(study, {**experiment, **changes}, "Preset x")
        study.commands(settings, (0,))
        study.check(settings)
