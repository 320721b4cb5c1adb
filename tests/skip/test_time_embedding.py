"""The recorded time embedding goes where the weights go: by every door, in Python and on disk."""

import copy
import json

import pytest
import torch
from diffusers import DiTTransformer2DModel

from skipdit_cli import SkipBranches, add_skip_branches, load_pipeline, remove_skip_branches
from skipdit_cli.errors import UsageError
from skipdit_cli.models import save_pipeline
from skipdit_cli.skip.time_embedding import time_embedding_of


@torch.no_grad()
def output(transformer) -> torch.Tensor:
    config = transformer.config
    x = torch.randn((2, config.in_channels, *[config.sample_size] * 2), generator=torch.Generator().manual_seed(0)).to(
        transformer.dtype
    )
    return transformer(x, timestep=torch.tensor([10, 900]), class_labels=torch.tensor([1, 2])).sample


@pytest.fixture
def official(golden_pipeline):
    """A converted official checkpoint, whose branches are trained."""
    return golden_pipeline("dit_skip")


@pytest.fixture
def plain(official):
    """Its transformer as diffusers alone loads it."""
    return DiTTransformer2DModel.from_pretrained(official, subfolder="transformer").eval()


def loaded(folder) -> SkipBranches:
    return SkipBranches.from_pretrained(folder, subfolder="skip")


def test_branches_bring_it_and_take_it_away(official, plain):
    expected, before = output(load_pipeline(official).transformer), output(plain)
    assert time_embedding_of(plain) == "diffusers"
    add_skip_branches(plain, branches=loaded(official))
    assert torch.equal(output(plain), expected)
    add_skip_branches(plain, branches=loaded(official))  # in the place of the first
    assert torch.equal(output(copy.deepcopy(plain)), expected)
    remove_skip_branches(plain)
    assert torch.equal(output(plain), before)
    pipe = load_pipeline(official)
    remove_skip_branches(pipe.transformer)
    assert torch.equal(output(pipe.transformer), output(load_pipeline(official, branches=False).transformer))
    assert time_embedding_of(pipe.transformer) == "official"


def test_it_stays_through_saving_and_adding_others(official, plain, tmp_path):
    expected = output(load_pipeline(official).transformer)
    add_skip_branches(plain, branches=loaded(official))
    plain.save_pretrained(tmp_path / "transformer")
    assert time_embedding_of(plain) == "official" and torch.equal(output(plain), expected)
    assert loaded(tmp_path).config.time_embedding == "official"
    vanilla = load_pipeline(official, branches=False)
    assert add_skip_branches(vanilla.transformer).config.time_embedding == "official"


@pytest.mark.parametrize("how", ["without branches", "removed", "new branches", "saved by diffusers"])
def test_weights_without_their_branches_keep_it(how, official, tmp_path):
    pipe = load_pipeline(official, branches=how not in ("without branches", "new branches"))
    if how == "new branches":
        add_skip_branches(pipe.transformer)
    elif how != "without branches":
        remove_skip_branches(pipe.transformer)
    expected = output(pipe.transformer)
    (pipe.save_pretrained if how == "saved by diffusers" else lambda folder: save_pipeline(pipe, folder))(
        tmp_path / "out"
    )
    assert torch.equal(output(load_pipeline(tmp_path / "out").transformer), expected)


def test_a_transformer_taken_out_of_its_pipeline_is_converted_as_it_was(golden_pipeline, skipdit, tmp_path):
    folder = golden_pipeline("dit")
    outcome = skipdit("convert", folder / "transformer", "-o", tmp_path / "out", "--json")
    assert outcome.json["time_embedding"] == "official", outcome.stderr
    assert torch.equal(output(load_pipeline(tmp_path / "out").transformer), output(load_pipeline(folder).transformer))


def test_models_without_a_choice_are_left_alone(tiny_dit, tiny_latte, tmp_path):
    latte = tiny_latte()
    assert add_skip_branches(latte).config.time_embedding == "official" and time_embedding_of(latte) is None
    model = tiny_dit()
    assert add_skip_branches(model).config.time_embedding == "diffusers"
    model.save_pretrained(tmp_path / "transformer")
    assert "_time_embedding" not in json.loads((tmp_path / "transformer" / "config.json").read_text())


def test_a_kind_that_is_not_known_is_refused(official, plain):
    branches = loaded(official)
    branches.register_to_config(time_embedding="offical")
    before = output(plain)
    with pytest.raises(UsageError, match="'offical'"):
        add_skip_branches(plain, branches=branches)
    assert not hasattr(plain, "skip_branches") and torch.equal(output(plain), before)


def test_the_merge_of_given_branches_is_not_overruled(official, tiny_dit):
    branches = SkipBranches(16, 6)
    with pytest.raises(UsageError, match="'replace' with branches of the 'residual' merge"):
        add_skip_branches(tiny_dit(), "replace", branches=branches)


def test_one_process_of_several_writes_the_branches(tiny_dit, tmp_path):
    model = tiny_dit()
    add_skip_branches(model)
    model.save_pretrained(tmp_path / "transformer", is_main_process=False)
    assert not (tmp_path / "skip").exists()
