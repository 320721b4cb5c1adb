"""The study of skip branches: exact where branches change nothing, and paired differences that are arithmetic."""

import json
import math
from dataclasses import asdict, replace

import pytest

from skipdit_cli.errors import UsageError
from skipdit_cli.presets import load_preset
from skipdit_cli.studies.branch_effect.branch_study import STUDY, commands
from skipdit_cli.studies.branch_effect.cache_grid import Cell, make_cells, parse_sampler
from skipdit_cli.studies.branch_effect.differences import (
    OWN,
    Effect,
    best_within,
    effect,
    equal_flops,
    equal_schedule,
)
from skipdit_cli.studies.compute.curves import interpolate
from skipdit_cli.studies.study import read_settings

TOY = """about: A toy, whose learning rate is so small that no weight changes.
source: tests.
experiment:
  study: branches
  model: digits
  lengths: [2]
  batch_size: 1
  learning_rates: [1.0e-30, 1.0e-30]
  samples: 1
  guidance_scale: 1
  exact_db: 10
  samplers: [ddim@4]
  layers: [1]
  intervals: [2]
  full_steps: [2, 3]
  forecasts: [reuse, "taylor2:residual"]
  levels: [fast]
  score_samples: 2
  score_samplers: [ddim@4]
  score_layers: [1]
  score_intervals: [2]
  score_full_steps: []
  score_forecasts: [reuse]
  score_levels: []
"""


def test_branches_that_learned_nothing_add_nothing_but_their_cost(skipdit, tmp_path):
    preset = tmp_path / "toy.yaml"
    preset.write_text(TOY)
    ended = skipdit("study", "branches", "--preset", preset, "--seeds", 1, "-o", tmp_path / "run", "--json")
    assert ended.code == 0, ended.stderr
    caches = ended.json["numbers"]["caches"]
    plain, residual = (caches[f"caches-{name}"] for name in ("vanilla-2-0", "residual-2-0"))
    assert caches["caches-base"] == plain and plain["branches"] == 0 < residual["branches"] < 0.08
    assert len(plain["cells"]) == 1 + 6 + 1
    for name, run in plain["cells"].items():
        joined = residual["cells"][name]
        assert {**run, "forwards": 0} == {**joined, "forwards": 0}
        assert run["forwards"] < joined["forwards"] <= run["forwards"] * (1 + residual["branches"]) + 1e-9
    assert plain["cells"]["ddim@4 uncached"]["forwards"] == 4
    effects = ended.json["numbers"]["effects"]
    assert effects["residual 2 forecast psnr"]["per_seed"] == [0.0]
    assert "make no difference beyond the spread to a cache that forecasts" in ended.json["lead"]
    assert "long: +0.00 dB" in ended.json["lead"]
    assert ended.json["lead"] in (tmp_path / "run" / "report.html").read_text().replace("&#39;", "'")
    assert set(ended.json["numbers"]["scores"]["scores-base"]) == {"ddim@4 uncached", "ddim@4 every 2 N=1 reuse"}


@pytest.mark.parametrize("size", ["small", "full"])
def test_presets_hold_the_study_and_every_arm_is_trained_alike(size):
    settings = read_settings(STUDY, load_preset(f"study-branches-{size}").experiment, size)
    lines = commands(settings, (0, 1))
    length = settings.lengths[-1]
    stages = {arm: lines[f"{arm}-{length}-1"] for arm in ("vanilla", "residual", "replace")}
    assert len({line.replace(arm, "") for arm, line in stages.items()}) == 1
    assert f"--max-train-steps {length // 2}" in stages["vanilla"] and "--seed 1" in stages["vanilla"]
    assert "--train skip" in lines[f"residual-{length}-1-stage-1"]
    assert lines["replace-1"].endswith("--merge replace --seed 1")
    names = [cell.name for cell in make_cells(**settings.grid)]
    assert len(set(names)) == len(names) and json.dumps(asdict(settings))
    about = load_preset(f"study-branches-{size}").about
    assert f"{len(names)} caches" in about


def run(forwards, psnr):
    return {"forwards": forwards, OWN: psnr}


def test_differences_are_paired_by_seed_and_counted_by_cache():
    cells = [Cell("ddim@20", "late-dense", m, 1, "reuse") for m in (5, 8)]
    without = [{cells[0].name: run(5, 20.0), cells[1].name: run(8, 30.0)}] * 2
    joined = [
        {cells[0].name: run(5.4, 21.0), cells[1].name: run(8.6, 27.0)},
        {cells[0].name: run(5.4, 22.0), cells[1].name: run(8.6, 28.0)},
    ]
    pairs = list(zip(joined, without))
    found = effect(pairs, cells, equal_schedule(OWN))
    assert found == Effect((-1.0, 0.0), 1, 2) and found.mean == -0.5 and found.sign == 0
    assert effect(pairs, cells[:1], equal_schedule(OWN)).sign == 1 and str(found) == "-0.50 ±0.71"
    flops = effect(pairs, cells, equal_flops(OWN, cells))
    share = math.log(5.4 / 5) / math.log(8 / 5)
    assert flops.caches == 1 and flops.per_seed == pytest.approx((1 - 10 * share, 2 - 10 * share))
    assert best_within(joined[0], cells, 8, OWN) == 21.0 and best_within(joined[0], cells, 5, OWN) is None
    unknown = [({**pairs[0][0], cells[0].name: run(5.4, None)}, pairs[0][1]), pairs[1]]
    assert effect(unknown, cells[:1], equal_schedule(OWN)) is None
    assert interpolate([(1, 0.0), (4, 2.0)], 2) == pytest.approx(1.0)
    assert [interpolate([(1, 0.0), (4, 2.0)], x) for x in (0.9, 1, 4, 5)] == [None, 0.0, 2.0, None]
    assert [interpolate([(2, 3.0)], x) for x in (1, 2, 3)] == [None, 3.0, None]


def test_lengths_ascend_for_the_last_is_the_longest():
    settings = read_settings(STUDY, load_preset("study-branches-small").experiment, "small")
    for lengths in ((), (1,), (1000, 100), (100, 100)):
        with pytest.raises(UsageError, match="Got lengths .*ascending"):
            commands(replace(settings, lengths=lengths), (0,))


@pytest.mark.parametrize("text", ["ddim", "ddim@", "ddim@0", "dddim@5", "dpm++:luu@5"])
def test_samplers_of_another_form_are_refused(text):
    with pytest.raises(UsageError):
        parse_sampler(text)
