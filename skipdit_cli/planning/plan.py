"""Plans: presets that hold one candidate of a search, and say for which model it was made and how it was measured."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.policy import check_depth
from skipdit_cli.errors import UsageError
from skipdit_cli.families.fingerprint import architecture_fingerprint, class_name, short_hash, weights_fingerprint
from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.files import replacing
from skipdit_cli.formats import to_json
from skipdit_cli.planning.searching.candidate import Candidate, candidate_of
from skipdit_cli.presets import Preset, load_preset
from skipdit_cli.sampling.schedulers import Sampler
from skipdit_cli.skip.output_branch import load_output_branch
from skipdit_cli.trunk import known_trunk
from skipdit_cli.version import versions_of_results

NO_BRANCHES = "none"


@dataclass(frozen=True)
class Plan:
    """One way to sample a model, and what it was made for.

    Args:
        candidate: The sampler, the number of denoising steps and the cache.
        made_for: What ``make_made_for`` returns.
        weights: The name of the model embedded in the package that it was made for, or empty.
        name: The stem of its file, or empty.
    """

    candidate: Candidate
    made_for: Mapping[str, Any]
    weights: str = ""
    name: str = ""

    @property
    def policy(self) -> CachePolicy | None:
        """The cache, which refuses a run of another number of steps; None for a plan without a cache."""
        policy = self.candidate.policy
        return None if policy is None else replace(policy, steps=self.steps)

    @property
    def sampler(self) -> Sampler:
        """The scheduler and its timesteps."""
        return self.candidate.sampler

    @property
    def steps(self) -> int:
        """The number of denoising steps."""
        return self.candidate.steps

    def check_run(self, pipe: Any, sampler: Sampler, steps: int) -> None:
        """Refuse a run that the full steps or the coefficients of the plan do not fit. A plan with neither fits any.

        Args:
            pipe: The pipeline, or its outline.
            sampler: The sampler of the run.
            steps: The number of denoising steps of the run.

        Raises:
            UsageError: The model has another architecture, or the sampler or the number of steps is another one.
        """
        if self.policy is None and not self.sampler.is_fitted:
            return
        made_for, transformer = self.made_for, transformer_of(pipe)
        actual, trunk = class_name(transformer), known_trunk(transformer)
        what = f"Got the plan '{self.name}', which was made for"
        advice = "calibrate again for this model"
        if actual != made_for["class"]:
            raise UsageError(f"{what} a {made_for['class']}, but the model is a {actual}; {advice}.")
        if trunk is not None and made_for["blocks"] not in (None, len(trunk)):
            raise UsageError(f"{what} {made_for['blocks']} blocks, but the model has {len(trunk)}; {advice}.")
        if architecture_fingerprint(pipe) != made_for["fingerprint"]:
            raise UsageError(f"{what} a {actual} with another config than that of the model; {advice}.")
        if steps != self.steps:
            raise UsageError(
                f"{what} {self.steps} steps, but the run has {steps}; give --num-inference-steps {self.steps}, or "
                f"calibrate for {steps}."
            )
        if sampler != self.sampler:
            raise UsageError(
                f"{what} the sampler '{self.sampler.describe()}', but the run has '{sampler.describe()}'; leave the "
                "scheduler flags out, or calibrate for that one."
            )

    def difference(self, pipe: Any, guidance_scale: float | None) -> str | None:
        """Return one sentence on what the plan was not measured with, or None if nothing differs that is known.

        Args:
            pipe: The pipeline, with its weights.
            guidance_scale: That of the run.
        """
        made_for, differences = self.made_for, []
        weights, branches = weights_fingerprint(pipe), branches_of(pipe)
        if branches != made_for["branches"]:
            differences.append(f"{_in_words(made_for['branches'])} (the model has {_in_words(branches)})")
        elif weights is not None and made_for["weights"] not in (None, weights):
            differences.append("other weights of this architecture")
        if guidance_scale != made_for["guidance_scale"]:
            differences.append(f"a guidance scale of {made_for['guidance_scale']} (the run has {guidance_scale})")
        if not differences:
            return None
        return f"the plan '{self.name}' was measured with {' and '.join(differences)}; its accuracy here is not known."


def make_made_for(
    pipe: Any, candidate: Candidate, guidance_scale: float | None, cost: float, measured: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ``made_for`` block of a plan: what it was made for, and how it was measured.

    Args:
        pipe: The pipeline, with its weights.
        candidate: The candidate that the plan holds.
        guidance_scale: The one it was measured with.
        cost: In full forwards.
        measured: Plain data on its accuracy and on what it was compared with.
    """
    trunk = known_trunk(transformer_of(pipe))
    facts = {
        "class": class_name(transformer_of(pipe)),
        "blocks": None if trunk is None else len(trunk),
        "fingerprint": architecture_fingerprint(pipe),
        "weights": weights_fingerprint(pipe),
        "branches": branches_of(pipe),
        "sampler": candidate.sampler.describe(),
        "steps": candidate.steps,
        "guidance_scale": guidance_scale,
        "cost": round(cost, 3),
        "measured": measured,
        "date": datetime.date.today().isoformat(),
        "versions": versions_of_results(),
    }
    made_for = json.loads(to_json(facts))  # plain data, without the scalars of NumPy
    return {**made_for, "checksum": _checksum(candidate, made_for)}


def _checksum(candidate: Candidate, made_for: Mapping[str, Any]) -> str:
    """Return a checksum of the flags of a plan and of all that its ``made_for`` says."""
    facts = {key: value for key, value in made_for.items() if key != "checksum"}
    return short_hash(candidate.key() + json.dumps(facts, sort_keys=True))


def branches_of(pipe: Any) -> str:
    """Return the merge of the skip branches on a pipeline's first transformer, or ``none``."""
    trunk = known_trunk(transformer_of(pipe))
    branches = None if trunk is None else trunk.branches
    return NO_BRANCHES if branches is None else branches.config.merge


def _in_words(branches: str) -> str:
    return "no skip branches" if branches == NO_BRANCHES else f"skip branches of the merge {branches}"


def save_plan(plan: Plan, path: str | Path, command: str = "") -> None:
    """Write a plan as a preset that a person can read, and its output branch, if any, beside it.

    Args:
        path: The file, which is replaced if it exists; an output branch goes to the same name with .safetensors.
        command: The command that made it, for the comment on top.
    """
    import yaml

    model = f"--preset {plan.weights}" if plan.weights else "-m MODEL"
    candidate, made_for = _with_branch_beside(plan.candidate, Path(path)), plan.made_for
    data = {
        "about": f"{candidate.describe()}; cost {made_for['cost']:g} full forwards.",
        "source": f"skipdit calibrate, {made_for['date']}.",
        **({"weights": plan.weights} if plan.weights else {}),
        "made_for": dict(made_for),
        "sample": _flags(candidate, made_for["guidance_scale"]),
    }
    lines = [f"# {command}"] if command else []
    lines.append(f"# skipdit sample {model} --plan FILE          (FILE is this file)")
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    with replacing(Path(path)) as part:
        part.write_text("\n".join(lines) + "\n" + text, encoding="utf-8")


def _with_branch_beside(candidate: Candidate, path: Path) -> Candidate:
    """Copy the output branch of a candidate beside the file of its plan, and return the candidate that names it."""
    arguments: Mapping[str, Any] = candidate.sampler.arguments
    if "output_branch" not in arguments:
        return candidate
    contents, file = Path(arguments["output_branch"]).read_bytes(), path.with_suffix(".safetensors")
    with replacing(file) as part:
        part.write_bytes(contents)
    arguments = {**arguments, "output_branch": file.name}
    return replace(candidate, sampler=replace(candidate.sampler, arguments=arguments))


def _flags(candidate: Candidate, guidance_scale: float | None) -> dict[str, str | list[str]]:
    """Return the flags of ``sample`` that a plan holds."""
    guidance = {} if guidance_scale is None else {"guidance-scale": f"{guidance_scale:g}"}
    return {**candidate.flags(), **guidance}


def load_plan(path: str | Path) -> Plan:
    """Read a plan.

    Raises:
        UsageError: There is no such file, or it is no plan: the sentence says what is wrong in it.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"Got the plan {path}, which is no file; 'skipdit calibrate' makes one.")
    return plan_of(load_preset(str(file.absolute())))  # as a path, whatever its suffix


def plan_of(preset: Preset) -> Plan:
    """Return the plan that a preset holds.

    Raises:
        UsageError: It has no ``made_for``, a key that no plan has, or flags that do not fit together or ``made_for``;
            or its output branch is missing, cut short or another one.
    """
    name = f"Plan {preset.name}"
    if not preset.made_for:
        raise UsageError(f"{name} has no 'made_for', so it is no plan; 'skipdit calibrate' makes one.")
    others = [key for key in preset.flags if key != "sample"] + ["model"] * bool(preset.model)
    if others:
        raise UsageError(f"{name} has the key '{others[0]}', which no plan has; remove it.")
    if "sample" not in preset.flags:
        raise UsageError(f"{name} has no 'sample', the flags of the plan; it is cut short: calibrate again.")
    flags = preset.flags["sample"]
    candidate = candidate_of(flags, name)
    _check_made_for(candidate, flags, preset.made_for, name)
    arguments: Mapping[str, Any] = candidate.sampler.arguments
    if "output_branch" in arguments:
        load_output_branch(arguments["output_branch"], arguments.get("output_branch_sha256"))
    return Plan(candidate, preset.made_for, preset.weights, preset.name)


def _check_made_for(candidate: Candidate, flags: Mapping[str, Any], made_for: Mapping[str, Any], name: str) -> None:
    """Refuse flags that say something else than ``made_for``, or that no model of so many blocks takes."""
    advice = "calibrate again, or remove 'made_for', which leaves a plain preset"
    for key, value in {"steps": candidate.steps, "sampler": candidate.sampler.describe()}.items():
        if made_for[key] != value:
            raise UsageError(f"{name} was made for {key} '{made_for[key]}', but its flags say '{value}'; {advice}.")
    if candidate.policy is not None and made_for["blocks"] is not None:
        check_depth(candidate.policy.layers, made_for["blocks"])
    guidance = _flags(candidate, made_for["guidance_scale"]).get("guidance-scale")
    if _checksum(candidate, made_for) != made_for["checksum"] or flags.get("guidance-scale") != guidance:
        raise UsageError(
            f"{name} has other flags or figures than those it was saved with: it is cut short or edited; {advice}."
        )
