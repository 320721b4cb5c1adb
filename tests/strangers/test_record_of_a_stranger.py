"""``skipdit sample --from`` of a stranger's picture: its record names no output, and nothing to fetch or run."""

import json
import socket

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ADDRESSES = (
    "a/b", "a/b@main", "hf:a/b", "https://127.0.0.1:9/x", "http://127.0.0.1:9/x.png", "ftp://127.0.0.1/x",
    "//server/share/x", "\\\\server\\share\\x", "file:///etc/passwd", "~nobody/x", "/nowhere/x", "../../nowhere",
)  # fmt: skip
LEFT_OUT = {
    "output": "canary.png", "npz": "canary.npz", "overwrite": True, "plan": "canary.yaml", "preset_file": "a.yaml",
    "push_to_hub": "a/b", "private": True, "prompts_file": "/etc/passwd", "from_file": "canary.png", "json": True,
    "debug": True, "trust_remote_code": True, "custom_pipeline": "a/b", "auto_map": {"x": "a.b"}, "data": "a/b",
    "cache_latents": "canary", "html": "canary.html", "format": "jpg", "local_files_only": False, "token": "x",
    "_class_name": "os.system", "__class__": "os.system", "text_from": "a/b", "model_argument": "a/b",
}  # fmt: skip
"""Keys that a record may not have, beside those that change nothing but the samples."""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """``stranger(key=value)``: a picture in the folder of the run, whose record says so."""

    def connect(*arguments):
        raise AssertionError(f"a connection to {arguments}")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, connect)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, connect)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def write(**settings) -> None:
        chunk = PngInfo()
        made = {"weights": "digits", "class_labels": "3", "num_inference_steps": 1, **settings}
        chunk.add_itxt("skipdit", json.dumps({"settings": {k: v for k, v in made.items() if v is not ...}}))
        Image.new("RGB", (8, 8)).save("made.png", pnginfo=chunk)

    return write


def assert_refused(ended, here, said: str) -> None:
    assert (ended.code, ended.exception) == (2, None) and ended.stdout == "", ended.stderr
    assert ended.stderr.count("Error: ") == 1 and said in ended.stderr, ended.stderr
    assert [path.name for path in here.iterdir()] == ["made.png"]


@pytest.mark.parametrize("key", ["model", "vae", "lora", "image", "revision", "output_branch"])
def test_what_is_not_on_this_machine_has_to_be_typed(key, stranger, skipdit, tmp_path):
    for address in ADDRESSES:
        settings = (
            {"scheduler_arg": [f"output_branch={json.dumps(address)}"]} if key == "output_branch" else {key: address}
        )
        if key == "model":
            settings["weights"] = ...
        if key == "revision":
            settings |= {"model": "a/b", "weights": ...}
        stranger(**settings)
        ended = skipdit("sample", "--from", "made.png", "-o", "out.png")
        assert_refused(ended, tmp_path / "here", "not on this machine")


def test_a_record_names_no_output_and_no_file_to_read(stranger, skipdit, tmp_path):
    stranger(**LEFT_OUT)
    ended = skipdit("sample", "--from", "made.png", "-o", "out.png")
    assert ended.code == 0, ended.stderr
    left_out = ended.stderr.split("holds ")[1].split(", which --from does not take")[0]
    assert all(name in left_out for name in [*LEFT_OUT][:20]) and "and 4 more" in left_out
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["made.png", "out.png"]
    Image.open("out.png").load()


def test_files_of_this_machine_that_a_record_names_are_said(stranger, skipdit, tiny_pipeline, tmp_path):
    folder = tiny_pipeline()
    stranger(model=str(folder), weights=...)
    ended = skipdit("sample", "--from", "made.png", "-o", "out.png")
    assert ended.code == 0 and f"The record of made.png says --model {folder}; type" in ended.stdout, ended.stderr
    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    stranger(image=str(tmp_path / "private.png"))
    ended = skipdit("sample", "--from", "made.png", "-o", "other.png")
    assert f"says --image {tmp_path / 'private.png'}" in ended.stdout and ended.code == 2
    assert "says" not in skipdit("sample", "--from", "out.png", "-m", folder, "-o", "again.png").stdout


CODE = ("__import__('os').mkdir('canary')", "!!python/object/apply:os.mkdir ['canary']", "{a: &a [*a]}", "[" * 500)


@pytest.mark.parametrize("key", ["scheduler_arg", "pipeline_arg"])
def test_an_argument_of_a_record_is_plain_data(key, stranger, skipdit, tmp_path):
    for code in CODE[1:]:
        stranger(**{key: [f"output_type={code}"]})
        assert_refused(skipdit("sample", "--from", "made.png", "-o", "out.png"), tmp_path / "here", "Got --")
    for name in ("scheduler", "cache", "dtype", "device", "class_labels", "full_steps", "timesteps"):
        stranger(**{name: CODE[0]})
        ended = skipdit("sample", "--from", "made.png", "-o", "out.png")
        assert_refused(ended, tmp_path / "here", "Error: ")
