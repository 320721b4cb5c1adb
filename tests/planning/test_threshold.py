"""The threshold of a target speedup, from the changes in one run."""

import pytest
import torch

from skipdit_cli.cache.trigger import simulate
from skipdit_cli.errors import UsageError
from skipdit_cli.planning.threshold import choose_threshold

CHANGES = [None, *(torch.tensor([0.01 * step, 0.002 * step]) for step in range(1, 40))]


def limit_of(plan):
    """Return the speedup where a reused step costs a tenth of a full one."""
    return len(plan) / (sum(plan) + 0.1 * plan.count(False))


@pytest.mark.parametrize("speedup", [1.2, 2, 3, 4])
def test_the_smallest_threshold_that_reaches_the_speedup(speedup):
    threshold, reached = choose_threshold([CHANGES], speedup, limit_of)
    assert speedup <= reached == limit_of(simulate(CHANGES, threshold))
    assert limit_of(simulate(CHANGES, threshold * 0.999)) < speedup


def test_the_changes_of_two_transformers_are_of_one_run():
    halves = [CHANGES[:20], [None, *CHANGES[21:]]]
    threshold, reached = choose_threshold(halves, 2, limit_of)
    assert reached == limit_of([*simulate(halves[0], threshold), *simulate(halves[1], threshold)]) >= 2


@pytest.mark.parametrize("speedup", [1, 8])
def test_a_speedup_out_of_reach_is_refused(speedup):
    with pytest.raises(UsageError, match=f"--target-speedup {speedup} but expected more than 1 and at most 4"):
        choose_threshold([CHANGES], speedup, limit_of)
