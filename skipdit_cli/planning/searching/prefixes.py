"""Runs that begin alike share their beginning: the outputs of a transformer's forwards, kept from run to run."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from skipdit_cli.cache.forward_arguments import timestep_of
from skipdit_cli.families.pipeline_parts import transformers_of, unwrap_compiled
from skipdit_cli.trunk import Interposed, attached_trunk, interpose, restore

MOST_BYTES = 1 << 30
"""The most that is kept, in bytes. The forwards of the runs longest ago go first."""


class SharedPrefixes:
    """The forwards of earlier runs, which a run that began alike does not make again.

    The output of a forward depends on the noise, the sampler, and on the timestep, the latents and the kind, full or
    reused, of every forward up to it. A chain of hashes stands for all of these. The timestep alone does not tell two
    runs apart: a pipeline in bfloat16 rounds it to 8 bits before its transformer gets it.

    Args:
        pipe: Its transformers keep their outputs until ``close``.

    Attributes:
        forwards: The number of forwards that ran.
    """

    def __init__(self, pipe):
        self.transformers = list(transformers_of(pipe).values())
        self.kept: OrderedDict[bytes, tuple] = OrderedDict()
        self.bytes = self.forwards = 0
        self.chain, self.timesteps = b"", None
        for transformer in self.transformers:
            make = partial(SharedForward, transformer=unwrap_compiled(transformer), prefixes=self)
            interpose(transformer, "forward", make, SharedForward)

    def begin(self, key: str, timesteps: object) -> None:
        """Begin a run.

        Args:
            key: Says all that the run depends on besides its timesteps and which of its steps are full.
            timesteps: Says its timesteps, for models whose forward is called without one.
        """
        self.chain, self.timesteps = hashlib.blake2b(key.encode()).digest(), timesteps

    def extend(self, *values: object) -> bytes:
        """Extend the chain by a forward, and return its hash."""
        self.chain = hashlib.blake2b(self.chain + repr(values).encode()).digest()
        return self.chain

    def keep(self, key: bytes, forward: tuple) -> None:
        """Keep a forward."""
        self.kept[key] = forward
        self.bytes += _bytes_of(forward)
        while self.bytes > MOST_BYTES and len(self.kept) > 1:
            self.bytes -= _bytes_of(self.kept.popitem(last=False)[1])

    def find(self, key: bytes) -> tuple | None:
        """Return a forward that is kept, or None."""
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def close(self) -> None:
        """Take the interpositions off, and forget all forwards."""
        for transformer in self.transformers:
            restore(transformer, "forward", SharedForward)
        self.kept.clear()


class SharedForward(Interposed):
    """A transformer's forward, below its cache, that takes its output from an earlier run where there is one."""

    def __init__(self, inner, transformer, prefixes: SharedPrefixes):
        super().__init__(inner)
        self.prefixes = prefixes
        self.owner, self.parameters = transformer, list(inspect.signature(inner).parameters)

    def __call__(self, *args, **kwargs):
        if not self.serving:
            return self.inner(*args, **kwargs)
        trunk = attached_trunk(self.owner)
        call: Any = None if trunk is None or trunk.cache is None else trunk.cache.call  # type: ignore[attr-defined]
        arguments = {**dict(zip(self.parameters, args)), **kwargs}
        timestep, latents = timestep_of(arguments), _bits_of(arguments.get(self.parameters[0]))
        time = self.prefixes.timesteps if timestep is None else float(torch.as_tensor(timestep).flatten()[0])
        key = self.prefixes.extend(time, latents, call is not None and call.is_reused, id(self.owner))
        kept = self.prefixes.find(key)
        if kept is None:
            output = self.inner(*args, **kwargs)
            self.prefixes.forwards += 1
            kept = output, *((None, None) if call is None else (call.boundary, call.last_shallow))
            self.prefixes.keep(key, kept)
        elif call is not None:
            call.crossed = True
            if not call.is_reused:
                call.boundary, call.last_shallow = kept[1:]
        return tree_map_only(torch.Tensor, torch.clone, kept[0])


def _bits_of(latents: Any) -> list[str]:
    """Return a hash of each tensor in the first argument of a forward."""
    tensors = [x.detach().cpu().contiguous() for x in tree_leaves(latents) if isinstance(x, torch.Tensor)]
    return [hashlib.blake2b(x.flatten().view(torch.uint8).numpy().tobytes()).hexdigest() for x in tensors]


def _bytes_of(forward: tuple) -> int:
    tensors = {id(x): x for x in tree_leaves(forward) if isinstance(x, torch.Tensor)}
    return sum(x.numel() * x.element_size() for x in tensors.values())
