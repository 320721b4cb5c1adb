"""Fit the output branch of a fitted sampler: step by step, on the sampler's own path, by ridge regression.

In each step the row of coefficients is fitted as in ``fit_sampler.py``. The remaining error of the next state, divided
by the coefficient of the newest output, is what the branch should add to that output. The path goes on with the
corrected output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import transformer_of, transformers_of
from skipdit_cli.planning.fit_sampler import FittingScheduler, SamplerFitter, as_written
from skipdit_cli.planning.output_layout import OutputLayout, find_layout
from skipdit_cli.sampling.by_class import sample_shape
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.sampling.schedulers import FITTED, Sampler
from skipdit_cli.skip.output_branch import OutputBranch
from skipdit_cli.trunk import Interposed, interpose, restore

STRENGTHS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""Ridge penalties to choose from, as shares of the mean square of each feature."""
HOLD_OUT = 4
"""Every how many-th calibration sample chooses the penalty, and whether the step has a branch at all."""
WANTED_VALUES, FEWEST, MOST = 32_768, 64, 512
"""Values of latents to fit a branch to, and the fewest and the most samples."""
LARGEST_ERROR = 1e-3, 5e-2
"""The largest relative error of the scheduler's input as a weighted sum of outputs: in float32, and otherwise."""
SMALL_BATCH = 8
"""Fewer samples than these are too few to fit a branch to."""


def branch_samples(pipe, count: int, settings: Mapping[str, Any]) -> int:
    """Return the number of samples that a branch is fitted to, all in one batch.

    Args:
        pipe: The pipeline.
        count: The samples of the search.
        settings: As for ``generate``: the most samples in a batch, and the frames of a video.

    Raises:
        UsageError: A batch has too few samples.
    """
    most = settings.get("batch_size")
    if is_text_conditional(pipe):
        wanted = FEWEST
    else:
        wanted = math.ceil(WANTED_VALUES / math.prod(sample_shape(pipe, settings.get("num_frames"))))
    samples = min(max(wanted, FEWEST, count), max(MOST, count))
    samples = samples if most is None else min(samples, most)
    if samples < SMALL_BATCH:
        raise UsageError(
            f"Got --output-branch with --batch-size {samples}, but a branch is fitted to one batch of {SMALL_BATCH} "
            f"samples or more; give --batch-size {FEWEST}."
        )
    return samples


def check_one_transformer(pipe) -> None:
    """Refuse a pipeline of two transformers that take turns.

    Raises:
        UsageError: It is one.
    """
    if len(transformers_of(pipe)) > 1:
        raise UsageError("Got --output-branch for a pipeline of two transformers; leave the flag out.")


def fit_output_branch(fitter: SamplerFitter, sampler: Sampler) -> tuple[Sampler, OutputBranch]:
    """Return a fitted sampler with an output branch, and its branch.

    Args:
        fitter: Of the pipeline, with the samples to fit to.
        sampler: A fitted sampler at timesteps of the fitter's path.

    Raises:
        UsageError: The transformer's output, or its guidance, is not linear in what its last Linear returns.
    """
    check_one_transformer(fitter.pipe)
    written = [as_written(t) for t in fitter.path.timesteps]
    timesteps = sampler.timesteps or ()
    nodes = [written.index(t) for t in timesteps]
    tap = _Tap(transformer_of(fitter.pipe))
    try:
        scheduler = _BranchFittingScheduler(timesteps, fitter.targets(nodes), fitter.pipe.scheduler, tap)
        fitter.run("branch", scheduler, timesteps)
    finally:
        tap.close()
    return Sampler(FITTED, arguments={"coefficients": scheduler.rows}, timesteps=sampler.timesteps), tap.branch(
        scheduler.maps
    )


@dataclass
class _Call:
    """One call of the transformer: the input of its last Linear (rows, ..., D), and its output (batch, C, ...)."""

    inputs: torch.Tensor
    output: torch.Tensor


class _Tap:
    """Keeps what goes into and out of a transformer's last Linear, step by step.

    Attributes:
        layout: Where the numbers of the output come from, after the first call.
        calls: The calls of the present step.
        parts: Parts of guidance in each call of a step, after the first step.
    """

    def __init__(self, transformer):
        self.transformer = transformer
        self.layout: OutputLayout | None = None
        self.calls: list[_Call] = []
        self.parts: tuple[int, ...] = ()
        self.handle: Any = None
        self.last_input: Any = None
        interpose(transformer, "forward", lambda inner: _TappedForward(inner, self), _TappedForward)

    def find(self, forward: Callable[..., Any]) -> None:
        """Find the layout, in the first call, and keep the inputs of its Linear from then on."""
        if self.layout is None:
            self.layout = find_layout(self.transformer, forward)
            self.handle = self.layout.linear.register_forward_pre_hook(self._keep)

    def _keep(self, module, inputs) -> None:
        self.last_input = inputs[0].detach()

    def close(self) -> None:
        """Leave the transformer as it was."""
        restore(self.transformer, "forward", _TappedForward)
        if self.handle is not None:
            self.handle.remove()

    def branch(self, maps: Sequence[Sequence[torch.Tensor]]) -> OutputBranch:
        """Return the branch with these maps, for each step and call (F + 1, P), the bias last."""
        assert self.layout is not None
        weights = [[each[:-1].T.float().contiguous() for each in step] for step in maps]
        biases = [[each[-1].float().contiguous() for each in step] for step in maps]
        tokens = self.layout.places.max().item() // self.layout.linear.out_features + 1
        return OutputBranch(self.layout.module, self.parts, self.layout.rows, int(tokens), weights, biases)


class _TappedForward(Interposed):
    """A transformer's forward that a ``_Tap`` listens to."""

    def __init__(self, inner, tap: _Tap):
        super().__init__(inner)
        self.tap = tap

    def __call__(self, *args, **kwargs):
        if not self.serving:
            return self.inner(*args, **kwargs)
        self.tap.find(lambda: _output_of(self.inner(*args, **kwargs)))
        result = self.inner(*args, **kwargs)
        self.tap.calls.append(_Call(self.tap.last_input, _output_of(result)))
        return result


def _output_of(result: Any) -> torch.Tensor:
    return result[0] if isinstance(result, tuple) else result.sample


class _BranchFittingScheduler(FittingScheduler):
    """A fitting scheduler that also fits the branch of each step.

    Attributes:
        maps: For each step and call (F + 1, P), the bias last.
    """

    def __init__(self, timesteps, targets, original, tap: _Tap):
        super().__init__(timesteps, targets, original)
        self.tap = tap
        self.former: list[torch.Tensor] = []
        self.maps: list[list[torch.Tensor]] = []

    def row(self, index: int) -> Sequence[float]:
        """Fit the coefficients of a step, its branch, and the coefficients again."""
        row = super().row(index)
        state = self.combined(row)
        error = (self.targets[index].to(state) - state) / row[-1] if row[-1] else torch.zeros_like(state)
        self.terms[-1] = self.terms[-1] + self._fit_branch(error)
        self.rows.pop()
        return super().row(index)

    def _fit_branch(self, error: torch.Tensor) -> torch.Tensor:
        """Fit the branch of a step to what its output should get more, and return what it gets.

        Args:
            error: (B, C, ...).
        """
        calls, self.tap.calls = self.tap.calls, []
        layout, output = self.tap.layout, self.terms[-1]
        assert layout is not None
        samples = len(output)
        if any(len(call.output) % samples for call in calls):
            raise _no_guidance()
        parts = tuple(len(call.output) // samples for call in calls)
        if self.tap.parts not in ((), parts):
            raise _no_guidance()
        self.tap.parts = parts
        weights = iter(_guidance_weights(calls, output))
        shares = [sum(next(weights) for _ in range(count)) for count in parts]
        inputs = [_by_sample(call.inputs, samples, count) for call, count in zip(calls, parts)]
        features = [torch.cat(pair, dim=-1) for pair in zip(inputs, self.former)] if self.former else inputs
        self.former = inputs
        ones = torch.ones(*inputs[0].shape[:2], 1, device=output.device)
        scaled = torch.cat([share * torch.cat([each, ones], -1) for share, each in zip(shares, features)], -1)

        width, places = layout.linear.out_features, layout.places.to(output.device)
        if places.shape != output.shape[1:]:  # a learned variance takes the other channels
            places = places[: output.shape[1]]
        target = torch.zeros(samples, scaled.shape[1] * width, device=output.device)
        target[:, places.flatten()] = error.flatten(1)
        used = (places.flatten() // width).unique()
        fitted = _ridge(scaled[:, used], target.view(samples, -1, width)[:, used])
        self.maps.append(list(fitted.split([each.shape[-1] + 1 for each in features])))
        return (scaled @ fitted).flatten(1)[:, places.flatten()].view_as(output)


def _by_sample(inputs: torch.Tensor, samples: int, parts: int) -> torch.Tensor:
    """Return the inputs of a Linear (rows, ..., D) as (samples, tokens, parts D), in float32."""
    return torch.cat([part.reshape(samples, -1, part.shape[-1]).float() for part in inputs.chunk(parts)], dim=-1)


def _guidance_weights(calls: Sequence[_Call], output: torch.Tensor) -> list[float]:
    """Return the weight of each part of the calls in the output that the scheduler gets.

    Raises:
        UsageError: It is no combination of them.
    """
    samples, channels = len(output), output.shape[1]
    parts = [part for call in calls for part in call.output.split(samples)]
    exact = all(part.dtype == torch.float32 for part in parts)
    parts = [part[:, :channels] for part in parts]
    if any(part.shape != output.shape for part in parts):
        raise _no_guidance()
    columns = torch.stack([part.flatten().double() for part in parts], dim=1).cpu()
    wanted = output.flatten().double().cpu()
    weights = torch.linalg.lstsq(columns, wanted[:, None]).solution[:, 0]
    error = (columns @ weights - wanted).norm() / wanted.norm().clamp(min=1e-12)
    if error > LARGEST_ERROR[0 if exact else 1]:
        raise _no_guidance()
    return [float(weight) for weight in weights]


def _no_guidance() -> UsageError:
    return UsageError(
        "Got --output-branch, but the scheduler of this pipeline does not get a weighted sum of its transformer's "
        "outputs; leave the flag out."
    )


def _ridge(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the linear map that predicts a target, with the penalty that serves the samples held out here.

    Args:
        features: (samples, tokens, F).
        target: (samples, tokens, P).

    Returns:
        (F, P), zeros if no map lowers the error of the samples held out.
    """
    chosen = torch.arange(len(features)) % HOLD_OUT == 0
    (gram, moment), (kept_gram, kept_moment) = (_moments(features[mask], target[mask]) for mask in (~chosen, chosen))

    def held_out_error(fitted: torch.Tensor) -> float:
        """The change of the squared error of the samples held out."""
        return float((fitted * (kept_gram @ fitted)).sum() - 2 * (fitted * kept_moment).sum())

    maps = {strength: _solve(gram, moment, strength) for strength in STRENGTHS}
    best = min(maps, key=lambda strength: held_out_error(maps[strength]))
    if held_out_error(maps[best]) >= 0:
        return torch.zeros_like(maps[best]).to(features)
    return _solve(gram + kept_gram, moment + kept_moment, best).to(features)


def _moments(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return X'X and X'Y in float64, summed over the samples one by one."""
    size = features.shape[-1]
    gram = torch.zeros(size, size, dtype=torch.float64)
    moment = torch.zeros(size, target.shape[-1], dtype=torch.float64)
    for x, y in zip(features.split(32), target.split(32)):
        x, y = x.flatten(0, 1).double().cpu(), y.flatten(0, 1).double().cpu()
        gram, moment = gram + x.T @ x, moment + x.T @ y
    return gram, moment


def _solve(gram: torch.Tensor, moment: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the ridge solution for features that are scaled to a mean square of 1."""
    scale = gram.diagonal().clamp(min=1e-30).sqrt()[:, None]
    system = gram / scale / scale.T + strength * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(system, moment / scale) / scale
