"""The choice of a way to sample by its speedup, and the picture of its steps."""

import pytest

from skipdit_cli.cache import CachePolicy
from skipdit_cli.planning.plan import Plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.play.choices import Choices, PlanFile
from skipdit_cli.play.step_strip import draw_steps
from skipdit_cli.sampling.schedulers import Sampler

TIMESTEPS = [980 - 20 * step for step in range(50)]
LEVELS = [-6 + step * 0.25 for step in range(50)]


def plan(name, cost, policy=None, steps=20):
    return PlanFile(Plan(Candidate(Sampler("dpm++"), steps, policy), {"cost": cost}, name=name), f"{name}.yaml")


def test_at_no_speedup_nothing_is_cached():
    choice = Choices(TIMESTEPS, plans=[plan("six", 6.0)]).at(1)
    assert (choice.name, choice.cost, choice.flags, sum(choice.full)) == ("no cache", 50, (), 50)


@pytest.mark.parametrize("speedup,count", [(1.5, 33), (2, 25), (3, 16), (4, 12), (5, 10), (7.5, 6), (10, 5)])
def test_as_many_steps_are_full_as_the_speedup_leaves(speedup, count):
    choice = Choices(TIMESTEPS, LEVELS).at(speedup)
    assert sum(choice.full) == choice.cost == count and choice.full[0] and len(choice.full) == 50


def test_a_count_of_a_level_is_named_and_typed_as_the_level():
    choices = Choices(TIMESTEPS, LEVELS)
    assert [choices.at(50 / count).flags for count in (12, 16, 24)] == [
        ("--cache", level) for level in ("fast", "balanced", "quality")
    ]
    assert choices.at(4).full == CachePolicy.level("fast", 50).plan(TIMESTEPS, LEVELS)


def test_another_count_is_typed_as_the_list_of_its_full_steps():
    flags = Choices(TIMESTEPS, LEVELS).at(10).flags
    values = dict(zip(flags[::2], flags[1::2]))
    assert values["--cache-layers"] == "0" and values["--forecast"] == "linear"
    assert len(values["--full-steps"].split(",")) == 5 and values["--full-steps"].startswith("0,")


def test_a_stochastic_scheduler_keeps_a_live_block_and_pays_for_it():
    choices = Choices(TIMESTEPS, LEVELS, has_live_block=True, share=0.1)
    choice = choices.at(5)
    assert sum(choice.full) == 5 and choice.cost == pytest.approx(5 + 45 * 0.1)
    assert choice.flags[choice.flags.index("--cache-layers") + 1] == "1:0"
    assert choices.at(10).cost == pytest.approx(1 + 49 * 0.1), "more than the budget of 5: the least there is"


def test_the_most_expensive_plan_within_the_budget_is_chosen():
    plans = [plan("six", 6.0), plan("ten", 10.4, CachePolicy(0, full_steps=(0, 4, 9)))]
    choices = Choices(TIMESTEPS, LEVELS, plans)
    assert [choices.at(speedup).name for speedup in (2, 4.5, 5, 8)] == [
        "plan ten", "plan ten", "plan six", "plan six"
    ]  # fmt: skip
    assert choices.at(2).flags == ("--plan", "ten.yaml") and sum(choices.at(2).full) == 3
    assert choices.at(10).plan is None, "a budget of 5 is less than any plan costs"


def test_a_cost_that_is_the_budget_fits_in_spite_of_rounding():
    assert Choices(TIMESTEPS, LEVELS, [plan("p", 50 / 7)]).at(7.0).name == "plan p"


def test_steps_are_drawn_one_cell_each_with_a_text_for_screen_readers():
    drawn = draw_steps((True, False, False, True))
    assert drawn.count('class="full"') == 2 and drawn.count('class="reused"') == 2
    assert 'aria-label="2 of 4 steps are full: 0, 3"' in drawn
    by_level = draw_steps((True, False, True), (-1.0, 2.0, 3.0))
    assert by_level.index('class="reused"') < by_level.index('class="full"'), "full steps are drawn on top"
    assert draw_steps((True, True), (0.0, 0.0)), "levels that do not differ"
