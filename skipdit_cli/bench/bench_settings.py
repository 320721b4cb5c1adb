"""The settings of ``skipdit bench``: each flag, its default, its help text and its range, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.bench.peers.known_peers import PEERS, parse_peers
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.sample_settings import PipelineSettings, check_count, check_strength
from skipdit_cli.settings import CACHE, MODEL, OUTPUT, PIPELINE, SAMPLES, setting, steps_setting

MEASUREMENT = "Measurement"


@dataclass(frozen=True)
class BenchSettings:
    """The settings of ``skipdit bench``. Those marked ``recorded`` stand in its report, beside those of the run."""

    output: Path | None = setting(
        None, "Folder for the report: bench.json, bench.md and bench.png. [default: no report is written]"
    )
    html: Path | None = setting(
        None,
        "Report with pictures and plots, one HTML file that opens from disk. [default: none]",
        OUTPUT,
        metavar="FILE",
    )
    class_labels: str | None = setting(
        None,
        "Class ids, ranges or names, one class per sample, such as 207,0-3,circle. [default: spread over its classes]",
        SAMPLES,
        metavar="LABELS",
    )
    random_weights: bool = setting(
        False,
        "Time the model of --preset at full size with random weights; nothing is downloaded.",
        MODEL,
        recorded=True,
    )
    merge: str = setting("residual", "Skip branches with --random-weights: residual, replace or none.", MODEL)
    vanilla: str | None = setting(
        None,
        "Model for the rows without skip branches. [default: --model without its branches]",
        MODEL,
        metavar="PATH|ID",
    )
    compile: bool = setting(False, "Compile the transformer with torch.compile.", MODEL, recorded=True)
    cache: str | None = setting(
        None,
        "List of levels of the cache: fast, balanced, quality. [default: none]",
        CACHE,
        metavar="LIST",
    )
    cache_layers: str = setting(
        "1",
        "List of N or F:B: the first and the last blocks that run on a reused step.",
        CACHE,
        metavar="LIST",
    )
    plan: list[str] | None = setting(
        None, "Plan of 'skipdit calibrate' to add as a row; repeat the flag for several.", CACHE, metavar="FILE"
    )
    cache_interval: str | None = setting(
        None,
        "List of K: every K-th step is full (the paper's n). [default: 2,3,5, or none with another rule]",
        CACHE,
        metavar="LIST",
    )
    full_steps: str | None = setting(
        None, "List of M: M full steps, denser towards the end. [default: none]", CACHE, metavar="LIST"
    )
    cache_threshold: str | None = setting(
        None,
        "List of changes of the output of the first blocks, summed since the last full step, that make a step full.",
        CACHE,
        metavar="LIST",
    )
    target_speedup: str | None = setting(
        None,
        "List of speedups, counted in FLOPs, each reached by a --cache-threshold that is found in a short run first.",
        CACHE,
        metavar="LIST",
    )
    forecast: str = setting(
        "taylor2",
        "List of ways to predict the cached tensor on a reused step: reuse, linear, taylor2.",
        CACHE,
        metavar="LIST",
    )
    cache_target: str | None = setting(
        None,
        "List of what is predicted: the boundary tensor, or its residual over the output of the first blocks. "
        "[default: boundary for reuse, else residual]",
        CACHE,
        metavar="LIST",
    )
    peers: str | None = setting(
        None,
        f"List of caches of other libraries to run beside: {', '.join(PEERS)}, or all. [default: none]",
        CACHE,
        metavar="LIST",
    )
    num_inference_steps: int = steps_setting(run=True)
    guidance_scale: float | None = setting(
        None,
        "Scale of classifier-free guidance; 1 turns it off. [default: as for sample; 1 with --random-weights]",
        PIPELINE,
        minimum=0,
        run=True,
    )
    batch_size: int | None = setting(
        None, "Samples per batch. [default: 4, or 1 with --random-weights]", PIPELINE, minimum=1, run=True
    )
    pipeline: PipelineSettings = PipelineSettings()
    rounds: int | None = setting(
        None,
        "Runs of each case that are timed. [default: 3, or as many as fit into 5 minutes]",
        MEASUREMENT,
        minimum=1,
        maximum=10_000,
    )
    warmup: int = setting(
        1,
        "Short runs of each case before those that are timed; at least 1 with --compile.",
        MEASUREMENT,
        minimum=0,
        maximum=10_000,
        recorded=True,
    )
    overhead: bool = setting(
        False, "Print the time that the cache spends in Python per block, beside that of FirstBlockCache.", MEASUREMENT
    )
    exact: bool | None = setting(
        None,
        "Measure the distance to the exact solution of the sampling ODE, psnr_exact, and add the rows that it judges. "
        "[default: on, except with --random-weights or where it takes over 5 minutes]",
        MEASUREMENT,
    )
    min_speedup: float | None = setting(
        None, "Exit with code 3 unless a cached row is this many times as fast as vanilla.", MEASUREMENT, minimum=0
    )
    min_psnr: float | None = setting(
        None, "Exit with code 3 unless the same row has at least this PSNR in dB.", MEASUREMENT
    )
    picture: Path | None = setting(
        None,
        "Picture of the main rows from the same noise, each with its error, cost and accuracy: FILE.png, and on black "
        "FILE-dark.png.",
        OUTPUT,
        metavar="FILE.png",
    )
    update_card: bool = setting(False, "Write the table into README.md of the --model folder.", OUTPUT)
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)

    def check(self) -> None:
        """Refuse values that no run can use; ranges of numbers are checked where the flags are read.

        Raises:
            UsageError: The strength does not fit, random weights are given a prompt, or a peer is unknown or has to be
                compiled.
        """
        shared = self.pipeline
        if self.random_weights and (shared.prompt or shared.prompts_file or shared.negative_prompt):
            raise UsageError("Got a prompt with --random-weights, which has no text encoder; leave it out.")
        if parse_peers(self.peers) and self.compile:
            raise UsageError("Got --peers with --compile, but peers run eagerly; leave one of the two out.")
        if self.picture is not None and self.picture.suffix != ".png":
            raise UsageError(f"Got --picture {self.picture} but expected a .png file, such as --picture bench.png.")
        check_strength(shared.strength, shared.image, self.num_inference_steps)
        check_count(shared, self.num_inference_steps)

    def picture_paths(self) -> list[Path]:
        """Return the files of ``--picture``: the light and the dark one; none without the flag."""
        path = self.picture
        return [] if path is None else [path, path.with_name(f"{path.stem}-dark{path.suffix}")]
