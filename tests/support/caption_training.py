"""Training on captions: tiny models and data, the command that trains, and comparisons of what it wrote."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skipdit_cli import media
from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.skip import add_skip_branches
from tests.support.tiny_training_pipelines import text_pipeline

TEXTS = ["a red cat runs", "dog"]
SIDE = {"wan": 32, "hunyuan": 64}  # pixels; 16 for the others


def prepare(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a pipeline with skip branches (HunyuanDiT has native ones) and captioned data; return both folders."""
    pipe, name = text_pipeline(name), name.split("-")[0]
    side = SIDE.get(name, 16)
    if name != "hunyuan":
        add_skip_branches(pipe.transformer)
    save_pipeline(pipe, folder / "model")
    data, rng = folder / "data", np.random.default_rng(0)
    data.mkdir()
    rows = []
    for i, text in enumerate((*TEXTS, "dog")):
        if name in ("latte", "wan"):
            media.save_video(rng.integers(0, 255, (6, side, side, 3), dtype=np.uint8), data / f"{i}.mp4", 8, {})
        else:
            picture = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(picture).save(data / f"{i}.png")
        rows.append({"file_name": f"{i}.{'mp4' if name in ('latte', 'wan') else 'png'}", "text": text})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "model", data


def command(name: str, model: Path, data: Path, latents: Path) -> tuple:
    """Return the arguments of ``skipdit finetune`` with a batch of 2, in stage 1 where the model has skip branches."""
    name = name.split("-")[0]
    side, stage = SIDE.get(name, 16), "all" if name == "hunyuan" else "skip"
    run = ("finetune", "-m", model, "--data", data, "--train", stage, "--cache-latents", latents)
    run += ("--train-batch-size", 2, "--height", side, "--width", side)
    run += ("--learning-rate", 1e-3, "--label-dropout", 0.5, "--random-flip")
    return run + (("--num-frames", 5) if name == "wan" else ())


def losses(output: Path) -> list[tuple[float, float, float]]:
    """Return loss, mean squared error and gradient norm of each step of a run."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["mse"], row["grad_norm"]) for row in rows]


def changed(before: Path, after: Path) -> set[str]:
    """Return the names of the transformer's parameters that differ between two pipelines."""
    old, new = (load_pipeline(folder).transformer for folder in (before, after))
    return {name for name, p in old.named_parameters() if not torch.equal(p, new.get_parameter(name))}


def rename(model: Path, **entries) -> None:
    """Replace entries of a pipeline's ``model_index.json``."""
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **entries}))


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of a pipeline's files by relative path, without what training writes beside them."""
    excluded = ("checkpoint-", "samples", "metrics", "README", ".skipdit")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not str(path).startswith(excluded)}


def differ(one: Path, other: Path) -> set[str]:
    """Return the top folders in which two pipelines differ; both must have files of the same names."""
    first, second = files(one), files(other)
    assert first.keys() == second.keys()
    return {path.split("/")[0] for path in first if first[path] != second[path]}
