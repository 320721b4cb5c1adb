"""Files of strangers, whatever is in them: a reader returns a value or says in one sentence why not, and does no more.

The short form draws the same few inputs each time. ``--fuzz 10000`` draws so many, other ones each time
(``--hypothesis-seed`` draws them again).
"""

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings

from tests.strangers.readers import READERS
from tests.strangers.sandbox import Sandbox, make_canary

SHORT = 260
"""Inputs of the short form."""
SHARES = sum(reader.share for reader in READERS)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "here").mkdir()
    make_canary(folder / "modules")
    sandbox = Sandbox(folder / "here", folder / "modules", READERS)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """``worlds(reader)`` is the folder of valid files that it reads."""
    made = {}

    def world(reader):
        if reader.make not in made:
            made[reader.make] = tmp_path_factory.mktemp("world")
            reader.make(made[reader.make])
        return made[reader.make]

    return world


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name.replace(" ", "-"))
def test_a_reader_returns_a_value_or_refuses_in_a_sentence(reader, sandbox, worlds, pytestconfig):
    folder = worlds(reader)
    file, count = folder / reader.file, pytestconfig.getoption("--fuzz")
    valid = file.read_bytes()
    assert sandbox.read(reader.name, folder) == (None, ())
    of_short = count is None

    @settings(
        max_examples=max(1, round((count or SHORT) * reader.share / SHARES)),
        deadline=None,
        database=None,
        derandomize=of_short,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    @given(reader.spoil(valid))
    def check(content):
        file.write_bytes(content)
        assert not sandbox.read(reader.name, folder).faults

    try:
        for content in reader.examples:
            hypothesis.example(content)(check)
        check()
    finally:
        file.write_bytes(valid)
