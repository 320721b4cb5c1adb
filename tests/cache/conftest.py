"""What the tests of the cache share."""

import pytest

from skipdit_cli import add_skip_branches
from tests.support.tiny_dit_runs import train_a_little


@pytest.fixture
def model(tiny_dit):
    """A trained-looking Skip-DiT of six blocks."""
    made = tiny_dit()
    train_a_little(add_skip_branches(made))
    return made
