"""The models whose weights are released, with their official schedules and what the paper's figures say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.presets import load_preset

HUB = "https://huggingface.co"
SKIP_DIT = f"{HUB}/GuanjieChen/Skip-DiT"
VAE, TEXT = "sd-vae-ft-mse", "Latte-1"
"""The folders of the VAE and of the text encoder that released files come without."""
COMPANIONS = {VAE: f"{HUB}/stabilityai/sd-vae-ft-mse", TEXT: f"{HUB}/maxin-cn/Latte-1"}
"""Where they are got."""
CLASSES, UNCONDITIONAL, PROMPTS = "classes", "unconditional", "prompts"
"""What the samples of a model depend on."""
UNCACHED = "uncached"
TRAINING_TIMESTEPS = 1000


@dataclass(frozen=True)
class Released:
    """A model whose weights are released.

    Args:
        file: The file, or the pipeline folder, in the folder of the weights.
        address: Where it is got.
        weight_bytes: The size of its converted weights in float32; 0 where nothing is converted.
        preset: The preset of its official schedule, with ``{n}`` for the interval.
        intervals: The intervals that have a preset.
        kind: What its samples depend on: ``CLASSES``, ``UNCONDITIONAL`` or ``PROMPTS``.
        classes: Its classes, if it is class-conditional.
        sample_bytes: The bytes of a sample in 8 bits.
        is_video: Whether it makes videos.
        companions: The folders that it needs besides.
        full_macs, reused_macs: Multiply-adds of a full and of a reused step, of one sample without guidance, as
            ``StepFlops`` counts them.
        last_timestep: The timestep of the last denoising step: the scheduler's ``steps_offset``.
        speedups: The speedups in the paper's figures, by interval.
        psnrs: The PSNR to the uncached samples in the paper's figures, in dB, by interval.
    """

    file: str
    address: str
    weight_bytes: float
    preset: str
    intervals: tuple[int, ...]
    kind: str
    sample_bytes: int
    full_macs: int
    reused_macs: int
    classes: int = 0
    is_video: bool = False
    companions: tuple[str, ...] = ()
    last_timestep: int = 0
    speedups: Mapping[int, float] = field(default_factory=dict)
    psnrs: Mapping[int, float] = field(default_factory=dict)


def _latte(file: str, preset: str, kind: str = UNCONDITIONAL, classes: int = 0) -> Released:
    """Return a class-conditional or unconditional Latte of 16 frames of 256x256."""
    return Released(
        file,
        SKIP_DIT,
        2.77e9,
        preset,
        (2, 3, 4, 5, 6),
        kind,
        16 * 256 * 256 * 3,
        1_938_926_813_184,
        277_187_346_432,
        classes,
        True,
        (VAE,),
    )


MODELS = {
    "c2i": Released(
        "DiT-XL-2-skip.pt",
        SKIP_DIT,
        2.85e9,
        "skip-dit-c2i-n{n}",
        (2, 3, 4, 5, 6),
        CLASSES,
        256 * 256 * 3,
        128_179_519_488,
        36_635_885_568,
        1000,
        companions=(VAE,),
        speedups={2: 1.46, 3: 1.73, 4: 1.93, 5: 2.03},
    ),
    "ffs": _latte("ffs-skip.pt", "skip-dit-c2v-n{n}"),
    "skytimelapse": _latte("skytimelapse-skip.pt", "skip-dit-c2v-n{n}"),
    "taichi": _latte("taichi-skip.pt", "skip-dit-c2v-n{n}"),
    "ucf101": _latte("ucf101-skip.pt", "skip-dit-ucf101-n{n}", CLASSES, 101),
    "t2v": Released(
        "Latte-skip.pt",
        SKIP_DIT,
        4.38e9,
        "skip-dit-t2v-n{n}-700-50",
        (2, 3, 4),
        PROMPTS,
        16 * 512 * 512 * 3,
        17_808_323_788_800,
        1_273_546_948_608,
        is_video=True,
        companions=(TEXT,),
        speedups={2: 1.49, 3: 1.72, 4: 1.90},
        psnrs={2: 29.5, 3: 27.5, 4: 26.0},
    ),
    "hunyuan": Released(
        "HunyuanDiT-v1.2-Diffusers",
        f"{HUB}/Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers",
        0,
        "skip-hunyuan-dit-n{n}",
        (2,),
        PROMPTS,
        1024 * 1024 * 3,
        7_182_900_482_048,
        368_414_412_800,
        last_timestep=1,
    ),
}
"""The released models by name."""


def model_named(name: str) -> Released:
    """Return a released model.

    Raises:
        UsageError: There is none of this name.
    """
    if name not in MODELS:
        raise UsageError(
            f"Got 'experiment: models' with {name} but expected some of {', '.join(MODELS)}.{nearest(name, MODELS)}"
        )
    return MODELS[name]


def cases_of(model: Released, intervals: tuple[int, ...]) -> dict[str, str | None]:
    """Return the ways to sample a model by name: without a cache, and by the preset of each interval that has one."""
    chosen = [n for n in model.intervals if n in intervals]
    return {UNCACHED: None, **{f"n{n}": model.preset.format(n=n) for n in chosen}}


def sampling_flags(model: Released) -> dict[str, Any]:
    """Return the official flags of ``sample`` that are not of the cache."""
    flags = load_preset(model.preset.format(n=model.intervals[0])).flags["sample"]
    return {name: value for name, value in flags.items() if not name.startswith("cache") and name != "forecast"}


def policy_of(preset: str):
    """Return the cache of the official schedule in a preset."""
    from skipdit_cli.cache import CachePolicy

    flags: dict[str, Any] = load_preset(preset).flags["sample"]
    start, end = map(float, flags["cache-window"].split(":"))
    layers, interval = int(flags["cache-layers"]), int(flags["cache-interval"])
    return CachePolicy(layers, interval, (start, end), forecast=flags["forecast"])


def count_reused(preset: str, steps: int, last_timestep: int = 0) -> int:
    """Return how many of the denoising steps a preset's schedule reuses; the timesteps are evenly spaced."""
    spacing = TRAINING_TIMESTEPS // steps
    plan = policy_of(preset).plan([last_timestep + index * spacing for index in reversed(range(steps))])
    return steps - sum(plan)
