"""``skipdit sample --context-parallel``: processes that make one sample together, over gloo on the CPU."""

import json

import numpy as np
import pytest

from skipdit_cli.models import save_branches
from skipdit_cli.skip import add_skip_branches
from tests.support.processes import run_together
from tests.support.tiny_pipelines import PIPELINES, build
from tests.support.tiny_transformers import perturbed


def saved(name: str, folder, branches: bool = False):
    """A pipeline of ``PIPELINES`` in a folder, and the flags that sample it."""
    pipe = build(name)
    pipe.save_pretrained(folder)
    if branches:
        save_branches(perturbed(add_skip_branches(pipe.transformer)), folder)
    return ("sample", "-m", folder, *PIPELINES[name][1], "--steps", 6, "--prompt", "a cat", "--prompt", "a dog")


@pytest.mark.parametrize(
    ("name", "branches", "cache"),
    [
        ("wan-2.1", True, ("--cache-layers", 1)),
        ("wan-2.1", False, ("--cache-layers", "0")),
        ("flux", False, ("--cache-layers", 1, "--cache-threshold", 3)),
    ],
)
def test_two_processes_make_the_pixels_of_one(skipdit, tmp_path, name, branches, cache):
    command = (*saved(name, tmp_path / "model", branches), *cache, "--json")
    alone = skipdit(*command, "-o", tmp_path / "1", "--npz", tmp_path / "1.npz")
    assert alone.code == 0, alone.stderr
    more = ("--context-parallel", "ulysses", "-o", tmp_path / "2", "--npz", tmp_path / "2.npz")
    first, second = run_together(2, *command, *more, folder=tmp_path / "logs")
    assert (first.code, second.code) == (0, 0), (first, second)
    assert second.stdout == "" and json.loads(first.stdout)["cache"] == alone.json["cache"]
    assert 0 < alone.json["cache"]["reused_steps"]
    one, two = (np.load(tmp_path / f"{number}.npz")["arr_0"].astype(int) for number in (1, 2))
    assert one.shape == two.shape and np.abs(one - two).max() <= 1
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == sorted(
        path.name for path in (tmp_path / "1").iterdir()
    )


def test_what_cannot_be_split_is_refused_once(skipdit, tiny_pipeline, tmp_path):
    flux, out = saved("flux", tmp_path / "flux"), ("-o", tmp_path / "out")
    ran = skipdit(*flux, "--context-parallel", "ulysses", *out)
    assert ran.code == 2 and "Got --context-parallel ulysses and 1 process; start as many" in ran.stderr
    ran = skipdit(*flux, "--context-parallel", "rings", *out)
    assert ran.code == 2 and "allowed are ring and ulysses. Did you mean 'ring'?" in ran.stderr
    dit = ("sample", "-m", tiny_pipeline(), "--steps", 2, "--batch-size", 1)
    for number, command, sentence in (
        (2, (*dit, "--context-parallel", "ulysses"), "no plan to split the tokens of DiTTransformer2DModel"),
        (2, (*flux, "--context-parallel", "ring"), "ring on cpu in float32, where torch's attention lacks what it"),
        (3, (*flux, "--context-parallel", "ulysses"), "has 2 attention heads, which they cannot share evenly"),
    ):
        ended = run_together(number, *command, *out, folder=tmp_path / sentence[:9])
        assert [each.code for each in ended] == [2] * number
        assert sentence in ended[0].stderr and [each.stderr for each in ended[1:]] == [""] * (number - 1)
    assert not (tmp_path / "out").exists()
