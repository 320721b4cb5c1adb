"""The output branch: a linear correction of a transformer's output in each denoising step of a fitted sampler.

In step k, the last Linear of the transformer returns W h_k + b + sum_j (A_kj h_kj + B_kj h_k-1,j) + d_k. The sum is
over the parts j of guidance in one call, conditional and unconditional; h_k-1 is the input of the Linear in the step
before. ``planning/fit_branch.py`` fits the maps; a trained correction of this kind is GENIE (arXiv 2210.05475).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from skipdit_cli.errors import UsageError, reading
from skipdit_cli.files.one import checksum, replacing
from skipdit_cli.formats import parse_json, to_json
from skipdit_cli.trunk import Interposed, find, interpose, restore

ADVICE = "fetch it again beside its plan, or calibrate again"
LARGEST_FILE = 1 << 32
"""In bytes; the branch of 8 steps of DiT-XL/2 has 5 MB."""


@dataclass(frozen=True)
class OutputBranch:
    """The maps of an output branch.

    Args:
        module: The name of the transformer's last Linear.
        calls: The parts of guidance in each call of the transformer in one step: (2,) for one doubled batch, (1, 1)
            for two calls, (1,) without guidance.
        rows: Rows (first dimension) of the Linear's input for each sample and part: 1, or the frames of a video.
        tokens: The tokens of a sample, in all rows.
        weights: For each step and call (P, F): F is the width D of the Linear's input times the parts of the call,
            twice that from the second step on, when the inputs of the step before follow.
        biases: For each step and call (P,), with P the width of the Linear's output.
    """

    module: str
    calls: tuple[int, ...]
    rows: int
    tokens: int
    weights: Sequence[Sequence[torch.Tensor]]
    biases: Sequence[Sequence[torch.Tensor]]

    @property
    def steps(self) -> int:
        """The number of denoising steps."""
        return len(self.weights)

    @property
    def macs(self) -> int:
        """The multiply-adds of all steps together, for one sample."""
        return self.tokens * sum(weight.numel() for step in self.weights for weight in step)

    def save(self, path: Path) -> str:
        """Write the maps to a safetensors file, and return its SHA-256 checksum."""
        tensors: dict[str, torch.Tensor] = {}
        for step, (weights, biases) in enumerate(zip(self.weights, self.biases)):
            for call, (weight, bias) in enumerate(zip(weights, biases)):
                tensors |= {f"{step}.{call}.weight": weight.contiguous(), f"{step}.{call}.bias": bias.contiguous()}
        facts = {"module": self.module, "calls": list(self.calls), "rows": self.rows, "tokens": self.tokens}
        with replacing(path) as part:
            save_file(tensors, part, {"output_branch": to_json(facts)})
        return checksum(path)


def load_output_branch(path: str | Path, sha256: str | None = None) -> OutputBranch:
    """Read an output branch.

    Args:
        sha256: The checksum that the file must have, if given.

    Raises:
        UsageError: There is no such file, it has another checksum, or it holds no output branch.
    """
    file = Path(path)
    what = f"Got the output branch {file}, which"
    if not file.is_file():
        raise UsageError(f"{what} is no file; {ADVICE}.")
    if file.stat().st_size > LARGEST_FILE:
        raise UsageError(f"{what} has {file.stat().st_size:,} bytes but expected at most {LARGEST_FILE:,}; {ADVICE}.")
    if sha256 is not None and checksum(file) != sha256:
        raise UsageError(f"{what} is not the file that the plan was measured with; {ADVICE}.")
    with reading(f"Output branch {file}", ADVICE), safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        text = (opened.metadata() or {}).get("output_branch", "")
    branch = _branch_of(tensors, parse_json(text, file) if text else None)
    if branch is None:
        raise UsageError(f"{what} holds no output branch; {ADVICE}.")
    return branch


def _branch_of(tensors: dict[str, torch.Tensor], facts: Any) -> OutputBranch | None:
    """Return the branch that a file holds, or None if its tensors are not those of one."""
    kinds = {"module": str, "calls": list, "rows": int, "tokens": int}
    if not isinstance(facts, dict) or any(not isinstance(facts.get(key), kind) for key, kind in kinds.items()):
        return None
    calls, steps = facts["calls"], len(tensors) // (2 * len(facts["calls"]) or 1)
    counts = [*calls, facts["rows"], facts["tokens"], steps]
    if not calls or not all(type(count) is int and 0 < count <= 1 << 24 for count in counts):
        return None
    names = [f"{step}.{call}" for step in range(steps) for call in range(len(calls))]
    if {*tensors} != {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}:
        return None
    outputs, width = len(tensors["0.0.bias"]), tensors["0.0.weight"].shape[-1] // calls[0]
    for name in names:
        step, call = map(int, name.split("."))
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        features = width * calls[call] * (2 if step else 1)
        if weight.shape != (outputs, features) or bias.shape != (outputs,):
            return None
        if not all(each.dtype == torch.float32 and bool(each.isfinite().all()) for each in (weight, bias)):
            return None
    weights, biases = (
        [[tensors[f"{step}.{call}.{kind}"] for call in range(len(calls))] for step in range(steps)]
        for kind in ("weight", "bias")
    )
    return OutputBranch(facts["module"], tuple(calls), facts["rows"], facts["tokens"], weights, biases)


class BranchedLinear(Interposed):
    """The forward of a transformer's last Linear, with the output branch of a scheduler added.

    Args:
        inner: The forward of the Linear.
        scheduler: A ``FittedScheduler``, which knows the step and holds the branch.
        device: That of the Linear.
    """

    def __init__(self, inner, scheduler, device):
        super().__init__(inner)
        branch: OutputBranch = scheduler.branch
        self.scheduler, self.calls = scheduler, branch.calls
        self.weights, self.biases = (
            [[each.to(device) for each in step] for step in maps] for maps in (branch.weights, branch.biases)
        )
        self.place = (-1, -1)
        self.inputs: list[torch.Tensor] = []
        self.former: list[torch.Tensor] = []

    def __call__(self, x):
        y = self.inner(x)
        return y + self._correction(x).to(y.dtype) if self.serving else y

    @torch.compiler.disable
    def _correction(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the output, and keep the input for the next step."""
        generation, step = self.scheduler.place
        if self.place != (generation, step):
            self.former = self.inputs if self.place == (generation, step - 1) else []
            self.place, self.inputs = (generation, step), []
        call = len(self.inputs)
        if call >= len(self.calls) or len(x) % self.calls[call] or (step and len(self.former) <= call):
            raise refusal(self.scheduler.branch)
        self.inputs.append(x.detach())
        self.scheduler.branched_rows = sum(map(len, self.inputs))
        inputs = [x, self.former[call]] if step else [x]
        if inputs[-1].shape != x.shape:
            raise refusal(self.scheduler.branch)
        parts = self.calls[call]
        features = torch.cat([half for each in inputs for half in each.float().chunk(parts)], dim=-1)
        correction = nn.functional.linear(features, self.weights[step][call], self.biases[step][call])
        return correction.repeat(parts, *[1] * (correction.ndim - 1))


def refusal(branch: OutputBranch) -> UsageError:
    """Return the error of a run whose calls are not those that a branch was fitted to."""
    parts = "with guidance" if sum(branch.calls) > 1 else "without guidance"
    return UsageError(
        f"Got a run that calls the transformer otherwise than the runs that the output branch was fitted to, {parts}; "
        "sample with the guidance and the number of frames of the plan."
    )


def enable_output_branch(transformer: nn.Module, scheduler: Any) -> None:
    """Add the output branch of a scheduler to a transformer, until ``disable_output_branch``.

    ``generate`` does it by itself. For the call of a diffusers pipeline::

        pipe.scheduler = make_scheduler(load_plan("plan.yaml").sampler, pipe)
        enable_output_branch(pipe.transformer, pipe.scheduler)

    Args:
        transformer: The model that the plan was made for.
        scheduler: As ``make_scheduler`` makes it; nothing is done if it has no branch.

    Raises:
        UsageError: The branch does not fit the transformer.
    """
    disable_output_branch(transformer)
    branch: OutputBranch | None = getattr(scheduler, "branch", None)
    if branch is None:
        return
    modules: dict[str, Any] = dict(transformer.named_modules())
    linear, kind = modules.get(branch.module), type(transformer).__name__
    if not isinstance(linear, nn.Linear):
        raise UsageError(
            f"Got an output branch of the Linear '{branch.module}', which a {kind} lacks; calibrate again."
        )
    expected = (len(branch.biases[0][0]), branch.weights[0][0].shape[1] // branch.calls[0])
    if (linear.out_features, linear.in_features) != expected:
        raise UsageError(
            f"Got an output branch for {expected[1]} features and {expected[0]} outputs, but '{branch.module}' of "
            f"this {kind} has {linear.in_features} and {linear.out_features}; calibrate again for this model."
        )
    interpose(linear, "forward", partial(BranchedLinear, scheduler=scheduler, device=linear.weight.device))


def disable_output_branch(transformer: nn.Module) -> None:
    """Take an output branch off a transformer, which is then as it was before, bit for bit."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear) and find(module, "forward", BranchedLinear) is not None:
            restore(module, "forward", BranchedLinear)


@contextmanager
def output_branch(transformer: nn.Module | None, scheduler: Any) -> Iterator[None]:
    """Add the output branch of a scheduler, if it has one, to a transformer for a while."""
    if transformer is None or getattr(scheduler, "branch", None) is None:
        yield
        return
    enable_output_branch(transformer, scheduler)
    try:
        yield
    finally:
        disable_output_branch(transformer)
