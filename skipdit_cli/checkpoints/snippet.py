"""The few lines of Python that a card shows: load the model and sample it once, with the cache."""

from __future__ import annotations

import json

from skipdit_cli.checkpoints.kind import Kind

STEPS, POLICY = "num_inference_steps=50", "CachePolicy(layers=1, interval=2)"


def loading_snippet(name: str, kind: Kind, num_blocks: int) -> str:
    """Python source, one line each; it writes ``sample.png`` or ``sample.gif``.

    Args:
        name: Path or hub id to load.
    """
    load, cached = f"pipe = load_pipeline({json.dumps(name)})", num_blocks > 2
    if not kind.text:
        lines = _generated(load, kind, cached)
    elif kind.whole:
        lines = _called(load, kind, cached)
    else:
        lines = ["from skipdit_cli import load_pipeline", "", f"{load}  # its text encoder is not in this folder"]
        lines += ["print(pipe.transformer.num_parameters())"]
    return "\n".join(lines) + "\n"


def _called(load: str, kind: Kind, cached: bool) -> list[str]:
    """By diffusers' own call of the pipeline."""
    names = "CachePolicy, enable_skip_cache, load_pipeline" if cached else "load_pipeline"
    cache = f"cache = enable_skip_cache(pipe.transformer, {POLICY}, pipe.scheduler)"
    made = f'pipe("a cat on a red sofa", {STEPS})'
    save = [f"image = {made}.images[0]", 'image.save("sample.png")']
    if kind.video:
        save = [f"frames = {made}.frames[0]"]
        save += ['frames[0].save("sample.gif", save_all=True, append_images=frames[1:], duration=125, loop=0)']
    lines = [f"from skipdit_cli import {names}", "", load, *[cache] * cached, *save]
    return lines + ["print(cache.report())"] * cached


def _generated(load: str, kind: Kind, cached: bool) -> list[str]:
    """By our own sampling: diffusers' ``DiTPipeline`` takes 1000 classes and a VAE for granted, and has no videos."""
    names = "CachePolicy, load_pipeline" if cached else "load_pipeline"
    package = "import imageio.v3 as imageio" if kind.video else "from PIL import Image"
    save = 'Image.fromarray(made.images[0]).save("sample.png")'
    if kind.video:
        save = 'imageio.imwrite("sample.gif", made.images[0], duration=125, loop=0)'
    given = f"[{0 if kind.classes else None}], {STEPS}" + f", policy={POLICY}" * cached
    imports = [package, f"from skipdit_cli import {names}", "from skipdit_cli.pipelines.generation import generate"]
    run = [load, f"made = generate(pipe, {given})", save]
    return [*imports, "", *run, *["print(made.report)"] * cached]
