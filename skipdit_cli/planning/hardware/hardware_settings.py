"""The settings of ``skipdit info --plan-hardware``: each flag, its default, its help text and its range, once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.settings import flag_name, setting

PLANNING = "Planning (--plan-hardware)"
CHOICES = {"mixed_precision": ("no", "bf16", "fp16"), "train": ("skip", "all")}


@dataclass(frozen=True)
class HardwareSettings:
    """What is planned: the hardware, and the training and sampling on it. The names are those of the commands."""

    plan_hardware: str | None = setting(
        None,
        "Memory, time and cost of training and sampling on other hardware, in place of the model's facts: 8xH100, "
        "4xA100-80GB, 1xCPU:24GB, or your own, 8x80GB:989TFLOPS.",
        PLANNING,
        metavar="HARDWARE",
    )
    train: str = setting("all", "What is trained: skip (the branches alone) or all.", PLANNING, metavar="skip|all")
    train_batch_size: int = setting(32, "Samples per device and forward pass.", PLANNING, minimum=1, maximum=100_000)
    gradient_accumulation_steps: int = setting(
        1, "Forward passes per optimizer step.", PLANNING, minimum=1, maximum=100_000
    )
    max_train_steps: int = setting(1000, "Number of optimizer steps.", PLANNING, minimum=1)
    mixed_precision: str | None = setting(
        None, "Precision of training: no, bf16 or fp16. [default: bf16, no on a CPU]", PLANNING, metavar="no|bf16|fp16"
    )
    gradient_checkpointing: bool = setting(False, "Compute blocks again in the backward pass.", PLANNING)
    use_ema: bool = setting(True, "Keep a moving average of the weights.", PLANNING, names=("--use-ema/--no-use-ema",))
    height: int | None = setting(
        None,
        "Height in pixels for a text-conditional model. [default: the model's]",
        PLANNING,
        minimum=1,
        maximum=8192,
    )
    width: int | None = setting(None, "Width in pixels. [default: the model's]", PLANNING, minimum=1, maximum=8192)
    num_frames: int | None = setting(
        None, "Frames of a video. [default: the model's]", PLANNING, minimum=1, maximum=10_000
    )
    batch_size: int | None = setting(
        None, "Samples per batch of sampling. [default: 8, or 1 with prompts]", PLANNING, minimum=1, maximum=100_000
    )
    price_per_hour: float | None = setting(
        None, "Price of one device for an hour, in any currency, for the cost of the steps.", PLANNING, minimum=0
    )

    def check(self) -> None:
        """Refuse values that no plan can use, and flags of a plan without one.

        Raises:
            UsageError: A name is unknown, or ``--plan-hardware`` is missing.
        """
        typed = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
        if self.plan_hardware is None and typed:
            flag = flag_name(typed[0])
            raise UsageError(f"Got {flag} without --plan-hardware, which it is for; add --plan-hardware 8xH100.")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                allowed = ", ".join(choices)
                raise UsageError(
                    f"Got {flag_name(name)} '{value}' but expected one of {allowed}.{nearest(value, choices)}"
                )
