"""The pipeline that ``load_pipeline`` gives for models of classes, in Python; and that of diffusers on its folder."""

import re

import diffusers
import numpy as np
import pytest
import torch

from skipdit_cli import load_pipeline
from skipdit_cli.errors import UsageError
from skipdit_cli.models import save_pipeline
from skipdit_cli.sampling.generate import generate
from tests.support.pipeline_parts import tiny_vae
from tests.support.tiny_pipelines import write_pipeline


@pytest.fixture
def latent(tiny_dit, tmp_path):
    """``latent(classes)``: the folder of a latent model of so many classes."""

    def make(classes: int):
        transformer = tiny_dit(in_channels=4, out_channels=8, num_embeds_ada_norm=classes)
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        save_pipeline(diffusers.DiTPipeline(transformer, tiny_vae(), scheduler), tmp_path / f"of-{classes}")
        return tmp_path / f"of-{classes}"

    return make


def told(pipe, *arguments, **named) -> list:
    """The labels that the model is told in each call."""
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    pipe.set_progress_bar_config(disable=True)
    pipe(*arguments, num_inference_steps=2, **named)
    hook.remove()
    return seen


@pytest.mark.parametrize("classes", [1, 10, 1000, 1200])
def test_no_class_is_the_id_after_the_last(classes, latent):
    pipe, last = load_pipeline(latent(classes)), classes - 1
    assert told(pipe, [last]) == [[last, classes]] * 2
    assert told(pipe, [last, 0], guidance_scale=1.0) == [[last, 0]] * 2
    for wrong in ([classes], [-1], []):
        with pytest.raises(UsageError, match=f"0..{last}"):
            pipe(wrong)
    with pytest.raises(UsageError, match="output_type"):
        pipe([0], output_type="latents")


def test_a_model_of_a_thousand_classes_makes_what_it_makes_in_diffusers(latent):
    folder = latent(1000)
    ours, plain = load_pipeline(folder), diffusers.DiTPipeline.from_pretrained(folder)
    assert isinstance(ours, diffusers.DiTPipeline) and ours.get_label_ids([]) == []
    for pipe in (ours, plain):
        pipe.set_progress_bar_config(disable=True)
    for settings in ({}, {"guidance_scale": 1.0, "output_type": "np"}, {"output_type": "pt", "return_dict": False}):
        made = [
            pipe([3, 7], num_inference_steps=3, generator=torch.Generator().manual_seed(0), **settings)
            for pipe in (ours, plain)
        ]
        images = [one[0] if isinstance(one, tuple) else one.images for one in made]
        assert type(images[0]) is type(images[1]) and len(images[0]) == len(images[1])
        assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(*images)) or np.allclose(
            np.asarray(images[0]), np.asarray(images[1]), atol=1e-6
        )


def test_it_is_saved_under_the_name_that_diffusers_knows(latent, tmp_path):
    load_pipeline(latent(10)).save_pretrained(tmp_path / "again")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "again")) is diffusers.DiTPipeline


def test_a_model_of_pixels_and_one_without_a_decoder_need_none(tiny_dit, tmp_path):
    for name, channels in (("pixels", 1), ("latents", 4)):
        model = tiny_dit(in_channels=channels, out_channels=2 * channels)
        pipe = load_pipeline(write_pipeline(tmp_path / name, model))
        pipe.set_progress_bar_config(disable=True)
        (picture,) = pipe([3], num_inference_steps=1).images
        assert picture.size == (8, 8) and picture.mode == "RGB"


def test_names_of_classes(latent):
    pipe = load_pipeline(latent(10))
    pipe.labels = {"cat": 3, "dog": 5}
    assert pipe.get_label_ids("cat") == [3] and pipe.get_label_ids(["dog", "cat"]) == [5, 3]


@pytest.mark.parametrize("case", ["few", "many", "official", "no class"])
def test_the_card_says_what_plain_diffusers_has_to_be_told(
    case, latent, golden_pipeline, skipdit, tmp_path, monkeypatch
):
    """What the card's Python makes is what ``load_pipeline`` makes without the branches."""
    source = latent({"few": 10, "many": 1200}.get(case, 12))
    if case == "no class":
        pipe = load_pipeline(source)
        pipe.transformer.register_to_config(_null_class=False)
        save_pipeline(pipe, source)
    flags = ["--time-embedding", "official"] if case == "official" else []
    assert skipdit("convert", source, "-o", tmp_path / "out", "--no-verify", *flags).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2 and ("no null class" in card) == (case == "no class")
    assert ("downscale_freq_shift" in card) == (case == "official")
    monkeypatch.chdir(tmp_path)
    call = "num_inference_steps=3, generator=torch.Generator().manual_seed(0), "
    found = {"torch": torch}
    exec(blocks[1].replace("pipe([0], ", f"pipe([0], {call}"), found)
    ours = load_pipeline(tmp_path / "out", branches=False)
    expected = ours([0], num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.abs(np.asarray(found["image"], int) - np.asarray(expected, int)).max() <= 1


def test_a_card_says_nothing_where_there_is_nothing_to_say(latent, skipdit, tmp_path):
    assert skipdit("convert", latent(1000), "-o", tmp_path / "out", "--no-verify").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("```python") == 1 and "Plain diffusers loads this folder too" in card


def test_guidance_of_nothing_is_refused_everywhere(tiny_latte, tmp_path, skipdit):
    """Not only by ``sample``: also where a run is timed, or made in Python."""
    folder = write_pipeline(tmp_path / "free", tiny_latte(num_embeds_ada_norm=None))
    refused = skipdit("bench", "-m", folder, "--cache-layers", 1, "--guidance-scale", 3)
    assert refused.code == 2 and "no classes" in refused.stderr
    with pytest.raises(UsageError, match="no classes"):
        generate(load_pipeline(folder), [None], guidance_scale=3.0)
