"""Files of strangers that name code, of every kind that could run it: none does, and the test would notice."""

import io
import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.strangers.mutations import Code
from tests.strangers.readers import READERS
from tests.strangers.sandbox import CANARY, SCRATCH, Sandbox, make_canary, spoiling

OWN_CODE = {
    "auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), "stranger_module.Canary"),
    "custom_pipeline": "stranger_module",
    "trust_remote_code": True,
}
CANARY_CLASS = ["stranger_module", "Canary"]


def with_keys(**values):
    return lambda content: json.dumps({**json.loads(content), **values}).encode()


def pickled(content: bytes) -> bytes:
    return pickle.dumps(Code())


def saved(content: bytes) -> bytes:
    import torch

    torch.save({"model": Code(), "state": {}}, buffer := io.BytesIO())
    return buffer.getvalue()


def arrays(*names: str):
    def make(content: bytes) -> bytes:
        np.savez(buffer := io.BytesIO(), **dict.fromkeys(names, np.array([Code()], dtype=object)))
        return buffer.getvalue()

    return make


def tagged(content: bytes) -> bytes:
    return content + b"more: !!python/object/apply:os.mkdir [stranger-canary]\n"


FILES = [
    *((name, make) for name in ("official .pt", "official video .pt", "checkpoint optimizer", "index of shards",
                                "shards of a checkpoint") for make in (pickled, saved)),
    ("statistics", arrays("mu", "sigma", "facts")), ("images in an array", arrays("arr_0", "arr_1")),
    ("array of an interrupted sampling", lambda content: arrays("a")(content)[38:]),
    *((name, tagged) for name in ("preset", "plan")),
    ("model card", lambda content: content.replace(b"language: en", b"tags: !!python/name:stranger_module.Canary")),
    *((name, with_keys(**OWN_CODE)) for name in (
        "transformer config", "skip config", "model index", "scheduler config", "text encoder", "tokenizer config",
        "vae config", "CLIP config", "CLIP tokenizer", "CLIP preprocessor", "facts of a data set")),
    ("model index", with_keys(_class_name=CANARY_CLASS)), ("model index", with_keys(scheduler=CANARY_CLASS)),
    ("text index", with_keys(text_encoder=CANARY_CLASS)), ("text index", with_keys(tokenizer=CANARY_CLASS)),
    ("transformer config", with_keys(_class_name="stranger_module.Canary")),
    ("text encoder", with_keys(model_type="stranger_module", **OWN_CODE)),
    ("tokenizer config", with_keys(tokenizer_class="stranger_module.Canary", **OWN_CODE)),
    ("facts of a data set", with_keys(builder_name="stranger_module", features={"a": {"_type": "Canary"}})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make"), FILES, ids=[f"{name.replace(' ', '-')}-{number}" for number, (name, _) in enumerate(FILES)]
)
def test_no_file_runs_code(name, make, sandbox, worlds):
    reader = next(reader for reader in READERS if reader.name == name)
    file = worlds(reader) / reader.file
    with spoiling(file) as spoil:
        spoil(make(file.read_bytes()))
        assert not sandbox.read(name, worlds(reader)).faults


class Careless(NamedTuple):
    """A reader that does what none may."""

    name: str
    read: object


def unpickle(folder: Path) -> None:
    pickle.loads((folder / "a").read_bytes())


def write_elsewhere(folder: Path) -> None:
    (Path.cwd().parent / SCRATCH).mkdir()
    os.rename(folder / "a", Path.cwd().parent / SCRATCH / "a")


CARELESS = {
    "unpickles": (unpickle, f"os.mkdir ('{CANARY}'"),
    "imports": (lambda folder: __import__("stranger_module"), "imported a module of a stranger"),
    "starts": (lambda folder: subprocess.run(["true"]), "started true"),
    "takes": (lambda folder: b"a" * (3 << 30), "emory"),  # a MemoryError, or so many MiB of memory
    "moves": (write_elsewhere, "os.rename"),
    "raises": (lambda folder: {}["a"], "raised builtins.KeyError"),
    "dies": (lambda folder: os.kill(os.getpid(), 9), "died by SIGKILL"),
}


def test_the_sandbox_notices_all_of_it(tmp_path):
    (tmp_path / "here").mkdir(), (tmp_path / "files").mkdir()
    make_canary(tmp_path / "modules")
    readers = [Careless(name, read) for name, (read, _) in CARELESS.items()]
    sandbox = Sandbox(tmp_path / "here", tmp_path / "modules", readers)
    try:
        for name, (_, fault) in CARELESS.items():
            (tmp_path / "files" / "a").write_bytes(pickle.dumps(Code()))
            faults = sandbox.read(name, tmp_path / "files").faults
            assert any(fault in each for each in faults), (name, faults)
    finally:
        sandbox.close()
