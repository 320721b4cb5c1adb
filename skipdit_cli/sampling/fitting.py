"""What is done to a loaded pipeline before it runs: a LoRA, tiles for its decoder, weights off the accelerator."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import torch
from diffusers.utils import logging

from skipdit_cli.errors import NotFiniteError, UsageError, first_line
from skipdit_cli.families.pipeline_parts import SECOND
from skipdit_cli.sampling.call_arguments import takes_text
from skipdit_cli.sampling.device import move, transformers_of
from skipdit_cli.sampling.diagnosis import broken_weight

OFFLOADS = ("model", "group")


def fit(
    pipe,
    device: torch.device,
    lora: str | None = None,
    cpu_offload: str | None = None,
    vae_tiling: bool = False,
    compile: bool = False,
    local_files_only: bool = False,
) -> None:
    """All of it, in the order that it has to be done in, and the pipeline on its device.

    Raises:
        UsageError: The pipeline has not what is asked for.
    """
    if vae_tiling:
        tile_vae(pipe)
    if lora is not None:
        load_lora(pipe, lora, local_files_only)
    if cpu_offload is None:
        move(pipe, device)
    else:
        offload(pipe, cpu_offload, device)
    if compile:
        compile_transformers(pipe)


def image_sibling(kind: type) -> type:
    """The class of pipelines that takes an image, on the same parts, where diffusers has one of its family (SD3, Flux,
    Qwen-Image, ...); else the class itself."""
    call = inspect.signature(kind.__call__).parameters
    if "prompt" not in call or "image" in call:
        return kind
    from skipdit_cli.quiet import quiet  # a package that imports this one

    with quiet(errors_only=True, text=True):
        from diffusers.pipelines import auto_pipeline as auto  # and with it most pipelines: seconds

    names = [name for task in auto.SUPPORTED_TASKS_MAPPINGS for name, each in task.items() if each is kind]
    return next(filter(None, map(auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get, names)), kind)


def starting_from_image(pipe):
    """The pipeline's ``image_sibling`` on its parts, or itself."""
    if image_sibling(type(pipe)) is type(pipe):
        return pipe
    from diffusers import AutoPipelineForImage2Image

    return AutoPipelineForImage2Image.from_pipe(pipe)


def check_offload(kind: str | None, device: torch.device, compile: bool = False) -> None:
    """
    Args:
        compile: Whether the transformer is to be compiled, too.
    Raises:
        UsageError: Another kind, nothing to take the weights off, or one that puts the uncompiled transformer back.
    """
    if kind is not None and kind not in OFFLOADS:
        raise UsageError(f"Got --cpu-offload {kind}, allowed are {' and '.join(OFFLOADS)}.")
    if kind is not None and device.type == "cpu":
        raise UsageError(f"Got --cpu-offload {kind}, but this run is on the CPU; leave it out, or give --device cuda.")
    if kind == "model" and compile:
        raise UsageError(
            "Got --compile with --cpu-offload model, which puts the transformer back uncompiled after each call; "
            "leave one of the two out."
        )


def offload(pipe, kind: str, device: torch.device) -> None:
    """Keep the weights in the CPU's memory, and bring to ``device`` what is run: a whole part of the pipeline
    (``model``), or one block (``group``).

    Blocks are not fetched ahead: the order that diffusers learns for that is another on a reused step.

    Raises:
        UsageError: The pipeline is not diffusers' own call.
    """
    if not takes_text(pipe):
        raise UsageError(f"Got --cpu-offload {kind}, which only a model of texts takes; leave it out.")
    if kind == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)


def tile_vae(pipe) -> None:
    """Have it decode in tiles, of one image or video at a time where it can (Allegro's has no tiles of several).

    Raises:
        UsageError: There is no VAE, or its kind decodes in one piece alone.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise UsageError("Got --vae-tiling, but the VAE of this model is none; leave it out.")
    try:
        vae.enable_tiling()
        if hasattr(vae, "use_slicing"):
            vae.enable_slicing()
    except (AttributeError, NotImplementedError) as cause:
        kind = f"an {type(vae).__name__}, which has no tiles"
        raise UsageError(f"Got --vae-tiling, but the VAE of this model is {kind}; leave it out.") from cause


def check_lora(path: str | None) -> None:
    """
    Raises:
        UsageError: A package is missing, or there is no such file.
    """
    if path is None:
        return
    if importlib.util.find_spec("peft") is None:
        raise UsageError("Got --lora, which needs one more package; run pip install 'skipdit-cli[lora]'.")
    local = Path(path).expanduser()
    if not local.exists() and (path.count("/") != 1 or local.suffix):
        raise UsageError(f"Got --lora {path}, which does not exist; give a file, a folder or a hub id (OWNER/NAME).")


def load_lora(pipe, path: str, local_files_only: bool = False, part: str = "transformer") -> None:
    """Load a LoRA into the pipeline, as its own ``load_lora_weights`` does, or without one (PixArt) its transformer.

    Args:
        path: A file of safetensors, a folder or a hub id.
        part: Which of two transformers it is for.
    Raises:
        UsageError: The pipeline takes none, it cannot be read, or holds nothing for this model.
        NotFiniteError: It holds NaN or infinity.
    """
    load = getattr(pipe, "load_lora_weights", None) or getattr(pipe.transformer, "load_lora_adapter", None)
    if load is None:
        raise UsageError(f"Got --lora {path}, but a {type(pipe).__name__} takes none; leave it out.")
    local, before = Path(path).expanduser(), _adapters(pipe)
    where = {"weight_name": local.name} if local.is_file() else {}
    second = {f"load_into_{SECOND}": True} if part == SECOND else {}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of every part that the LoRA leaves alone
    try:
        load(
            str(local.parent if where else local if local.exists() else path),
            **where, **second, local_files_only=local_files_only, use_safetensors=True,
        )  # fmt: skip
    except Exception as cause:  # of diffusers, peft, safetensors or the hub, by what is wrong with the file
        why = first_line(cause)[:200].rstrip(".:")
        raise UsageError(f"Got --lora {path}, which cannot be loaded into a {type(pipe).__name__}: {why}.") from cause
    finally:
        logging.set_verbosity(level)
    if _adapters(pipe) == before:  # diffusers only logs it
        raise UsageError(f"Got --lora {path}, which holds nothing for the transformer of a {type(pipe).__name__}.")
    if where := broken_weight(pipe):
        raise NotFiniteError(f"Got --lora {path}, with which the {where}; get it again.")


def _adapters(pipe) -> list[str]:
    return [f"{part}.{name}" for part, model in transformers_of(pipe).items() for name in
            getattr(model, "peft_config", {})]  # fmt: skip


def compile_transformers(pipe) -> None:
    """``torch.compile`` the forward of each transformer."""
    for transformer in transformers_of(pipe).values():
        transformer.forward = torch.compile(transformer.forward)
