"""``skipdit sample``: images from a class-conditional model, with a chosen cache depth."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Annotated

import typer

from skipdit_cli import __version__, console, media
from skipdit_cli.commands import options
from skipdit_cli.errors import UsageError


def _replay(ctx: typer.Context, value: Path | None) -> Path | None:
    if value is not None and not ctx.resilient_parsing:
        recorded = media.read_metadata(value).get("settings", {})
        known = {parameter.name for parameter in ctx.command.params}
        ctx.default_map = {**(ctx.default_map or {}), **{k: v for k, v in recorded.items() if k in known}}
    return value


ClassLabels = Annotated[
    str | None, typer.Option(help="Class ids, or names the model knows: 207,360. Repeated up to --num-images.")
]
NumImages = Annotated[int | None, typer.Option(help="How many; one per label if not given.", show_default=False)]
Guidance = Annotated[float, typer.Option(help="Classifier-free guidance; 1 turns it off.")]
CfgChannels = Annotated[str, typer.Option(help="Guide 'all' noise channels (diffusers), or '3' (DiT repository).")]
Scheduler = Annotated[str | None, typer.Option(help="ddim, ddpm, dpm++, unipc, ...; the model's own if not given.")]
Steps = Annotated[int, typer.Option("--num-inference-steps", "--steps", help="Denoising steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Images made at once; all if not given.", show_default=False)]
Npz = Annotated[Path | None, typer.Option(help="Also write arr_0, uint8 [N,H,W,3], for ADM's evaluator.")]
From = Annotated[
    Path | None,
    typer.Option("--from", help="Make a picture of ours again; flags win over it.", callback=_replay, is_eager=True),
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the transformer first.")]


def sample(
    model: options.Model = None,
    preset: options.Preset = None,
    from_file: From = None,
    output: options.Output = None,
    class_labels: ClassLabels = None,
    num_images: NumImages = None,
    num_inference_steps: Steps = 50,
    guidance_scale: Guidance = 4.0,
    cfg_channels: CfgChannels = "all",
    scheduler: Scheduler = None,
    seed: options.Seed = 0,
    batch_size: BatchSize = None,
    cache_layers: options.CacheLayers = None,
    cache_interval: options.CacheInterval = None,
    cache_window: options.CacheWindow = None,
    full_steps: options.FullSteps = None,
    forecast: options.Forecast = "reuse",
    cache_target: options.CacheTarget = "boundary",
    npz: Npz = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    compile: Compile = False,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Sample images, with a chosen cache depth.

    --cache-layers N turns the cache on: every second step then runs only the first and the last N
    blocks, which is the paper's method with n = 2 (its n is --cache-interval).

    skipdit sample --preset digits --class-labels 0,1,2,3 --cache-layers 1 -o digits.png
    """
    settings = {k: v for k, v in locals().items() if k not in _NOT_RECORDED and v is not None}
    policy = options.cache_policy(cache_layers, cache_interval, cache_window, full_steps, forecast, cache_target)
    _check(num_images, num_inference_steps, guidance_scale, cfg_channels, batch_size, seed)
    target = _target(output, npz, overwrite)

    from skipdit_cli.checkpoints import open_model
    from skipdit_cli.pipelines import class_image, schedulers
    from skipdit_cli.pipelines import device as devices

    schedulers.check_name(scheduler)
    where, precision = devices.place(device, dtype)
    pipe = open_model(model, preset, dtype=precision, revision=revision, local_files_only=local_files_only)
    devices.move(pipe, where)
    labels = _labels(class_labels, num_images, pipe)
    if compile:
        import torch

        pipe.transformer.forward = torch.compile(pipe.transformer.forward)
    batches = -(-len(labels) // (batch_size or len(labels)))
    with console.progress("denoise", num_inference_steps * batches) as advance:
        made = class_image.generate(
            pipe,
            labels,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            cfg_channels=cfg_channels,
            scheduler=scheduler,
            seed=seed,
            batch_size=batch_size,
            policy=policy,
            advance=advance,
        )
    settings["class_labels"] = ",".join(map(str, labels))
    written = _write(made.images, target, npz, settings, labels, seed)
    _report(pipe, made, written, settings)


_NOT_RECORDED = ("from_file", "output", "npz", "overwrite", "json", "debug", "num_images", "local_files_only")


def _check(num_images, num_inference_steps, guidance_scale, cfg_channels, batch_size, seed) -> None:
    for flag, value in {
        "--num-images": num_images,
        "--num-inference-steps": num_inference_steps,
        "--batch-size": batch_size,
    }.items():
        if value is not None and value < 1:
            raise UsageError(f"Got {flag} {value} but expected 1 or more.")
    if not 1 <= guidance_scale < float("inf"):
        raise UsageError(f"Got --guidance-scale {guidance_scale:g} but expected 1 (off) or more.")
    if not 0 <= seed < 2**32:
        raise UsageError(f"Got --seed {seed} but expected 0..{2**32 - 1}.")
    if cfg_channels not in ("3", "all"):
        raise UsageError(f"Got --cfg-channels '{cfg_channels}' but expected 3 or all.")


def _target(output: Path | None, npz: Path | None, overwrite: bool) -> Path:
    """Where the pictures go: one PNG, or a folder."""
    if output is None:
        output = Path("outputs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    if output.suffix and output.suffix.lower() != ".png":
        raise UsageError(f"Got --output {output} but expected a .png file or a folder.")
    if npz is not None and npz.suffix.lower() != ".npz":
        raise UsageError(f"Got --npz {npz} but expected a .npz file.")
    for path in filter(None, (output, npz)):
        media.check_target(path, overwrite)
    return output


def _labels(text: str | None, num_images: int | None, pipe) -> list[int]:
    """One label an image: the given ones in turn, or the model's classes in turn."""
    classes = pipe.transformer.config.num_embeds_ada_norm
    names = getattr(pipe, "labels", None) or {}
    if text is None:
        labels = list(range(classes))[: num_images or 1]
    else:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        labels = options.parse_integers(",".join(str(names.get(part, part)) for part in parts), "--class-labels")
    if not labels:
        raise UsageError(f"Got an empty --class-labels but expected ids of 0..{classes - 1}.")
    count = num_images or len(labels)
    return [labels[i % len(labels)] for i in range(count)]


def _write(images, target: Path, npz: Path | None, settings: dict, labels: list[int], seed: int) -> list[Path]:
    """One picture to a file; to a folder, every picture (each with what makes it alone) and the grid of them."""
    scale = max(1, 256 // images.shape[1]) if images.shape[1] < 64 and len(images) > 1 else 1  # grids are for eyes
    history = {"version": __version__, "settings": settings}
    written = []
    if target.suffix:
        target.parent.mkdir(parents=True, exist_ok=True)
        written.append((media.grid(images, scale=scale), target, history))
    else:
        target.mkdir(parents=True, exist_ok=True)
        for i, label in enumerate(labels):
            own = {**history, "settings": {**settings, "class_labels": str(label), "seed": seed + i}}
            written.append((media.grid(images[i : i + 1]), target / f"{i:04d}.png", own))
        written.append((media.grid(images, scale=scale), target / "grid.png", history))
    for picture, path, metadata in written:
        media.save_png(picture, path, metadata)
    if npz is not None:
        npz.parent.mkdir(parents=True, exist_ok=True)
        media.save_npz(images, npz)
    return [path for _, path, _ in written] + ([npz] if npz else [])


def _report(pipe, made, written: list[Path], settings: dict) -> None:
    from skipdit_cli.pipelines.class_image import is_pixel_space

    if pipe.vae is None and not is_pixel_space(pipe):
        console.warn("this model works on latents and has no VAE here: the pictures show its first latent channels.")
    count = len(made.latents)
    console.say(f"{count} image{'s' * (count > 1)} in {made.denoise_seconds:.2f} s of denoising: {written[-1]}")
    if made.report:
        console.say(str(made.report))
        if not made.report.reused_steps:
            console.warn("no step was reused; see --cache-interval, --cache-window and --full-steps.")
    console.emit(
        {
            "command": "sample",
            "files": [str(path) for path in written],
            "settings": settings,
            "denoise_seconds": made.denoise_seconds,
            "total_seconds": made.total_seconds,
            "skip_branches": hasattr(pipe.transformer, "skip_branches"),
            "cache": vars(made.report) if made.report else None,
        }
    )
