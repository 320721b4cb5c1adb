"""``skipdit env``: what a bug report needs."""

import importlib.metadata

import torch

from skipdit_cli import __version__
from skipdit_cli.commands import env


def test_the_object_names_versions_devices_and_room(skipdit, monkeypatch):
    facts = skipdit("env", "--json").json
    assert facts["skipdit"] == __version__
    assert facts["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(facts["versions"]) >= {"diffusers", "accelerate", "safetensors", "huggingface_hub", "decord", "peft"}
    assert facts["devices"][0] == "cpu" and len(facts["devices"]) >= 1
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_gib"] >= facts["memory_free_gib"] > 0 and facts["disk_free_gib"] > 0
    assert facts["hf_hub_offline"] is True and facts["hf_home"]


def test_a_missing_package_is_a_dash(skipdit, monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("torch", "no-such-package"))
    lines = skipdit("env").stdout.splitlines()
    assert next(line for line in lines if line.startswith("no-such-package")).split() == ["no-such-package", "-"]


def test_a_hub_home_that_does_not_exist_yet(skipdit, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "not" / "yet"))
    assert skipdit("env", "--json").json["hf_home_free_gib"] > 0
