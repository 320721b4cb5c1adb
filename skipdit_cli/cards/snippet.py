"""The Python code that a card shows: load the model and sample it once, with the cache; or load it in diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping

from skipdit_cli.cards.kind import Kind
from skipdit_cli.families.labels import null_label
from skipdit_cli.families.registry import own_classes
from skipdit_cli.skip import SKIP

IMAGENET = 1000
"""The number of classes that diffusers' ``DiTPipeline`` assumes, and so the null label that it uses."""


def loading_snippet(name: str, kind: Kind, num_blocks: int, transformer: str) -> str:
    """Return Python source that loads a model and samples it as ``skipdit sample`` does.

    It writes ``sample.png`` or ``sample.gif``, starting from ``start.png`` where the model needs an image. A
    text-conditional model without its text encoder, and a transformer alone, are only loaded.

    Args:
        name: The path or hub id to load.
        num_blocks: The blocks of the trunk; three or more can be cached.
        transformer: The name of the transformer's class.
    """
    if not kind.pipeline:
        return _transformer_snippet(name, transformer)
    load, cached = f"pipe = load_pipeline({json.dumps(name)})", num_blocks > 2
    if kind.text and not kind.encodes:
        lines = ["from skipdit_cli import load_pipeline", "", f"{load}  # its text encoder is not in this folder"]
        return "\n".join([*lines, "print(pipe.transformer.num_parameters())", ""])
    condition = '"a cat on a red sofa"' if kind.text else 0 if kind.classes else None
    arguments = ', image=Image.open("start.png").convert("RGB")' if kind.image else ""
    arguments += ", policy=CachePolicy(layers=1, interval=2)" if cached else ""
    lines = [
        *["import imageio.v3 as imageio"] * kind.video,
        *["from PIL import Image"] * (kind.image or not kind.video),
        f"from skipdit_cli import {'CachePolicy, ' if cached else ''}generate, load_pipeline",
        "",
        load,
        f"made = generate(pipe, [{condition}], num_inference_steps=50{arguments})",
        'imageio.imwrite("sample.gif", made.images[0], duration=125, loop=0)'
        if kind.video
        else 'Image.fromarray(made.images[0]).save("sample.png")',
        *["print(made.report)"] * cached,
    ]
    return "\n".join([*lines, ""])


def _transformer_snippet(name: str, transformer: str) -> str:
    """Return Python source that loads a transformer alone, with its branches."""
    # diffusers ignores the subfolder of a local folder that has weights of its own
    skip = f'{json.dumps(name)}, subfolder="{SKIP}"' if "/" in name else json.dumps(f"{name}/{SKIP}")
    lines = [
        f"from {own_classes().get(transformer, 'diffusers')} import {transformer}",
        "from skipdit_cli import SkipBranches, add_skip_branches",
        "",
        f"transformer = {transformer}.from_pretrained({json.dumps(name)}).eval()",
        f"branches = SkipBranches.from_pretrained({skip})",
        "add_skip_branches(transformer, branches=branches)",
    ]
    return "\n".join([*lines, ""])


def plain_snippet(name: str, config: Mapping, time_embedding: str, with_vae: bool) -> str:
    """Return Python source with which plain diffusers samples a DiT correctly, without branches.

    Its ``DiTPipeline`` uses null label 1000 and a VAE, whatever the model, and its DiT has timestep frequencies of its
    own. The source is empty where these are right.

    Args:
        name: The path or hub id to load.
        config: The config of the transformer.
        time_embedding: The time embedding that the model was trained with.
        with_vae: Whether the pipeline has a VAE.
    """
    null, official = null_label(config), time_embedding == "official"
    if with_vae and null == IMAGENET and not official:
        return ""
    lines = [
        "from diffusers import DiTPipeline",
        "",
        f"pipe = DiTPipeline.from_pretrained({json.dumps(name)}{'' if with_vae else ', vae=None'})",
    ]
    if official:
        lines += [
            "for block in pipe.transformer.transformer_blocks:  # the timestep frequencies it was trained with",
            "    block.norm1.emb.time_proj.downscale_freq_shift = 0",
        ]
    if null not in (None, IMAGENET):
        lines += [
            "",
            "def use_null_label(transformer, args, kwargs):",
            f'    labels = kwargs["class_labels"]  # for guidance the second half of them is {IMAGENET}',
            f"    labels[len(labels) // 2 :] = {null}",
            "",
            "pipe.transformer.register_forward_pre_hook(use_null_label, with_kwargs=True)",
        ]
    if with_vae:
        lines.append(f"image = pipe([0], guidance_scale={1.0 if null is None else 4.0}).images[0]")
    return "\n".join([*lines, ""])
