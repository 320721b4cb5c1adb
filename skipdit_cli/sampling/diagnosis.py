"""Diagnosis of failed runs: the weight, the part or the denoising step where NaN or infinity begins.

Weights are checked when they are read. Nothing is checked during a run, because each check would wait for the device
at every step; the samples are checked afterwards, on the CPU. Only if they are not finite, the weights are checked
again (a user of the Python package may have changed them). If those are finite, the run is repeated with a check of
the inputs and outputs of each call of a transformer, up to the first that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from skipdit_cli.errors import SkipditError, UsageError, first_line, is_out_of_memory
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.finite import first_broken, is_finite

DECODERS = ("vae", "audio_vae", "vocoder")
_AT_FIRST = "The latents are NaN or infinite before the first denoising step"


class _Found(Exception):
    """Ends the repeated run."""


def explain(pipe, broken: str, repeat: Callable[[Callable[[], None]], object] | None = None) -> str:
    """Return the sentence that a run with NaN or infinite samples ends with.

    Args:
        broken: The first part that is not finite: ``latents``, ``pictures`` or ``sound``.
        repeat: Repeats the run, for ``latents``; its argument is called after each denoising step.
    """
    where, finding = broken_weight(pipe, decoders=broken != "latents"), ""
    if where is None and broken == "latents" and repeat is not None:
        finding = _repeated_run(pipe, repeat)
        where = broken_weight(pipe, decoders=True) if finding == _AT_FIRST else None  # the VAE encodes --image
    if where is not None:
        return f"The model's {where}, so what it makes is NaN or infinite; get its weights again."
    parts = [getattr(pipe, part, None) for part in DECODERS] if broken != "latents" else []
    dtype = next(part.dtype for part in (*parts, *transformers_of(pipe).values()) if part is not None)
    return f"{finding or 'The decoder makes NaN or infinity of finite latents'}: {_advice(dtype)}."


def broken_weight(pipe, decoders: bool | None = None) -> str | None:
    """Return the first weight of a pipeline that is NaN or infinite, or None.

    Args:
        decoders: Check only the decoders if True, all other parts if False, and all parts if None.
    Returns:
        A phrase such as ``transformer holds nan in proj_out.weight[0, 1]``.
    """
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module) and decoders in (None, part in DECODERS):
            where = first_broken(module.state_dict().items())
            if where is not None:
                return f"{part} holds {where}" + (" (of its LoRA)" if ".lora_" in where else "")
    return None


def _advice(dtype: torch.dtype) -> str:
    """Return the settings to try next."""
    wider = {torch.float16: "--dtype bfloat16 or --dtype float32", torch.bfloat16: "--dtype float32"}
    if dtype in wider:
        return f"{str(dtype).removeprefix('torch.')} is too narrow for it, give {wider[dtype]}"
    return "try another --scheduler, a lower --guidance-scale, or without the cache"


def _repeated_run(pipe, repeat: Callable[[Callable[[], None]], object]) -> str:
    """Repeat a run with hooks on its transformers, and return what is not finite first."""
    steps: list = []
    findings: list[str] = []

    def stop(finding: str) -> None:
        findings.append(finding)
        raise _Found

    def check(transformer, args: tuple, kwargs: dict, output) -> None:
        at_step = f"at denoising step {len(steps) + 1}"
        for name, tensor in _tensors([*enumerate(args), *kwargs.items()]):
            if "mask" in str(name) or "bias" in str(name) or is_finite(tensor):
                continue
            if name in (0, "hidden_states"):
                stop(f"The latents are NaN or infinite after denoising step {len(steps)}" if steps else _AT_FIRST)
            stop(f"The transformer's input {name} is NaN or infinite {at_step}")
        first = output[0] if isinstance(output, tuple) else output
        if any(not is_finite(tensor) for _, tensor in _tensors([("", first)])):
            stop(f"The transformer's output is NaN or infinite {at_step}")

    hooks = [
        transformer.register_forward_hook(check, with_kwargs=True) for transformer in transformers_of(pipe).values()
    ]
    try:
        repeat(lambda: steps.append(None))
    except _Found:
        return findings[0]
    finally:
        for hook in hooks:
            hook.remove()
    return f"The latents are NaN or infinite after denoising step {len(steps)}, the last"


def _tensors(named) -> Iterator[tuple[object, torch.Tensor]]:
    """Yield the tensors of named values, also from within lists, tuples and dicts."""
    for name, value in named:
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from _tensors((name, each) for each in value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors((name, each) for each in value)


@contextmanager
def translated_errors(pipe) -> Iterator[None]:
    """Translate what a part of a model raises during a run to one sentence.

    Most often the config of a part does not fit its weights or another part, which only a forward shows.
    """
    try:
        yield
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        NameError,
        ArithmeticError,
        AssertionError,
    ) as cause:
        if isinstance(cause, SkipditError) or is_out_of_memory(cause):
            raise
        if "must be divisible by mesh size" in str(cause):
            raise UsageError(
                "The tokens of a sample cannot be split evenly among the processes of --context-parallel; give "
                "another --height, --width or --num-frames, or start another number of processes."
            ) from cause
        raise SkipditError(
            f"The {type(pipe).__name__} failed as it ran ({type(cause).__name__}: {first_line(cause)}); its parts, "
            "their configs and their weights may not fit each other."
        ) from cause
