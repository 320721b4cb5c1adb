"""The settings of ``skipdit calibrate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.sample_settings import PipelineSettings
from skipdit_cli.settings import OUTPUT, PIPELINE, SAMPLES, setting, steps_setting

BUDGET = "Budget"


@dataclass(frozen=True)
class CalibrateSettings:
    """The settings of ``skipdit calibrate``: one of the three budgets, and what to sample with."""

    output: Path | None = setting(
        None, "The plan, a .yaml file; for several budgets a folder of plans and their table.", metavar="FILE|FOLDER"
    )
    html: Path | None = setting(
        None,
        "Report with pictures and plots, one HTML file that opens from disk. [default: none]",
        OUTPUT,
        metavar="FILE",
    )
    cost: str | None = setting(
        None,
        "Budget in full forwards of the model, such as 9, or several: 6,9,12. Or give --speedup or --min-psnr.",
        BUDGET,
        metavar="LIST",
    )
    speedup: str | None = setting(
        None, "Budget as a speedup over the full run: --num-inference-steps over the cost.", BUDGET, metavar="LIST"
    )
    min_psnr: float | None = setting(
        None,
        "PSNR to the exact solution, in dB: find the smallest budget that reaches it. Exits with code 3 if none does.",
        BUDGET,
        minimum=0,
        maximum=200,
    )
    class_labels: str | None = setting(
        None,
        "Class ids, ranges or names to sample with, such as 207,0-3,circle. [default: spread over all classes]",
        SAMPLES,
        metavar="LABELS",
    )
    num_samples: int = setting(24, "Samples to search with.", SAMPLES, minimum=2, maximum=4096)
    num_held_out: int = setting(
        32, "Other samples, of other seeds, that the plan is reported on.", SAMPLES, minimum=2, maximum=4096
    )
    num_inference_steps: int = steps_setting("Denoising steps of the full run.", minimum=2, run=True)
    guidance_scale: float | None = setting(
        None,
        "Scale of classifier-free guidance that the plan is made for. [default: as for sample]",
        PIPELINE,
        minimum=0,
        run=True,
    )
    batch_size: int | None = setting(
        None, "Samples per batch. [default: all at once, or 1 with prompts]", PIPELINE, minimum=1, run=True
    )
    pipeline: PipelineSettings = PipelineSettings()
    output_branch: bool = setting(
        False,
        "Fit an output branch to a plan that is a fitted sampler: a linear correction of each of its steps, kept in "
        "a .safetensors file beside the plan where it is more accurate on the held-out samples.",
        OUTPUT,
    )
    time_limit: float = setting(
        60, "Minutes that it may take, about: with few, it tries less.", "Search", minimum=0, maximum=1e6
    )
    dry_run: bool = setting(False, "Say about how long it takes, and stop.", "Search")
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)

    HELP: ClassVar[dict[str, str | None]] = {
        "scheduler": "Search with this scheduler alone, without fitted samplers: ddim, dpm++, unipc, deis or euler. "
        "[default: all that the pipeline takes, and fitted]",
        "scheduler_spacing": "Spacing of the timesteps of --scheduler: lu, karras, exponential, beta, leading, "
        "linspace or trailing. [default: searched]",
        "timesteps": None,
        "image": None,
        "strength": None,
    }
    """Help texts that differ from those of ``sample``; None for a flag that is refused."""

    def check(self) -> None:
        """Refuse values that no calibration can use.

        Raises:
            UsageError: There is no budget or several kinds of it, or no output.
        """
        given = [flag for flag in ("cost", "speedup", "min_psnr") if getattr(self, flag) is not None]
        if len(given) != 1:
            names = " and ".join("--" + name.replace("_", "-") for name in given) or "no budget"
            raise UsageError(f"Got {names} but expected one of --cost, --speedup and --min-psnr, such as --cost 9.")
        if self.output is None and not self.dry_run:
            raise UsageError("Got no --output for the plan; give -o plan.yaml.")
        if self.pipeline.image is not None:
            raise UsageError("Got --image, but a plan is made for runs from noise; leave it out.")
        if self.pipeline.timesteps is not None:
            raise UsageError("Got --timesteps, which calibration searches; leave it out.")
        several = len(self.costs()) > 1
        if self.output is not None and several == (self.output.suffix in (".yaml", ".yml")):
            expected = "a folder for several budgets" if several else "a .yaml file for one budget"
            raise UsageError(f"Got --output {self.output} but expected {expected}.")

    def costs(self) -> list[float]:
        """Return the budgets in full forwards; none for ``--min-psnr``.

        Raises:
            UsageError: One is no number, or below 1, or not below the full run.
        """
        flag, text = ("--cost", self.cost) if self.cost is not None else ("--speedup", self.speedup)
        if text is None:
            return []
        try:
            numbers = [float(part) for part in text.split(",") if part.strip()]
        except ValueError as cause:
            raise UsageError(f"Got {flag} '{text}' but expected numbers separated by commas, such as 6,9.") from cause
        if not numbers or not all(0 < number < 1e9 for number in numbers):
            raise UsageError(f"Got {flag} '{text}' but expected numbers above 0, such as {flag} 5.")
        steps = self.num_inference_steps
        costs = [steps / number if self.speedup is not None else number for number in numbers]
        for number, cost in zip(numbers, costs):
            if not 1 <= cost < steps:
                if self.speedup is None:
                    got, expected = "", f"1 or more and less than the full run of {steps} steps"
                else:
                    got = f", a cost of {cost:g} full forwards"
                    expected = f"more than 1 and at most {steps}, the steps of the full run"
                raise UsageError(f"Got {flag} {number:g}{got}, but expected {expected}.")
        return sorted(set(costs))
