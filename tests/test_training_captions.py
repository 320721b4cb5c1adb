"""Training on captions: what each family's transformer is told and what its loss is, and the way through the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from text_pipelines import MADE, text_pipeline

from skipdit_cli import media
from skipdit_cli.checkpoints import load_pipeline, save_branches, save_pipeline
from skipdit_cli.skip import add_skip_branches
from skipdit_cli.training.conditioning import conditioning_of
from skipdit_cli.training.demand import TRAINED
from skipdit_cli.training.families import FAMILIES, family_of
from skipdit_cli.training.flow import loss_of
from skipdit_cli.training.objective import Objective
from skipdit_cli.training.order import draw
from skipdit_cli.training.pixels import Batch
from skipdit_cli.training.settings import Weighting

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
CPU = torch.device("cpu")
TEXTS = ["a red cat runs", "dog"]
KEPT = torch.tensor([False, False])
SIDE = {"wan": 32, "hunyuan": 64}


def latent_shape(name: str) -> tuple[int, ...]:
    return {"latte": (4, 4, 8, 8), "wan": (16, 2, 4, 4)}.get(name, (4, 8, 8))


def sampled(pipe, name: str, text: str, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the transformer answered in the first step of the pipeline's own call, and at which time."""
    seen, side = [], SIDE.get(name, 16)
    settings = {"height": side, "width": side, "num_inference_steps": 2, "output_type": "latent", "latents": noise}
    settings |= {} if name == "flux" else {"guidance_scale": 1.0}
    settings |= {"latte": {"video_length": 4}, "wan": {"num_frames": 5}}.get(name, {})
    settings |= {"use_resolution_binning": False} if name in ("pixart", "hunyuan") else {}
    if name == "flux":
        settings["latents"] = pipe._pack_latents(noise, *noise.shape)
    hook = pipe.transformer.register_forward_hook(
        lambda module, given, told, output: seen.append((given, told, output)), with_kwargs=True
    )
    with torch.no_grad():
        pipe(text, **settings)
    hook.remove()
    given, told, output = seen[0]
    time = told.get("timestep", given[1] if len(given) > 1 else None)
    if name == "flux":
        return pipe._unpack_latents(output[0], side, side, pipe.vae_scale_factor), time * 1000
    return output[0], time


@pytest.mark.parametrize("name", MADE)
def test_a_caption_in_a_batch_is_told_as_the_pipeline_tells_it_alone(name, tmp_path):
    pipe, generator = text_pipeline(name, tmp_path), torch.Generator().manual_seed(0)
    noises = [torch.randn(1, *latent_shape(name), generator=generator) for _ in TEXTS]
    alone = [sampled(pipe, name, text, noise) for text, noise in zip(TEXTS, noises)]
    times = torch.cat([time.flatten()[:1] for _, time in alone])
    started = torch.cat(noises)
    condition = conditioning_of(pipe, CPU)
    with torch.no_grad():
        both = condition.predict(pipe.transformer, started, times, TEXTS, KEPT)
        swapped = condition.predict(pipe.transformer, started, times, TEXTS[::-1], KEPT)
        dropped = condition.predict(pipe.transformer, started, times, TEXTS, torch.tensor([True, False]))
        empty = condition.predict(pipe.transformer, started, times, ["", "dog"], KEPT)
    for at, (answer, _) in enumerate(alone):
        assert torch.allclose(both[at], answer[0], atol=1e-4), (both[at] - answer[0]).abs().max()
    assert (both - swapped).abs().max() > 1e-3 and torch.equal(dropped, empty) and not torch.equal(dropped, both)


@pytest.fixture
def prepared(tmp_path):
    """``prepared("sd3")``: the folder of a pipeline with branches (HunyuanDiT has its own), and one of data."""

    def make(name: str) -> tuple[Path, Path]:
        pipe, side = text_pipeline(name, tmp_path), SIDE.get(name, 16)
        if name != "hunyuan":
            add_skip_branches(pipe.transformer)
        save_pipeline(pipe, tmp_path / "model")
        data, rng = tmp_path / "data", np.random.default_rng(0)
        data.mkdir()
        rows = []
        for at, text in enumerate((*TEXTS, "dog")):
            if name in ("latte", "wan"):
                media.save_video(rng.integers(0, 255, (6, side, side, 3), dtype=np.uint8), data / f"{at}.mp4", 8, {})
            else:
                picture = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
                Image.fromarray(picture).save(data / f"{at}.png")
            rows.append({"file_name": f"{at}.{'mp4' if name in ('latte', 'wan') else 'png'}", "text": text})
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "model", data

    return make


def command(name: str, model: Path, data: Path, kept: Path) -> tuple:
    """``skipdit finetune`` of two samples a step, stage 1 where there are branches."""
    side, stage = SIDE.get(name, 16), "all" if name == "hunyuan" else "skip"
    run = ("finetune", "-m", model, "--data", data, "--train", stage, "--train-batch-size", 2, "--cache-latents", kept)
    run += ("--height", side, "--width", side, "--learning-rate", 1e-3, "--label-dropout", 0.5, "--random-flip")
    return run + (("--num-frames", 5) if name == "wan" else ())


def losses(output: Path) -> list[tuple[float, float, float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["mse"], row["grad_norm"]) for row in rows]


def changed(before: Path, after: Path) -> set[str]:
    old, new = (load_pipeline(folder).transformer for folder in (before, after))
    return {name for name, p in old.named_parameters() if not torch.equal(p, new.get_parameter(name))}


@pytest.mark.parametrize("name", [name for name in MADE if name != "latte"])
def test_finetune_with_captions(skipdit, prepared, tmp_path, name):
    run = command(name, *prepared(name), tmp_path / "kept")
    whole = skipdit(*run, "-o", tmp_path / "whole", "--max-train-steps", 4)
    assert whole.code == 0, whole.stderr
    assert "0 of 3 texts are kept" in whole.stdout and "0 of 6 latents are kept" in whole.stdout
    begun = skipdit(*run, "-o", tmp_path / "parts", "--max-train-steps", 2)
    assert "3 of 3 texts are kept" in begun.stdout and "6 of 6 latents are kept" in begun.stdout
    run += ("--max-train-steps", 4, "--resume-from-checkpoint", "latest")
    assert skipdit(*run, "-o", tmp_path / "parts").code == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and len(losses(tmp_path / "whole")) == 4
    assert all(math.isfinite(value) for row in losses(tmp_path / "whole") for value in row)
    assert not changed(tmp_path / "whole", tmp_path / "parts")
    touched = changed(tmp_path / "model", tmp_path / "whole")
    if name == "hunyuan":
        assert {"blocks.0.attn1.to_q.weight", "blocks.5.skip_linear.weight"} <= touched
    else:
        assert touched and all(parameter.startswith("skip_branches.") for parameter in touched)


def test_stage_2_trains_everything_and_encodes_at_each_step_without_a_store(skipdit, prepared, tmp_path):
    model, data = prepared("sd3")
    run = command("sd3", model, data, tmp_path / "kept")
    assert skipdit(*run, "-o", tmp_path / "one", "--max-train-steps", 2).code == 0
    run = ("finetune", "-m", tmp_path / "one", "--train", "all", *run[run.index("--data") : run.index("--train")])
    second = skipdit(*run, "-o", tmp_path / "two", "--max-train-steps", 2, "--weighting-scheme", "mode")
    assert second.code == 0, second.stderr
    touched = changed(tmp_path / "one", tmp_path / "two")
    assert {"proj_out.weight", "skip_branches.linears.0.weight", "transformer_blocks.0.attn.to_q.weight"} <= touched
    again = skipdit(*run, "-o", tmp_path / "two", "--max-train-steps", 2, "--overwrite")
    assert again.code == 0, again.stderr
    index = json.loads((tmp_path / "two" / "model_index.json").read_text())
    assert index["text_encoder_3"] == ["transformers", "T5EncoderModel"] and (tmp_path / "two" / "tokenizer_3").is_dir()
