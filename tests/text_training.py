"""Tiny models and data to train on captions with, and what a run left."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from text_pipelines import text_pipeline

from skipdit_cli import media
from skipdit_cli.models import load_pipeline, save_pipeline
from skipdit_cli.skip import add_skip_branches

TEXTS = ["a red cat runs", "dog"]
SIDE = {"wan": 32, "hunyuan": 64}


def prepare(folder: Path, name: str) -> tuple[Path, Path]:
    """The folder of a pipeline with branches (HunyuanDiT has its own), and one of data."""
    pipe, name = text_pipeline(name), name.split("-")[0]
    side = SIDE.get(name, 16)
    if name != "hunyuan":
        add_skip_branches(pipe.transformer)
    save_pipeline(pipe, folder / "model")
    data, rng = folder / "data", np.random.default_rng(0)
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
    return folder / "model", data


def command(name: str, model: Path, data: Path, kept: Path) -> tuple:
    """``skipdit finetune`` of two samples a step, stage 1 where there are branches."""
    name = name.split("-")[0]
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


def rename(model: Path, **entries) -> None:
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, **entries}))


def files(folder: Path) -> dict[str, bytes]:
    """Those of the pipeline, by path."""
    left = ("checkpoint-", "samples", "metrics", "README", ".skipdit")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(path): (folder / path).read_bytes() for path in paths if not str(path).startswith(left)}


def differ(one: Path, other: Path) -> set[str]:
    """Top folders in which two pipelines differ; both have the same files."""
    first, second = files(one), files(other)
    assert first.keys() == second.keys()
    return {path.split("/")[0] for path in first if first[path] != second[path]}
