"""``skipdit play``: a local page with a slider for the speedup, the uncached picture beside the cached one."""

from __future__ import annotations

from dataclasses import dataclass

import typer

from skipdit_cli import console
from skipdit_cli.commands import options, play_sample
from skipdit_cli.commands.flags import with_settings
from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.sample_settings import PipelineSettings
from skipdit_cli.settings import CACHE, MODEL, OUTPUT, PIPELINE, SAMPLES, setting

DEFAULT_PRESET = "digits"


@dataclass(frozen=True)
class PlaySettings:
    """The settings of ``skipdit play``."""

    plan: list[str] | None = setting(
        None,
        "Plan of 'skipdit calibrate', or a folder of plans; repeat the flag for several. The slider chooses by cost.",
        CACHE,
        metavar="FILE|FOLDER",
    )
    class_labels: str | None = setting(
        None, "Class id or class name that the page begins with.", SAMPLES, metavar="LABEL"
    )
    num_inference_steps: int | None = setting(
        None,
        "Denoising steps of the uncached picture. [default: as for sample]",
        PIPELINE,
        names=("--num-inference-steps", "--steps"),
        minimum=2,
        maximum=10_000,
    )
    guidance_scale: float | None = setting(
        None, "Guidance scale that the page begins with. [default: as for sample]", PIPELINE, minimum=0
    )
    pipeline: PipelineSettings = PipelineSettings()
    vae: str | None = setting(None, "VAE to decode with, folder or hub id. [default: the model's]", MODEL)
    port: int | None = setting(
        None, "Port on 127.0.0.1. [default: the first free one from 7860]", OUTPUT, minimum=1, maximum=65_535
    )
    open: bool = setting(True, "Open the page in a browser.", OUTPUT)


@with_settings(PlaySettings)
def play(
    ctx: typer.Context,
    model: options.Model = None,
    preset: options.Preset = None,
    settings: PlaySettings = None,
    debug: options.Debug = False,
) -> None:
    """Compare cached and uncached pictures in a browser, by a slider.

    The slider sets the speedup, from 1 to 10 times; the page shows both pictures, the full steps, and the
    'skipdit sample' command that makes the cached one. It is served on 127.0.0.1 alone, until Ctrl-C.

    Without a model it shows the embedded one, --preset digits. Needs pip install 'skipdit-cli[play]'.

    skipdit play facebook/DiT-XL-2-256 --plan plans
    """
    if settings.pipeline.prompts_file is not None:
        raise UsageError("Got --prompts-file, but the page shows one prompt; give --prompt TEXT.")
    preset = DEFAULT_PRESET if model is None and preset is None else preset
    plans = play_sample.read_plans(settings.plan)
    play_sample.check_packages()

    from skipdit_cli.play.play_page import make_page
    from skipdit_cli.play.serve import choose_port, serve

    port = choose_port(settings.port)
    player = play_sample.open_player(ctx, settings, plans, model, preset)
    serve(make_page(player), port, settings.open, lambda url: console.say(f"The page is at {url}; Ctrl-C ends it."))
