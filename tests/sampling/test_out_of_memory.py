"""Sampling on a device that is too small for the batch: it is halved, and the samples stay the same."""

import gc
import json

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel

from skipdit_cli.media import read_metadata

QUICK = ("--steps", 3, "--guidance-scale", 1, "--cache-layers", 1)


@pytest.fixture
def room_for(monkeypatch):
    """``room_for(n)`` lets a DiT run out of memory in the middle of a forward of more than n samples."""
    forward, sizes = DiTTransformer2DModel.forward, []

    def limit(most: int, error: Exception | None = None) -> list[int]:
        def forward_of_few(self, hidden_states, *args, **kwargs):
            sizes.append(len(hidden_states))
            result = forward(self, hidden_states, *args, **kwargs)
            if len(hidden_states) > most:
                raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return result

        monkeypatch.setattr(DiTTransformer2DModel, "forward", forward_of_few)
        return sizes

    return limit


def test_a_batch_that_does_not_fit_is_halved_and_the_files_are_those_of_the_smaller_batch(
    skipdit, tiny_pipeline, tmp_path, room_for
):
    model, one, other = tiny_pipeline(), tmp_path / "one", tmp_path / "other"
    labels = ("--class-labels", "0-9", "--num-images", 10, "--seed", 7)
    ran = skipdit("sample", "-m", model, *labels, *QUICK, "--batch-size", 3, "-o", other)
    assert ran.code == 0, ran.stderr
    sizes = room_for(3)
    npz = tmp_path / "one.npz"
    ran = skipdit("sample", "-m", model, *labels, *QUICK, "--batch-size", 6, "-o", one, "--npz", npz, "--json")
    assert ran.code == 0, ran.stderr
    assert ran.stderr.count("a batch of 6 does not fit into memory") == 1 and "batches of 3" in ran.stderr
    assert "GiB of main memory were free" in ran.stderr
    assert sizes.count(6) == 1 and set(sizes) == {6, 3, 1}
    names = [f"{i:04d}.png" for i in range(10)]
    assert [(one / name).read_bytes() for name in names] == [(other / name).read_bytes() for name in names]
    assert read_metadata(one / "0000.png")["settings"]["batch_size"] == 3
    assert np.load(npz)["arr_0"].shape[0] == 10 and ran.json["cache"]["reused_steps"] == 1


def test_it_is_halved_down_to_one_and_then_the_sentence_has_figures(skipdit, tiny_pipeline, tmp_path, room_for):
    model, sizes = tiny_pipeline(), room_for(0)
    ran = skipdit("sample", "-m", model, "--class-labels", "0-4", *QUICK, "-o", tmp_path / "a.png", "--json")
    assert ran.code == 1 and sizes == [5, 3, 2, 1]
    error = json.loads(ran.stdout)["error"]
    assert "at a batch of 1 sample (" in error and "GiB" in error and "--vae-tiling" in error
    assert not (tmp_path / "a.png").exists()


def test_any_other_error_ends_the_run(skipdit, tiny_pipeline, tmp_path, room_for):
    sizes = room_for(0, RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"))
    ran = skipdit("sample", "-m", tiny_pipeline(), "--class-labels", "0-4", *QUICK, "-o", tmp_path / "a.png")
    assert ran.code == 1 and sizes == [5] and "CUDNN_STATUS_BAD_PARAM" in ran.stderr


def test_a_failed_attempt_leaves_no_tensor(tiny_pipeline, room_for):
    """On a GPU what it held would be missing for the smaller batch."""
    from skipdit_cli import load_pipeline
    from skipdit_cli.cache import CachePolicy
    from skipdit_cli.sampling.generate import generate_batches

    def batches_of_four() -> list[torch.Tensor]:
        tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor)]
        return [each for each in tensors if each.ndim == 4 and len(each) == 4]

    pipe, alive = load_pipeline(tiny_pipeline()), []
    room_for(2)
    former = batches_of_four()  # of other tests
    known = {id(each) for each in former}

    def note(halving) -> None:
        alive.append([each.shape for each in batches_of_four() if id(each) not in known])

    made = generate_batches(pipe, [0, 1, 2, 3], policy=CachePolicy(1), num_inference_steps=2, guidance_scale=1.0,
                            decode=False, on_halved=note)  # fmt: skip
    assert [batch for batch, _ in made] == [slice(0, 2), slice(2, 4)]
    assert alive == [[]]
