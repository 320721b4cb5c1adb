"""``skipdit calibrate``: the most accurate plan for a budget of full forwards."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from skipdit_cli import console, files, processes
from skipdit_cli.commands import calibrate_report, options, parsing, pipeline_setup, report_file
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.errors import CheckError, UsageError
from skipdit_cli.formats import markdown_table
from skipdit_cli.planning.calibrate_settings import CalibrateSettings
from skipdit_cli.presets import preset_path
from skipdit_cli.settings import run_arguments
from skipdit_cli.version import versions_of_results


@with_settings(CalibrateSettings)
def calibrate(
    model: options.Model = None,
    preset: options.Preset = None,
    settings: CalibrateSettings = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Find the most accurate plan to sample a model for a budget.

    Searches sampler, timesteps, full steps, live depth and forecast together, by the distance of the final samples to
    the exact solution. An interrupted run goes on where it was.

    skipdit calibrate --preset digits --cost 9 -o plan.yaml

    skipdit sample --preset digits --plan plan.yaml -o digits.png
    """
    settings.check()
    team = processes.join(settings.pipeline.device)
    costs = settings.costs()
    prompts = parsing.read_prompts(settings.pipeline.prompt, settings.pipeline.prompts_file)
    inputs = parsing.read_inputs(settings.pipeline)
    team.on_main(lambda: _claim_output(settings, model, preset))

    from skipdit_cli.families.fingerprint import weights_fingerprint
    from skipdit_cli.models import named_model, open_model
    from skipdit_cli.planning.calibrate import Calibrator, check_full_run
    from skipdit_cli.planning.searching.journal import Journal
    from skipdit_cli.sampling.schedulers.sampler import Sampler

    device, dtype = pipeline_setup.choose_device(settings.pipeline, False)
    outline = pipeline_setup.outline_of(named_model(model, preset), settings.pipeline)
    samples, held_out = _choose_conditions(settings, prompts, outline)
    pipe = pipeline_setup.prepare(
        open_model(model, preset, dtype=dtype, **vars(settings.pipeline.hub)), settings.pipeline, device
    )
    settings = _fill_in_defaults(settings, pipe)
    arguments = {**run_arguments(settings), **inputs}
    steps, sampler = arguments.pop("num_inference_steps"), arguments.pop("scheduler")
    run = {"steps": steps, "scheduler": None if sampler == Sampler() else sampler, **arguments}
    check_full_run(pipe, sampler, steps, inputs.get("arguments"))
    if not team.is_main and not settings.dry_run:
        Calibrator(pipe, samples, held_out, team=team, **run).evaluators.help()
    if not team.is_main:
        return
    duration = _estimate(pipe, settings, samples, len(held_out), costs, arguments)
    if settings.dry_run:
        return
    weights = {"weights": weights_fingerprint(pipe), "dtype": str(dtype), "lora": settings.pipeline.lora}
    basis = {"model": str(named_model(model, preset)), **weights, "samples": samples, **_plain(run)}
    basis["versions"] = versions_of_results()
    journal = Journal(settings.output, basis)
    with TemporaryDirectory() as folder:
        try:
            with console.progress("Calibrate", duration.effort.tries * max(len(costs), 1)) as advance:
                tried = journal.after(advance)
                calibrator = Calibrator(
                    pipe, samples, held_out, known=journal.results, advance=tried, team=team, **run
                )
                found = _find(calibrator, costs, settings, duration.effort, folder)
        except KeyboardInterrupt:
            journal.write()
            raise
        written = _save(pipe, found, settings, preset)
        journal.remove()
        if settings.html is not None:
            _save_html(found, calibrator, written, settings, model or preset)
    _report(found, settings, written)


def _claim_output(settings: CalibrateSettings, model: str | None, preset: str | None) -> None:
    """Check that the output may be written, and lock it."""
    output, shared = settings.output, settings.pipeline
    reads = {"model": model, "--lora": shared.lora, "--preset": preset and preset_path(preset)}
    reads |= {"--prompts-file": shared.prompts_file}
    report_file.check_html(settings.html, settings.overwrite, reads)
    if output is None:
        return
    files.check_apart(output, reads)
    if output.suffix:
        files.check_file(output, settings.overwrite)
        if settings.output_branch:
            files.check_file(output.with_suffix(".safetensors"), settings.overwrite)
    else:
        files.check_folder(output, files.PLANS, settings.overwrite)
    if not settings.dry_run:
        files.hold(output)


def _choose_conditions(settings: CalibrateSettings, prompts: list[str] | None, outline) -> tuple[list, list]:
    """Return one condition per sample to search with, and per held-out sample: other prompts where there are two, and
    other classes where there are enough of them."""
    pipeline_setup.check_conditions(outline, settings.class_labels, prompts)
    classes = outline.transformer.config.get("num_embeds_ada_norm")
    if prompts:
        search, report = prompts[::2], prompts[1::2] or prompts
        if len(prompts) == 1:
            console.warn("there is one prompt, so the plan is searched and reported on the same; give several.")
    elif classes is None:
        search = report = [None]
    elif settings.class_labels is not None:
        search = report = pipeline_setup.parse_labels(settings.class_labels, outline)
    else:
        wanted = settings.num_samples + settings.num_held_out
        labels = pipeline_setup.spread_labels(classes, min(wanted, classes))
        few = classes < wanted  # then both take all classes, so that the plan is made for all
        search, report = (labels, labels) if few else (labels[::2], labels[1::2])
    return (
        [search[at % len(search)] for at in range(settings.num_samples)],
        [report[at % len(report)] for at in range(settings.num_held_out)],
    )


def _fill_in_defaults(settings: CalibrateSettings, pipe) -> CalibrateSettings:
    from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
    from skipdit_cli.sampling.run_settings import default_guidance

    scale = default_guidance(pipe) if settings.guidance_scale is None else settings.guidance_scale
    size = settings.batch_size or (1 if is_text_conditional(pipe) else None)
    return replace(settings, guidance_scale=scale, batch_size=size)


def _plain(run: dict) -> dict[str, object]:
    """Return the arguments of a calibration as plain data."""
    return {
        name: value if isinstance(value, (int, float, str, type(None))) else repr(value) for name, value in run.items()
    }


def _find(calibrator, costs: list[float], settings: CalibrateSettings, effort, folder: str):
    """Return the plans for the budgets, or for ``--min-psnr``; with output branches in a folder, if asked for."""
    if settings.output_branch:
        calibrator.check_output_branch()
    found = calibrator.for_costs(costs, effort) if costs else calibrator.for_accuracy(settings.min_psnr, effort)
    return calibrator.with_output_branches(found, Path(folder)) if settings.output_branch else found


def _estimate(pipe, settings: CalibrateSettings, samples: list, held_out: int, costs: list[float], arguments: dict):
    """Say about how long a calibration takes, and return it; with ``--dry-run`` emit it as well."""
    from skipdit_cli.planning.duration import within
    from skipdit_cli.planning.searching.effort import EFFORTS

    limit = settings.time_limit
    duration = within(limit, pipe, samples, held_out, costs, settings.output_branch, **arguments)
    forwards, seconds, minutes = duration.forwards, duration.seconds_per_forward, duration.minutes
    tries = duration.effort.tries
    console.say(
        f"About {minutes:.2g} minutes: {tries} candidates for each budget, {forwards:,.0f} forwards of one sample, "
        f"{seconds:.2g} s each."
    )
    if minutes > limit:
        console.warn(f"that is more than the --time-limit of {limit:g} minutes; --num-samples makes it shorter.")
    elif duration.effort != EFFORTS[0]:
        console.say(f"More candidates do not fit the --time-limit of {limit:g} minutes.")
    if settings.dry_run:
        figures = {"forwards": forwards, "seconds_per_forward": seconds, "minutes": minutes, "tries": tries}
        console.emit({"command": "calibrate", **figures})
    return duration


def _save(pipe, found, settings: CalibrateSettings, preset: str | None) -> list[Path]:
    """Write one plan for each budget, into a file or a folder, and return the files."""
    from skipdit_cli.cards.plans import PLANS, put_plans
    from skipdit_cli.planning.plan import Plan, make_made_for, save_plan
    from skipdit_cli.presets import load_preset

    weights = load_preset(preset).weights if preset is not None else ""
    plans = {}
    for cost, best in found.plans.items():
        plan = best["plan"]
        made_for = make_made_for(pipe, plan.candidate, settings.guidance_scale, plan.cost, _measured(found, cost))
        plans[cost] = Plan(plan.candidate, made_for, weights)
    output = settings.output
    command = shlex.join(["skipdit", *sys.argv[1:]])
    if output.suffix:
        output.parent.mkdir(parents=True, exist_ok=True)
        former = _output_branch_beside(output)
        plan = next(iter(plans.values()))
        save_plan(plan, output, command)
        if former is not None and "output_branch" not in plan.candidate.sampler.arguments:
            former.unlink()
        if output.parent.name == PLANS:
            put_plans(output.parent.parent)
        return [output]
    with files.fill_folder(output, files.PLANS) as folder:
        for cost, plan in plans.items():
            save_plan(plan, folder / f"cost-{cost:g}.yaml", command)
        (folder / "plans.md").write_text(markdown_table(*calibrate_report.table(found)) + "\n", encoding="utf-8")
    return [output / f"cost-{cost:g}.yaml" for cost in plans]


def _output_branch_beside(output: Path) -> Path | None:
    """Return the file of the output branch of a plan that is replaced, or None where it has none."""
    from skipdit_cli.planning.plan import load_plan

    file = output.with_suffix(".safetensors")
    if not (output.exists() and file.exists()):
        return None
    try:
        named = load_plan(output).candidate.sampler.arguments.get("output_branch")
    except UsageError:  # a damaged plan, whose files stay
        return None
    return file if named is not None and Path(str(named)).name == file.name else None


def _measured(found, cost: float) -> dict[str, object]:
    """Return how the plan of a budget was measured, and what it is compared with, as its file records it."""
    best = found.plans[cost]
    measured: dict[str, object] = {
        name: {"what": each.candidate.describe(), "cost": round(each.cost, 3), "psnr_exact": round(each.mean_db, 2)}
        for name, each in {**best, "full": found.full}.items()
        if name != "plan"
    }
    plan = best["plan"]
    return {
        "psnr_exact": round(plan.mean_db, 2),
        "deviation": round(plan.deviation_db, 2),
        "samples": found.held_out,
        "searched_psnr_exact": round(plan.searched_db, 2),
        "exact_steps": found.exact.steps,
        "exact_agreement_db": round(found.exact.agreement_db, 1),
        **measured,
    }


def _save_html(found, calibrator, written: list[Path], settings: CalibrateSettings, model: str | None) -> None:
    """Write the report of ``--html``."""
    budgets = {"budgets": ", ".join(f"{cost:g}" for cost in found.plans)}
    report = calibrate_report.make_report(found, calibrator, written, model, budgets | _plain(run_arguments(settings)))
    report_file.save_html(report, settings.html)


def _report(found, settings: CalibrateSettings, written: list[Path]) -> None:
    """Print the table, and say what to do with the plans; emit the JSON object.

    Raises:
        CheckError: No plan has the accuracy that was asked for.
    """
    console.table(*calibrate_report.table(found))
    console.say(calibrate_report.exact_sentence(found))
    for note in found.notes:
        console.say(note)
    for path in written:
        console.say(f"Wrote {path}; use it with 'skipdit sample --plan {path}'.")
    rows = {
        f"{cost:g}": {name: {**vars(each), "candidate": each.candidate.flags()} for name, each in best.items()}
        for cost, best in found.plans.items()
    }
    full = {**vars(found.full), "candidate": found.full.candidate.flags()}
    console.emit({"command": "calibrate", "files": [str(path) for path in written], "plans": rows, "full": full})
    best = max((each["plan"] for each in found.plans.values()), key=lambda each: each.mean_db)
    if settings.min_psnr is not None and best.mean_db < settings.min_psnr:
        raise CheckError(
            f"The best plan found has {best.mean_db:.1f} dB on held-out samples, and {best.searched_db:.1f} on those "
            f"of the search, but --min-psnr asks for {settings.min_psnr:g}; it was saved. A --cost of more than "
            f"{best.cost:.3g} may reach it."
        )
