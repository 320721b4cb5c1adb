"""The runs of peers in a bench: each is tried once, its FLOPs counted, and then run like any other case."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from skipdit_cli.bench.peers.known_peers import PEERS
from skipdit_cli.bench.peers.peer import PeerSetting, PeerUnsupported, RunFacts
from skipdit_cli.bench.peers.restoring import Snapshot
from skipdit_cli.errors import first_line, install_extra
from skipdit_cli.families.pipeline_parts import transformers_of

ALMOST_ALL = 0.999
"""The share of a full call's FLOPs from which on a call counts as full."""


@dataclass(frozen=True)
class PeerCost:
    """What a run with a peer costs.

    Args:
        limit: FLOPs of the uncached run over the FLOPs of this run.
        full_steps: Steps that cost as much as those of the uncached run.
    """

    limit: float
    full_steps: int


class PeerRuns:
    """Runs with peers on one pipeline.

    Args:
        pipe: The pipeline, without skip branches while peers run.
        generate: Samples from the pipeline once, given ``advance``, which it calls after each denoising step, and
            ``decode``: whether it decodes the latents.
        facts: What peers know of these runs.

    Attributes:
        costs: The cost of each setting that ran; empty before ``try_out``.
        failures: Why each other setting did not run, one sentence each.
    """

    def __init__(self, pipe, generate: Callable[..., Any], facts: RunFacts):
        self.pipe, self.generate, self.facts = pipe, generate, facts
        self.costs: dict[PeerSetting, PeerCost] = {}
        self.failures: dict[PeerSetting, str] = {}

    def try_out(self, settings: list[PeerSetting], advance: Callable[[], None] | None = None) -> None:
        """Run each setting once and count its FLOPs, or note why it does not run.

        Args:
            advance: Called after each denoising step of these runs.
        """
        full = _count_calls(self.pipe, partial(self.generate, advance, decode=False))
        for setting in settings:
            try:
                calls = _count_calls(self.pipe, partial(self.run, setting, advance, decode=False))
                calls = calls[-len(full) :]  # a calibration ran before
                if sum(calls) >= ALMOST_ALL * sum(full):
                    raise PeerUnsupported(f"It reused nothing: all {len(calls)} calls of the model ran in full.")
            except PeerUnsupported as cause:
                self.failures[setting] = str(cause)
            except Exception as cause:  # whatever a peer raises is a row of the bench, and not its end
                error = cause.__cause__ or cause  # what our sampler raises instead speaks of the model's parts
                self.failures[setting] = f"{type(error).__name__}: {first_line(error)}"
            else:
                ran_in_full = sum(flops >= ALMOST_ALL * max(full) for flops in calls)
                self.costs[setting] = PeerCost(sum(full) / sum(calls), ran_in_full // self.facts.calls)

    def run(self, setting: PeerSetting, advance: Callable[[], None] | None = None, decode: bool = True):
        """Sample once with a peer, which is enabled before and removed after.

        Raises:
            PeerUnsupported: It is not installed, or it hooks nothing on this model.
            Exception: Whatever the peer raises.
        """
        peer, snapshot = PEERS[setting.peer], Snapshot(self.pipe)
        with _silence():
            _import(peer.module, peer.package)
            try:
                with peer.enabled(self.pipe, self.facts, dict(setting.knobs)) as reset:
                    if not snapshot.hooked():
                        raise PeerUnsupported(f"It hooks nothing on {type(self.pipe.transformer).__name__}.")
                    steps = _Steps(self.facts, reset, advance)
                    return self.generate(steps, decode=decode)
            finally:
                snapshot.restore()

    def versions(self) -> dict[str, str]:
        """Return the version of each other package whose peers ran."""
        packages = {PEERS[setting.peer].package for setting in self.costs} - {"diffusers"}
        return {package: importlib.metadata.version(package) for package in sorted(packages)}

    def notes(self) -> list[str]:
        """Return why settings did not run, one note per peer and reason."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for setting, why in self.failures.items():
            reasons.setdefault((setting.peer, why), []).append(setting.describe())
        sweeps = {setting.peer: len(PEERS[setting.peer].sweep) for setting in self.failures}
        return [
            f"No figures of {peer} ({'any setting' if len(knobs) == sweeps[peer] else '; '.join(knobs)}): {why}"
            for (peer, why), knobs in reasons.items()
        ]


class _Steps:
    """Count the denoising steps of a run with a peer, and reset the peer's state before each batch."""

    def __init__(self, facts: RunFacts, reset: Callable[[], None], advance: Callable[[], None] | None):
        self.facts, self.reset, self.advance, self.batches = facts, reset, advance, 0
        self._begin_batch()

    def __call__(self) -> None:
        self.facts.position += 1
        if self.facts.position == len(self.facts.timesteps) and self.batches < self.facts.batches:
            self._begin_batch()
        if self.advance is not None:
            self.advance()

    def _begin_batch(self) -> None:
        self.facts.position, self.batches = 0, self.batches + 1
        self.reset()


def _count_calls(pipe, sample: Callable[[], Any]) -> list[int]:
    """Return the FLOPs of each call of the pipeline's transformers while ``sample`` runs."""
    counters: list[_FlopCounter] = []

    def before(*_) -> None:
        counters.append(_FlopCounter())
        counters[-1].__enter__()

    def after(*_) -> None:
        counters[-1].__exit__(None, None, None)

    handles = []
    for transformer in transformers_of(pipe).values():
        handles += [transformer.register_forward_pre_hook(before)]
        handles += [transformer.register_forward_hook(after, always_call=True)]
    try:
        sample()
    finally:
        for handle in handles:
            handle.remove()
    return [counter.flops for counter in counters]


class _FlopCounter(TorchDispatchMode):
    """Count FLOPs as torch's ``FlopCounterMode`` does, but not by module: cache-dit's blocks contain their model."""

    def __init__(self):
        super().__init__()
        self.flops = 0
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts none for it
        self.formulas = {**flop_registry, flash: flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.formulas:
            self.flops += self.formulas[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def _import(module: str, package: str) -> None:
    """Import a peer's package.

    Raises:
        PeerUnsupported: It is not installed, or its import fails.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as cause:
        if cause.name == module:
            raise PeerUnsupported(f"{package} is not installed; run {install_extra('peers')}.") from cause
        raise


class _Discard(io.TextIOBase):
    """A text stream that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def _silence() -> Iterator[None]:
    """Silence what peers print, log and warn: SmoothCache prints one line per call of an attention."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(_Discard()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
