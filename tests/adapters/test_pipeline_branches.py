"""``load_skip_branches`` and ``unload_skip_branches``: branches on a plain pipeline of diffusers, as a LoRA's."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from skipdit_cli import (
    CachePolicy,
    add_skip_branches,
    load_skip_branches,
    loaded_skip_branches,
    unload_skip_branches,
)
from skipdit_cli.errors import UsageError
from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
from skipdit_cli.planning.searching.candidate import Candidate
from skipdit_cli.sampling.schedulers import Sampler
from tests.support.tiny_dit_runs import run, traces, train_a_little


@pytest.fixture
def trained(tiny_pipeline):
    """``trained(name, **config)`` is a model folder with trained branches and the official time embedding."""

    def make(name="trained", **config) -> Path:
        pipe = load_pipeline(tiny_pipeline(name, **config))
        train_a_little(add_skip_branches(pipe.transformer)).register_to_config(time_embedding="official")
        save_pipeline(pipe, pipe.config._name_or_path)
        return Path(pipe.config._name_or_path)

    return make


def plain(folder):
    pipe = diffusers.DiTPipeline.from_pretrained(folder, vae=None)
    pipe.transformer.eval()
    return pipe


def put_plan(folder, name="plan"):
    pipe = load_pipeline(folder)
    candidate = Candidate(Sampler("dpm++", "lu"), 6, CachePolicy(1, full_steps=(0, 2, 4)))
    (folder / "plans").mkdir(exist_ok=True)
    save_plan(Plan(candidate, make_made_for(pipe, candidate, 2.0, 3.5, {})), folder / "plans" / f"{name}.yaml")


def test_branches_bring_their_time_embedding_and_their_plan_and_leave_nothing_behind(trained):
    folder = trained()
    put_plan(folder)
    pipe, expected = plain(folder), run(load_pipeline(folder).transformer)
    before, clean, scheduler = run(pipe.transformer), traces(pipe.transformer), pipe.scheduler
    for _ in range(2):  # a second call replaces the first
        loaded = load_skip_branches(pipe, folder)
    assert loaded is loaded_skip_branches(pipe)
    assert (loaded.merge, loaded.time_embedding, loaded.plan.name) == ("residual", "official", "plan")
    pipe.scheduler.set_timesteps(6)
    assert torch.equal(run(pipe.transformer), expected) and not torch.equal(before, expected)  # the first step is full
    assert isinstance(pipe.scheduler, diffusers.DPMSolverMultistepScheduler)
    unload_skip_branches(pipe)
    assert pipe.scheduler is scheduler and torch.equal(run(pipe.transformer), before)
    assert traces(pipe.transformer) == clean and loaded_skip_branches(pipe) is None
    unload_skip_branches(pipe)


def test_the_folder_skip_alone_goes_on_a_transformer_and_several_plans_are_named(trained, caplog):
    folder = trained()
    put_plan(folder, "one")
    put_plan(folder, "two")
    expected = run(load_pipeline(folder).transformer)
    transformer = plain(folder).transformer
    load_skip_branches(transformer, folder / "skip")
    assert torch.equal(run(transformer), expected)
    pipe = plain(folder)
    assert load_skip_branches(pipe, folder).plan is None and "one, two" in caplog.text
    assert load_skip_branches(pipe, folder, plan="two").plan.name == "two"
    with pytest.raises(UsageError, match="has one, two. Did you mean 'two'"):
        load_skip_branches(pipe, folder, plan="tow")
    assert loaded_skip_branches(pipe).plan.name == "two"


def test_branches_of_another_base_are_refused_and_of_other_weights_warned_of(trained, tiny_pipeline, caplog):
    folder = trained()
    for changes, message in (
        ({"num_layers": 4}, "num_layers 6 but the model has 4"),
        ({"num_embeds_ada_norm": 7}, "were made for another DiTTransformer2DModel"),
    ):
        pipe = plain(tiny_pipeline("other", **changes))
        clean = traces(pipe.transformer)
        with pytest.raises(UsageError, match=message):
            load_skip_branches(pipe, folder)
        assert traces(pipe.transformer) == clean
    half = plain(folder)
    half.transformer.half()
    load_skip_branches(half, folder)
    assert not caplog.text
    load_skip_branches(plain(tiny_pipeline("seeded", seed=1)), folder)
    assert "other weights than this model has" in caplog.text
    with pytest.raises(UsageError, match="holds no skip/ of skip branches"):
        load_skip_branches(half, tiny_pipeline("bare"))


def test_branches_come_from_the_hub_without_their_model(trained, monkeypatch, tmp_path):
    folder, requests = trained(), []

    def snapshot_download(hub_id, allow_patterns, **arguments):
        requests.append((hub_id, arguments.get("revision")))
        assert not any("transformer" in pattern for pattern in allow_patterns)
        shutil.copytree(folder / "skip", tmp_path / "hub" / "skip", dirs_exist_ok=True)
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    pipe = plain(folder)
    load_skip_branches(pipe, "alice/branches", revision="v1")
    assert requests == [("alice/branches", "v1")]
    assert torch.equal(run(pipe.transformer), run(load_pipeline(folder).transformer))
    with pytest.raises(UsageError, match="is no folder"):
        load_skip_branches(pipe, tmp_path / "absent")


def test_branches_record_a_few_values_of_their_base(trained):
    config = json.loads((trained() / "skip" / "config.json").read_text())
    assert len(config["_base_shapes"]) == 16 and len(config["_base_values"]) == 32


def test_two_pipelines_that_share_a_transformer_leave_no_branches_on_it(trained):
    folder = trained()
    first = plain(folder)
    second = diffusers.DiTPipeline(**first.components)
    before, clean = run(first.transformer), traces(first.transformer)
    for pipes in ((first, second), (second, first)):
        load_skip_branches(first, folder)
        load_skip_branches(second, folder)
        for pipe in pipes:
            unload_skip_branches(pipe)
        assert torch.equal(run(first.transformer), before) and traces(first.transformer) == clean


@pytest.mark.parametrize("values", ["x", {}, [{}], -1, []])
def test_a_damaged_record_of_the_base_is_no_traceback(trained, values, caplog):
    folder = trained()
    config = json.loads((folder / "skip" / "config.json").read_text())
    (folder / "skip" / "config.json").write_text(json.dumps({**config, "_base_values": values}))
    pipe = plain(folder)
    if values in (-1, []):  # numbers, but those of another base
        load_skip_branches(pipe, folder)
        assert "other weights than this model has" in caplog.text
    else:
        clean = traces(pipe.transformer)
        with pytest.raises(UsageError, match="damaged _base_values"):
            load_skip_branches(pipe, folder)
        assert traces(pipe.transformer) == clean
