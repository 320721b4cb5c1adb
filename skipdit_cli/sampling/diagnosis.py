"""Why what a run made is NaN or infinite: the weight, the part, or the denoising step where that begins.

Weights are looked at when they are read. While a run goes on nothing is: each look would have the device waited for,
at every step. What it leaves is looked at, on the CPU. Only if that is not finite, the weights are once more (who
uses the Python package may have changed them), and if those are, the run is made again with a look at what goes into
and comes out of each call of a transformer, up to the first that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from skipdit_cli.errors import SkipditError, first_line
from skipdit_cli.finite import first_broken, is_finite
from skipdit_cli.sampling.device import transformers_of

DECODERS = ("vae", "audio_vae", "vocoder")
_AT_FIRST = "The latents are NaN or infinite before the first denoising step"


class _Found(Exception):
    """Ends the second run."""


def explain(pipe, broken: str, again: Callable[[Callable[[], None]], object] | None = None) -> str:
    """The sentence a run ends with.

    Args:
        broken: What is not finite, and nothing before it: ``latents``, ``pictures`` or ``sound``.
        again: Makes the run again, where latents are; what it is given is called after each denoising step.
    """
    where, said = broken_weight(pipe, decoders=broken != "latents"), ""
    if where is None and broken == "latents":
        said = _second_run(pipe, again)
        where = broken_weight(pipe, decoders=True) if said == _AT_FIRST else None  # a picture to start from
    if where is not None:
        return f"The model's {where}, so what it makes is NaN or infinite; get its weights again."
    parts = [getattr(pipe, part, None) for part in DECODERS] if broken != "latents" else []
    dtype = next(part.dtype for part in (*parts, *transformers_of(pipe).values()) if part is not None)
    return f"{said or 'The decoder makes NaN or infinity of finite latents'}: {_advice(dtype)}."


def broken_weight(pipe, decoders: bool | None = None) -> str | None:
    """``transformer holds nan in proj_out.weight[0, 1]``: the first weight of a pipeline that is no number, or None.

    Args:
        decoders: Of the decoders alone, or of all parts but them; None for all parts.
    """
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module) and decoders in (None, part in DECODERS):
            where = first_broken(module.state_dict().items())
            if where is not None:
                return f"{part} holds {where}" + (" (of its LoRA)" if ".lora_" in where else "")
    return None


def _advice(dtype: torch.dtype) -> str:
    """What to run next."""
    wider = {torch.float16: "--dtype bfloat16 or --dtype float32", torch.bfloat16: "--dtype float32"}
    if dtype in wider:
        return f"{str(dtype).removeprefix('torch.')} is too narrow for it, give {wider[dtype]}"
    return "try another --scheduler, a lower --guidance-scale, or without the cache"


def _second_run(pipe, again: Callable[[Callable[[], None]], object]) -> str:
    steps, found = [], []

    def tell(what: str) -> None:
        found.append(what)
        raise _Found

    def look(transformer, args: tuple, kwargs: dict, output) -> None:
        now = f"at denoising step {len(steps) + 1}"
        for name, tensor in _tensors([*enumerate(args), *kwargs.items()]):
            if "mask" in str(name) or "bias" in str(name) or is_finite(tensor):
                continue
            if name in (0, "hidden_states"):
                tell(f"The latents are NaN or infinite after denoising step {len(steps)}" if steps else _AT_FIRST)
            tell(f"What the transformer is told as {name} is NaN or infinite {now}")
        made = output[0] if isinstance(output, tuple) else output
        if any(not is_finite(tensor) for _, tensor in _tensors([("", made)])):
            tell(f"The transformer's output is NaN or infinite {now}")

    hooks = [
        transformer.register_forward_hook(look, with_kwargs=True) for transformer in transformers_of(pipe).values()
    ]
    try:
        again(lambda: steps.append(None))
    except _Found:
        return found[0]
    finally:
        for hook in hooks:
            hook.remove()
    return f"The latents are NaN or infinite after denoising step {len(steps)}, the last"


def _tensors(named) -> Iterator[tuple[object, torch.Tensor]]:
    for name, value in named:
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from _tensors((name, each) for each in value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors((name, each) for each in value)


@contextmanager
def in_words(pipe) -> Iterator[None]:
    """What a part of a model raises in the middle of a run, in a sentence: most often its config says other than its
    weights, or than the config of another part, which only a forward shows."""
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
        if isinstance(cause, SkipditError) or type(cause).__name__ == "OutOfMemoryError":
            raise
        raise SkipditError(
            f"The {type(pipe).__name__} failed as it ran ({type(cause).__name__}: {first_line(cause)}); its parts, "
            "their configs and their weights may not fit each other."
        ) from cause
