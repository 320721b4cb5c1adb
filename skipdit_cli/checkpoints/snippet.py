"""The few lines of Python that a card shows: load the model and sample it once, with the cache."""

from __future__ import annotations

import json

from skipdit_cli.checkpoints.kind import Kind
from skipdit_cli.skip import SKIP


def loading_snippet(name: str, kind: Kind, num_blocks: int, transformer: str) -> str:
    """Python source, one line each. It writes ``sample.png`` or ``sample.gif``, starting from ``start.png`` where the
    model wants a picture. Of a model of texts whose text encoder lies elsewhere it loads the rest, of a transformer
    alone just that.

    It samples as ``skipdit sample`` does: diffusers' ``DiTPipeline`` takes 1000 classes and a VAE for granted, its
    ``LattePipeline`` 16 frames, and videos of classes it has not.

    Args:
        name: Path or hub id to load.
        transformer: Name of the transformer's class.
    """
    if not kind.pipeline:
        # diffusers heeds no subfolder of a local folder that has weights of its own
        skip = f'{json.dumps(name)}, subfolder="{SKIP}"' if "/" in name else json.dumps(f"{name}/{SKIP}")
        lines = [
            f"from diffusers import {transformer}",
            "from skipdit_cli import SkipBranches, add_skip_branches",
            "",
            f"transformer = {transformer}.from_pretrained({json.dumps(name)}).eval()",
            f"branches = SkipBranches.from_pretrained({skip})",
            "add_skip_branches(transformer, branches=branches)",
        ]
        return "\n".join([*lines, ""])
    load, cached = f"pipe = load_pipeline({json.dumps(name)})", num_blocks > 2
    if kind.text and not kind.encodes:
        lines = ["from skipdit_cli import load_pipeline", "", f"{load}  # its text encoder is not in this folder"]
        return "\n".join([*lines, "print(pipe.transformer.num_parameters())", ""])
    condition = '"a cat on a red sofa"' if kind.text else 0 if kind.classes else None
    more = ', image=Image.open("start.png").convert("RGB")' if kind.image else ""
    more += ", policy=CachePolicy(layers=1, interval=2)" if cached else ""
    lines = [
        *["import imageio.v3 as imageio"] * kind.video,
        *["from PIL import Image"] * (kind.image or not kind.video),
        f"from skipdit_cli import {'CachePolicy, ' if cached else ''}load_pipeline",
        "from skipdit_cli.pipelines.generation import generate",
        "",
        load,
        f"made = generate(pipe, [{condition}], num_inference_steps=50{more})",
        'imageio.imwrite("sample.gif", made.images[0], duration=125, loop=0)'
        if kind.video
        else 'Image.fromarray(made.images[0]).save("sample.png")',
        *["print(made.report)"] * cached,
    ]
    return "\n".join([*lines, ""])
