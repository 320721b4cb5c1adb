"""Files of strangers, whatever is in them: a reader returns a value or says in one sentence why not, and does no more.

The short form draws the same few files each time. ``--fuzz 10000`` draws so many, other ones each time
(``--hypothesis-seed`` draws them again); with ``-rP`` pytest prints what became of them.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.strangers.readers import READERS
from tests.strangers.sandbox import spoiling

SHORT = 600
"""Files of the short form."""
SHARES = sum(reader.share for reader in READERS)


class Content(bytes):
    """The content of a file, which hypothesis shows shortened."""

    def __repr__(self) -> str:
        return f"{bytes(self[:500])!r}{f' and {len(self) - 500:,} more' if len(self) > 500 else ''}"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name.replace(" ", "-"))
def test_a_reader_returns_a_value_or_refuses_in_a_sentence(reader, sandbox, worlds, pytestconfig):
    folder, files = worlds(reader), pytestconfig.getoption("--fuzz")
    file, ends = folder / reader.file, Counter()
    valid = file.read_bytes()
    assert sandbox.read(reader.name, folder) == (None, ())

    @settings(
        max_examples=max(1, round((files or SHORT) * reader.share / SHARES)),
        deadline=None,
        database=None,
        derandomize=files is None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(reader.spoil(valid).map(Content))
    def check(content):
        spoil(content)
        verdict = sandbox.read(reader.name, folder)
        ends["fault" if verdict.faults else "read" if verdict.refusal is None else "refused"] += 1
        assert not verdict.faults

    try:
        with spoiling(file) as spoil:
            check()
    finally:
        print(f"{reader.name}: {sum(ends.values())} files, {ends['refused']} refused, {ends['read']} read")
