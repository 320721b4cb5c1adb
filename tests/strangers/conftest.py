"""The process in which files of strangers are read, and folders of valid ones, once for all tests here."""

import pytest

from tests.strangers.readers import READERS
from tests.strangers.sandbox import Sandbox, make_canary


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "here").mkdir()
    make_canary(folder / "modules")
    sandbox = Sandbox(folder / "here", folder / "modules", READERS)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """``worlds(reader)`` is the folder of valid files that it reads."""
    made = {}

    def world(reader):
        if reader.make not in made:
            made[reader.make] = tmp_path_factory.mktemp("world")
            reader.make(made[reader.make])
        return made[reader.make]

    return world
