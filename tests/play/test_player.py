"""``skipdit play`` without its server: what the page shows is what ``skipdit sample`` makes."""

import base64
import re
import shlex
import socket

import pytest

from skipdit_cli import load_pipeline
from skipdit_cli.cache import CachePolicy
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler


def pictures(html):
    """The files of the two pictures on the page, uncached and cached."""
    return [base64.b64decode(data) for data in re.findall(r'src="data:\w+/\w+;base64,([^"]+)"', html)]


@pytest.fixture
def plans(tiny_pipeline, tmp_path):
    """A folder with two plans for the ``tiny_pipeline`` "model"."""
    folder = tmp_path / "plans"
    folder.mkdir()
    pipe = load_pipeline(tiny_pipeline("model"))
    for steps, policy in ((4, None), (8, CachePolicy((1, 0), full_steps=(0, 1, 3)))):
        candidate = Candidate(Sampler("dpm++", "lu"), steps, policy)
        measured = {"psnr_exact": 30.0, "full": {"what": "own scheduler, 50 steps", "psnr_exact": 25.0}}
        made_for = make_made_for(pipe, candidate, 1.5, steps - 0.5, measured)
        save_plan(Plan(candidate, made_for), folder / f"cost-{steps}.yaml")
    return folder


def test_the_command_makes_the_cached_picture_byte_for_byte(open_page, plans, tmp_path, skipdit):
    page = open_page(tmp_path / "model", "--steps", 20, "--plan", plans, "--guidance-scale", 1.5)
    stochastic = open_page("-m", tmp_path / "model", "--steps", 16, "--scheduler", "ddpm")
    cases = [(page, 2.0, "--plan"), (page, 10, "--full-steps"), (stochastic, 2, "--cache-layers 1:0")]
    for at, (callbacks, speedup, expected) in enumerate(cases):
        values = speedup, 3, None, 7, 1.5
        _, command = callbacks.preview(*values)
        assert expected in command, command
        shown, numbers = callbacks.sample(*values)
        words = shlex.split(command)
        assert words[:2] == ["skipdit", "sample"] and words[-2:] == ["-o", "play.png"]
        target = tmp_path / f"{at}.png"
        outcome = skipdit(*words[1:-1], target)
        assert outcome.code == 0, outcome.stderr
        uncached, cached = pictures(shown)
        assert cached == target.read_bytes() and cached != uncached
        assert "PSNR" in numbers and "dB" in numbers


def test_a_level_of_the_embedded_digits_without_a_model(open_page, tmp_path, skipdit):
    page = open_page("--steps", 20)
    assert page.player.model.name == "digits" and page.player.start.guidance_scale == 1.5
    strip, command = page.preview(2, 3, None, 0, 1.5)
    assert "--preset digits" in command and "--cache balanced" in command and "10 of 20 steps are full" in strip
    shown, numbers = page.sample(2, 3, None, 0, 1.5)
    assert skipdit(*shlex.split(command)[1:-1], tmp_path / "play.png").code == 0
    assert pictures(shown)[1] == (tmp_path / "play.png").read_bytes()
    assert "2.0 times" in numbers


def test_the_uncached_picture_is_kept_while_the_slider_moves(open_page, tiny_pipeline):
    page = open_page(tiny_pipeline(), "--steps", 20)
    steps = []
    first, _ = page.sample(2, 3, None, 0, 1.5, advance=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (40, 40)
    steps.clear()
    second, _ = page.sample(4, 3, None, 0, 1.5, advance=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (20, 20) and pictures(first)[0] == pictures(second)[0]
    steps.clear()
    same, numbers = page.sample(1, 3, None, 0, 1.5, advance=lambda done, total: steps.append((done, total)))
    assert not steps and "identical" in numbers and len(set(pictures(same))) == 1
    other, _ = page.sample(4, 3, None, 1, 1.5)
    assert pictures(other)[0] != pictures(second)[0], "another seed is another picture"


def test_a_plan_says_what_it_was_measured_at_and_warns_of_another_guidance(open_page, plans, tmp_path):
    page = open_page(tmp_path / "model", "--plan", plans / "cost-4.yaml", "--plan", plans / "cost-8.yaml")
    assert page.player.choices.at(4).name == "plan cost-8" and page.player.choices.at(8).name == "plan cost-4"
    _, numbers = page.sample(8, 1, None, 0, 3)
    assert "30.0 dB from the exact solution" in numbers and "at 25.0 dB" in numbers
    assert "guidance scale of 1.5 (the run has 3.0)" in numbers


def test_a_plan_for_another_model_is_refused_before_weights_are_read(skipdit, open_page, plans, tiny_pipeline):
    outcome = skipdit("play", tiny_pipeline("other", num_layers=4), "--plan", plans)
    assert outcome.code == 2 and "6 blocks, but the model has 4" in outcome.stderr


def test_errors_are_one_sentence_on_the_page(open_page, tiny_pipeline, monkeypatch):
    page = open_page(tiny_pipeline(), "--steps", 12)
    assert page.sample(2, 12, None, 0, 1.5)[0] is None
    for values, says in {
        (12, None, 0, 1.5): "the model has classes 0..9",
        (1, None, None, 1.5): "Got the seed None but expected",
        (1, None, -1, 1.5): "Got the seed -1 but expected",
        (1, None, 0, -2): "Got the guidance scale -2 but expected",
    }.items():
        shown, said = page.sample(2, *values)
        assert shown is None and says in said and 'role="alert"' in said
    assert page.preview(2, 1, None, None, 1.5)[1].startswith("# Got the seed")
    monkeypatch.setattr(page.player, "sample", lambda *arguments: 1 / 0)
    assert "ZeroDivisionError: division by zero." in page.sample(2, 1, None, 0, 1.5)[1]


def test_names_and_prompts_are_escaped(open_page, text_pipeline):
    page = open_page(text_pipeline, "--steps", 12, "--prompt", "<b>'cat'")
    model = page.player.model
    assert model.is_text_conditional and model.is_video and page.player.start.prompt == "<b>'cat'"
    _, command = page.preview(3, "<b>'cat' & $HOME", None, 0, 7.5)
    assert "<b>'cat' & $HOME" in shlex.split(command)
    assert "write what the picture shows" in page.sample(3, " ", None, 0, 7.5)[1]
    shown, _ = page.sample(1, "a cat", "a dog", 0, 2)
    assert "<video" in shown and "data:video/mp4" in shown


def test_a_port_in_use_is_refused_and_passed_over():
    from skipdit_cli.errors import UsageError
    from skipdit_cli.play.serve import choose_port

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="which is in use"):
            choose_port(taken.getsockname()[1])
    assert 7860 <= choose_port(None) < 7960


def test_a_label_that_is_typed_is_not_said_to_come_from_the_preset(skipdit, monkeypatch):
    monkeypatch.setattr("skipdit_cli.commands.play_sample.check_packages", lambda: None)
    outcome = skipdit("play", "--preset", "digits", "--no-open", "--class-labels", 99)
    assert outcome.code == 2 and outcome.stderr.strip().endswith("the model has classes 0..9.")
