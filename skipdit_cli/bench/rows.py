"""One row of a bench: the speed of a case, its limit and its quality, against the uncached cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from skipdit_cli.bench.cases import Case
from skipdit_cli.bench.peers.peer import PeerSetting
from skipdit_cli.bench.peers.peer_runs import PeerCost
from skipdit_cli.bench.quality import Quality, compare
from skipdit_cli.bench.timing import Measured, median, ratios, spread
from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.policy import both_ends, write_layers
from skipdit_cli.planning.flops import StepFlops
from skipdit_cli.sampling.generate import Generated
from skipdit_cli.skip.output_branch import load_output_branch

NO_QUALITY = Quality(None, None, None, None)  # type: ignore[arg-type]  # None: no sample is compared


def make_row(
    case: Case,
    measured: Mapping[Case, Measured],
    flops: StepFlops,
    peer: PeerCost | None = None,
    calls_per_step: int = 1,
    sampler: str | None = None,
    psnr_exact: float | None = None,
) -> dict:
    """Return one row of ``bench --json``, with None for each key that does not apply.

    Args:
        measured: The measurements of all cases of the bench.
        flops: Cost of a step of the case's own model.
        peer: Cost of the run, if a peer ran.
        calls_per_step: Calls of a transformer in one step.
        sampler: Name of the case's sampler.
        psnr_exact: Accuracy of the case's samples, in dB.
    """
    result, policy = measured[case], case.policy
    uncached = {other.name: each for other, each in measured.items() if other.name == other.reference}
    sample, reference = result.first, uncached[case.reference].first
    speedup = {name: ratios(each.seconds, result.seconds) for name, each in uncached.items()}
    limit, quality = None, NO_QUALITY
    if case.name != case.reference:
        spent = _run_flops(case, sample, flops) + _output_branch_flops(case, calls_per_step)
        limit = peer.limit if peer else reference.calls * flops.full / spent
        quality = compare(sample.images, reference.images, sample.latents, reference.latents)
    full_forwards = reference.calls / calls_per_step
    return {
        "case": case.name,
        "reference": case.reference,
        "cache_layers": policy and _layers(policy),
        "peer": case.peer and case.peer.peer,
        "cache_interval": _interval(policy),
        "schedule": case.peer.describe() if case.peer else case.schedule,
        "forecast": policy and policy.forecast,
        "cache_target": policy and policy.target_or_default,
        "sampler": sampler,
        "steps": sample.steps,
        "full_steps": _full_steps(sample, peer),
        "cost": full_forwards / limit if limit else full_forwards,
        "seconds": median(result.seconds),
        "seconds_iqr": spread(result.seconds),
        "seconds_end_to_end": median(result.seconds_end_to_end),
        "speedup_vs_vanilla": median(speedup["vanilla"]),
        "speedup_vs_vanilla_iqr": spread(speedup["vanilla"]),
        "speedup_vs_skip": median(speedup["skip"]) if "skip" in speedup else None,
        "limit": limit,
        "measured_over_limit": limit and median(speedup[case.reference]) / limit,
        "psnr": quality.psnr,
        "psnr_exact": psnr_exact,
        "ssim": quality.ssim,
        "temporal_difference": quality.temporal_difference,
        "latent_rel_l2": quality.latent_rel_l2,
        "identical": quality.identical,
        "peak_memory_mb": result.peak_bytes and result.peak_bytes / 1e6,
        "cache_mb": policy and sample.cache_bytes / 1e6,
        "why": None,
    }


def _layers(policy: CachePolicy) -> int | str:
    """Return N, or "FRONT:BACK" where the two ends differ."""
    front, back = both_ends(policy.layers)
    return front if front == back else write_layers((front, back))


def make_failed_row(setting: PeerSetting, why: str, keys: Iterable[str]) -> dict:
    """Return the row of a peer that did not run: None for each key but its name, its knobs and why.

    Args:
        keys: Those of the other rows.
    """
    known = {"case": "peer", "peer": setting.peer, "schedule": setting.describe(), "why": why}
    return {**dict.fromkeys(keys), **known}


def _interval(policy: CachePolicy | None) -> int | None:
    if policy is None or policy.full_steps is not None or policy.threshold is not None:
        return None
    return 2 if policy.interval is None else policy.interval


def _full_steps(sample: Generated, peer: PeerCost | None) -> int:
    """Return the full steps of a batch, the mean of all batches where they differ."""
    if peer is not None:
        return peer.full_steps
    report = sample.report
    if report is None or not report.steps:
        return sample.steps
    return round((report.steps - report.reused_steps) * sample.steps / report.steps)


def _run_flops(case: Case, sample: Generated, flops: StepFlops) -> int:
    """Return the multiply-adds of all calls of a run."""
    if case.policy is None:
        return sample.calls * flops.full
    skipped_blocks = len(flops.units) - sum(both_ends(case.policy.layers))
    report: Any = sample.report  # of one batch, or of all of them
    share = (report.blocks_total - report.blocks_run) / skipped_blocks / (report.blocks_total / len(flops.units))
    reused_calls = round(sample.calls * share)
    return (sample.calls - reused_calls) * flops.full + reused_calls * flops.reused(case.policy.layers)


def _output_branch_flops(case: Case, calls_per_step: int) -> float:
    """Return the multiply-adds of the output branch of a case's sampler in a run, in the unit of ``_run_flops``."""
    arguments: Mapping[str, Any] = {} if case.sampler is None else case.sampler.arguments
    if "output_branch" not in arguments:
        return 0.0
    branch = load_output_branch(arguments["output_branch"], arguments.get("output_branch_sha256"))
    return branch.macs * calls_per_step / sum(branch.calls)
