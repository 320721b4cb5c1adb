"""Preparation of a loaded pipeline before it runs: LoRA, tiled decoding, offloading, compilation."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from skipdit_cli.errors import NotFiniteError, UsageError, first_line, install_extra
from skipdit_cli.families.pipeline_parts import SECOND, transformers_of
from skipdit_cli.quiet import quiet
from skipdit_cli.sampling.device import move
from skipdit_cli.sampling.diagnosis import broken_weight
from skipdit_cli.sampling.pipelines.call_arguments import call_parameters, is_text_conditional
from skipdit_cli.trunk import Interposed, interpose, keep_wrapped, known_trunk, restore

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
    """Prepare a pipeline, and move it to its device, in the order that diffusers needs.

    Args:
        lora: See ``load_lora``.
        cpu_offload: See ``offload``.
        vae_tiling: Decode in tiles.
        compile: Compile the transformers.
        local_files_only: Take a LoRA from the local cache of the hub only.
    Raises:
        UsageError: The pipeline does not support a setting.
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
        compile_transformers([pipe])


def image_pipeline_class(pipeline_class: type) -> type:
    """Return the class of pipelines that takes an image beside the prompt, for the same parts.

    diffusers has one for SD3, Flux, Qwen-Image and others; for the rest, return ``pipeline_class`` itself.
    """
    parameters = call_parameters(pipeline_class)
    if "prompt" not in parameters or "image" in parameters:
        return pipeline_class
    with quiet(errors_only=True, text=True):
        from diffusers.pipelines import auto_pipeline as auto  # imports most pipelines, which takes seconds

    tasks: Any = auto.SUPPORTED_TASKS_MAPPINGS
    names = [name for task in tasks for name, each in task.items() if each is pipeline_class]
    return next(filter(None, map(auto.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.get, names)), pipeline_class)


def image_pipeline(pipe):
    """Return a pipeline of ``image_pipeline_class`` with the parts of ``pipe``, or ``pipe`` itself."""
    if image_pipeline_class(type(pipe)) is type(pipe):
        return pipe
    from diffusers import AutoPipelineForImage2Image

    return AutoPipelineForImage2Image.from_pipe(pipe)


def check_offload(kind: str | None, device: torch.device, compile: bool = False) -> None:
    """Refuse an offloading that this run cannot have.

    Args:
        kind: The value of ``--cpu-offload``.
        compile: Whether the run compiles the transformers, too.
    Raises:
        UsageError: The kind is unknown, the run is on the CPU, or the offloading would undo the compilation.
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
    """Keep the weights in CPU memory, and move what runs to ``device``.

    Blocks are not prefetched: diffusers learns an order of blocks for that, and a reused step has another order.

    Args:
        kind: ``model`` moves one model of the pipeline at a time, ``group`` one block.
    Raises:
        UsageError: The pipeline is not text-conditional.
    """
    if not is_text_conditional(pipe):
        raise UsageError(f"Got --cpu-offload {kind}, which only a text-conditional pipeline takes; leave it out.")
    if kind == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)


def tile_vae(pipe) -> None:
    """Make the VAE decode in tiles, and one image or video at a time (Allegro's has no tiles of several).

    Raises:
        UsageError: There is no VAE, or its class has no tiles.
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
    """Refuse a ``--lora`` that cannot be loaded.

    Raises:
        UsageError: The package ``peft`` is missing, or the file does not exist.
    """
    if path is None:
        return
    if importlib.util.find_spec("peft") is None:
        raise UsageError(f"Got --lora, which needs one more package; run {install_extra('lora')}.")
    local = Path(path).expanduser()
    if not local.exists() and (path.count("/") != 1 or local.suffix):
        raise UsageError(f"Got --lora {path}, which does not exist; give a file, a folder or a hub id (OWNER/NAME).")


def load_lora(pipe, path: str, local_files_only: bool = False, part: str = "transformer") -> None:
    """Load a LoRA by the pipeline's ``load_lora_weights``, or by its transformer's adapter loader (PixArt).

    Args:
        path: A safetensors file, a folder or a hub id.
        part: The transformer to load it into, ``transformer`` or ``transformer_2``.
    Raises:
        UsageError: The pipeline takes no LoRA, or the LoRA cannot be read or holds nothing for this model.
        NotFiniteError: A weight of the LoRA is NaN or infinite.
    """
    load = getattr(pipe, "load_lora_weights", None) or getattr(pipe.transformer, "load_lora_adapter", None)
    if load is None:
        raise UsageError(f"Got --lora {path}, but a {type(pipe).__name__} takes none; leave it out.")
    local, before = Path(path).expanduser(), _adapters(pipe)
    where = {"weight_name": local.name} if local.is_file() else {}
    second = {f"load_into_{SECOND}": True} if part == SECOND else {}
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # diffusers warns of every part without LoRA weights
    try:
        load(
            str(local.parent if where else local if local.exists() else path),
            **where, **second, local_files_only=local_files_only, use_safetensors=True,
        )  # fmt: skip
    except Exception as cause:  # diffusers, peft, safetensors and the hub raise many kinds
        why = first_line(cause)[:200].rstrip(".:")
        raise UsageError(f"Got --lora {path}, which cannot be loaded into a {type(pipe).__name__}: {why}.") from cause
    finally:
        logging.set_verbosity(level)
    if _adapters(pipe) == before:  # diffusers only logs that nothing was loaded
        raise UsageError(f"Got --lora {path}, which holds nothing for the transformer of a {type(pipe).__name__}.")
    if weight := broken_weight(pipe):
        raise NotFiniteError(f"Got --lora {path}, with which the {weight}; get it again.")


def _adapters(pipe) -> list[str]:
    return [f"{part}.{name}" for part, model in transformers_of(pipe).items() for name in
            getattr(model, "peft_config", {})]  # fmt: skip


class CompiledForward(Interposed):
    """A transformer's ``forward`` under ``torch.compile``."""

    def __init__(self, inner, backend=None):
        super().__init__(inner)
        self.compiled = torch.compile(inner, **({} if backend is None else {"backend": backend}))

    def __call__(self, *args, **kwargs):
        return self.compiled(*args, **kwargs) if self.serving else self.inner(*args, **kwargs)


RECOMPILE_LIMIT = 64
"""Graphs per function: two per transformer, depth of cache and shape of a batch."""


def compile_transformers(pipes: Sequence, backend=None) -> None:
    """Compile the forward of each transformer of some pipelines, for good; see ``compiled``."""
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for transformer in _distinct_transformers(pipes):
        _keep_wrapped(transformer, True)
        interpose(transformer, "forward", partial(CompiledForward, backend=backend), CompiledForward)


@contextmanager
def compiled(pipes: Sequence, backend=None) -> Iterator[None]:
    """Compile the forward of each transformer of some pipelines, for a while.

    There are two graphs per transformer and depth of cache: one of a full and one of a reused step.

    Args:
        backend: As for ``torch.compile``.
    """
    limit = torch._dynamo.config.recompile_limit
    compile_transformers(pipes, backend)
    try:
        yield
    finally:
        for transformer in _distinct_transformers(pipes):
            restore(transformer, "forward", CompiledForward)
            _keep_wrapped(transformer, False)
        torch._dynamo.config.recompile_limit = limit


def _distinct_transformers(pipes: Sequence) -> list[torch.nn.Module]:
    return list(dict.fromkeys(transformer for pipe in pipes for transformer in transformers_of(pipe).values()))


def _keep_wrapped(transformer, wrapped: bool) -> None:
    if known_trunk(transformer) is not None:  # a trunk still to be found has no wrappers
        keep_wrapped(transformer, wrapped)
