"""The settings of ``skipdit sample``: each flag, its default, its help text and its range, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.sampling.cache_settings import CacheSettings
from skipdit_cli.settings import LARGEST_SEED, MODEL, OUTPUT, PIPELINE, SAMPLES, HubSettings, setting, steps_setting

CFG_CHANNELS = ("all", "3")


@dataclass(frozen=True)
class PipelineSettings:
    """The settings that ``skipdit sample`` and ``skipdit bench`` share."""

    prompt: list[str] | None = setting(
        None,
        "Prompt for a text-to-image or text-to-video pipeline; repeat the flag for several.",
        SAMPLES,
        metavar="TEXT",
        recorded=True,
    )
    prompts_file: Path | None = setting(
        None, "Text file with one prompt per line, in place of --prompt.", SAMPLES, metavar="FILE"
    )
    negative_prompt: str | None = setting(
        None, "Negative prompt: what guidance steers away from.", SAMPLES, metavar="TEXT", recorded=True, run=True
    )
    image: Path | None = setting(
        None, "Image to start from (image-to-image or image-to-video).", SAMPLES, metavar="FILE", recorded=True
    )
    strength: float | None = setting(
        None,
        "Share of --image to replace by noise: above 0, up to 1 (all of it). [default: the pipeline's]",
        SAMPLES,
        recorded=True,
        run=True,
    )
    height: int | None = setting(
        None, "Height in pixels. [default: the model's]", SAMPLES, minimum=1, maximum=16_384, recorded=True, run=True
    )
    width: int | None = setting(
        None, "Width in pixels. [default: the model's]", SAMPLES, minimum=1, maximum=16_384, recorded=True, run=True
    )
    num_frames: int | None = setting(
        None, "Frames per video. [default: the model's]", SAMPLES, minimum=1, maximum=100_000, recorded=True, run=True
    )
    scheduler: str | None = setting(
        None,
        "ddim, ddpm, dpm++, dpm++-sde, unipc, deis, euler, euler-a or heun; fitted with a plan's coefficients. "
        "[default: the pipeline's]",
        PIPELINE,
        recorded=True,
    )
    scheduler_spacing: str | None = setting(
        None,
        "Spacing of the timesteps: lu, karras, exponential, beta, leading, linspace or trailing. [default: the "
        "scheduler's]",
        PIPELINE,
        recorded=True,
    )
    scheduler_arg: list[str] | None = setting(
        None,
        "Argument of the scheduler's constructor, its value in YAML, such as solver_order=3; repeat the flag for "
        "several.",
        PIPELINE,
        metavar="KEY=VALUE",
        recorded=True,
    )
    timesteps: str | None = setting(
        None,
        "Explicit timesteps, such as 999,850,600,300, in place of --num-inference-steps; the first is the noisiest.",
        PIPELINE,
        metavar="LIST",
        recorded=True,
    )
    seed: int = setting(
        0,
        "Seed of the first sample; sample i uses seed + i.",
        PIPELINE,
        minimum=0,
        maximum=LARGEST_SEED,
        recorded=True,
        run=True,
    )
    pipeline_arg: list[str] | None = setting(
        None,
        "Another argument of the pipeline's call, its value in YAML; repeat the flag for several.",
        PIPELINE,
        metavar="KEY=VALUE",
        recorded=True,
    )
    vae_tiling: bool = setting(False, "Decode in tiles, which takes less memory.", PIPELINE, recorded=True)
    dtype: str = setting(
        "auto",
        "float32, bfloat16 or float16 (fp32, bf16, fp16); auto is bfloat16 on CUDA and float32 elsewhere.",
        MODEL,
        recorded=True,
    )
    device: str = setting(
        "auto", "cpu, cuda, cuda:N or mps; auto takes CUDA, else MPS, else the CPU.", MODEL, recorded=True
    )
    cpu_offload: str | None = setting(
        None,
        "Keep weights in main memory and move one part of the pipeline (model) or one group of blocks (group) "
        "to the device at a time.",
        MODEL,
        metavar="model|group",
    )
    lora: str | None = setting(None, "LoRA to load: file, folder or hub id.", MODEL, metavar="PATH|ID", recorded=True)
    hub: HubSettings = HubSettings()


@dataclass(frozen=True)
class SampleSettings:
    """The settings of ``skipdit sample``. Those marked ``recorded`` make the same samples again."""

    output: Path | None = setting(
        None,
        "File (.png, .jpg, .webp, .mp4, .gif), or folder for one file per sample, whose interrupted run the same "
        "command resumes. [default: a new folder in outputs/]",
    )
    class_labels: str | None = setting(
        None,
        "Class ids, ranges or names, such as 207,0-3,circle; repeated up to --num-images.",
        SAMPLES,
        metavar="LABELS",
        recorded=True,
    )
    num_inference_steps: int = steps_setting(recorded=True, run=True)
    guidance_scale: float | None = setting(
        None,
        "Scale of classifier-free guidance; 1 turns it off. [default: 4 for class labels, the pipeline's for prompts]",
        PIPELINE,
        recorded=True,
        run=True,
    )
    cfg_channels: str = setting(
        "all",
        "Channels of the noise that guidance acts on: all (diffusers), or 3 (DiT repository).",
        PIPELINE,
        recorded=True,
        run=True,
    )
    batch_size: int | None = setting(
        None, "Samples per batch. [default: 8, or 1 with prompts]", PIPELINE, minimum=1, recorded=True, run=True
    )
    pipeline: PipelineSettings = PipelineSettings()
    num_images: int | None = setting(
        None,
        "Number of images or videos; with prompts, per prompt. [default: 1 per label or prompt]",
        SAMPLES,
        minimum=1,
        recorded=True,
    )
    fps: float | None = setting(
        None, "Frames per second of a video. [default: the pipeline's, or 8]", SAMPLES, recorded=True, run=True
    )
    cache: CacheSettings = CacheSettings()
    vae: str | None = setting(
        None, "VAE to decode with, folder or hub id. [default: the model's]", MODEL, recorded=True
    )
    compile: bool = setting(False, "Compile the transformer with torch.compile.", MODEL, recorded=True)
    context_parallel: str | None = setting(
        None,
        "Split the tokens of each sample among the processes of torchrun, in place of the samples: ulysses or ring.",
        MODEL,
        metavar="ring|ulysses",
    )
    npz: Path | None = setting(
        None,
        "Also write the samples as array arr_0 of an .npz file, uint8 (N, H, W, 3) or (N, F, H, W, 3), for ADM's "
        "evaluator.",
        OUTPUT,
        metavar="FILE",
    )
    format: str | None = setting(
        None, "Format of the images in a folder: png, jpg or webp. [default: png]", OUTPUT, metavar="png|jpg|webp"
    )
    overwrite: bool = setting(False, "Replace an existing output.", OUTPUT)

    def check(self) -> None:
        """Refuse values that no run can use; ranges of numbers are checked where the flags are read.

        Raises:
            UsageError: A guidance scale, frame rate, strength or choice is out of range.
        """
        scale, fps = self.guidance_scale, self.fps
        if scale is not None and scale < 0:
            raise UsageError(f"Got --guidance-scale {scale:g} but expected 1 (off) or more.")
        if self.cfg_channels not in CFG_CHANNELS:
            raise UsageError(f"Got --cfg-channels '{self.cfg_channels}' but expected 3 or all.")
        if fps is not None and not 0 < fps <= 100:
            raise UsageError(f"Got --fps {fps:g} but expected more than 0 and at most 100.")
        check_strength(self.pipeline.strength, self.pipeline.image, self.num_inference_steps)
        check_count(self.pipeline, self.num_inference_steps)


def split_timesteps(text: str) -> list[str]:
    """Return the timesteps in the text of ``--timesteps``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_count(pipeline: PipelineSettings, steps: int) -> None:
    """Refuse a number of denoising steps that is not that of the explicit timesteps, and a strength beside these.

    Raises:
        UsageError: The numbers differ, or there is a strength.
    """
    count = len(split_timesteps(pipeline.timesteps or ""))
    if count == 0:  # an empty list is refused where it is read
        return
    if steps != count:
        raise UsageError(f"Got --num-inference-steps {steps} and {count} --timesteps; leave the number out.")
    if pipeline.strength is not None:
        raise UsageError("Got --strength and --timesteps, which both say where a run starts; give one of the two.")


def count_steps(pipeline: PipelineSettings, steps: int) -> int:
    """Return the number of denoising steps of a run, of which a strength leaves a share."""
    return int(steps * (pipeline.strength or 1))


def check_strength(strength: float | None, image: Path | None, steps: int) -> None:
    """Refuse a strength that does not fit the image and the number of denoising steps.

    Args:
        steps: The number of steps of a whole run, of which the strength leaves a share.

    Raises:
        UsageError: The strength is out of range, has no image, or leaves no step.
    """
    if strength is None:
        return
    if not 0 < strength <= 1:
        raise UsageError(f"Got --strength {strength:g} but expected more than 0 and at most 1.")
    if image is None:
        raise UsageError(f"Got --strength {strength:g} without --image FILE, to which it applies.")
    if int(steps * strength) < 1:
        raise UsageError(f"Got --strength {strength:g}, which leaves no step of {steps}; give more --steps.")
