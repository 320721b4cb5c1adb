"""Names that other tools give to our flags, and the names of a flag that a user typed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SYNONYMS = {
    "accumulate-grad-batches": "gradient-accumulation-steps",
    "batch": "batch-size",
    "cfg": "guidance-scale",
    "cfg-scale": "guidance-scale",
    "checkpoint": "model",
    "ckpt": "model",
    "class-ids": "class-labels",
    "classes": "class-labels",
    "data-dir": "data",
    "data-path": "data",
    "dataset": "data",
    "dataset-name": "data",
    "epochs": "num-train-epochs",
    "frames": "num-frames",
    "global-batch-size": "train-batch-size",
    "grad-accum": "gradient-accumulation-steps",
    "grad-clip": "max-grad-norm",
    "guidance": "guidance-scale",
    "half-precision": "dtype",
    "image-size": "resolution",
    "inference-steps": "num-inference-steps",
    "instance-data-dir": "data",
    "labels": "class-labels",
    "lr": "learning-rate",
    "lr-scheduler-type": "lr-scheduler",
    "max-steps": "max-train-steps",
    "model-id": "model",
    "model-name-or-path": "model",
    "model-path": "model",
    "n-samples": "num-images",
    "neg-prompt": "negative-prompt",
    "num-images-per-prompt": "num-images",
    "num-samples": "num-images",
    "num-sampling-steps": "num-inference-steps",
    "num-steps": "num-inference-steps",
    "num-workers": "dataloader-num-workers",
    "o": "output",
    "out": "output",
    "output": "cache-latents",
    "outdir": "output",
    "output-dir": "output",
    "output-path": "output",
    "precision": "dtype",
    "pretrained-model-name-or-path": "model",
    "prompt-file": "prompts-file",
    "resume": "resume-from-checkpoint",
    "sampler": "scheduler",
    "sampling-steps": "num-inference-steps",
    "save-dir": "output",
    "seeds": "seed",
    "steps": "num-inference-steps",
    "torch-dtype": "dtype",
    "train-data-dir": "data",
    "video-length": "num-frames",
    "weight-dtype": "dtype",
}
"""Our flag for each name that scripts of diffusers, DiT, Latte, accelerate, sd-scripts or litgpt give to the same
thing; hyphens stand for underscores. What is no flag of a command is looked up again: 'prepare' has no --output."""

ELSEWHERE = {
    "token": "The hub's token is read from HF_TOKEN, or from 'hf auth login'.",
    "hub-token": "The hub's token is read from HF_TOKEN, or from 'hf auth login'.",
    "no-progress": "Progress goes to stderr: 2>log keeps it off the terminal.",
    "quiet": "Progress goes to stderr: 2>log keeps it off the terminal.",
}
"""What to do in the place of flags of other tools that we have in another form."""


def advice_for(typed: str) -> str | None:
    """Return a sentence on what to do in the place of an unknown flag, or None."""
    return ELSEWHERE.get(typed.lstrip("-").lower().replace("_", "-"))


def flag_meant(typed: str, flags: Iterable[str]) -> str | None:
    """Return the flag of a command that another tool's name stands for, or None.

    Args:
        typed: An unknown flag, such as ``--output_dir``.
        flags: The long flags of the command.
    """
    flags, name = set(flags), typed.lstrip("-").lower().replace("_", "-")
    candidates = [name, name.removeprefix("no-")]
    while (name := SYNONYMS.get(name, "")) != "":
        candidates.append(name)
    return next((f"--{candidate}" for candidate in candidates if f"--{candidate}" in flags), None)


def with_typed_names(message: str, spellings: Iterable[Sequence[str]], arguments: Sequence[str]) -> str:
    """Return a message with each flag under the name that the user typed (``--steps``).

    Args:
        spellings: The long names of each flag that has several.
        arguments: The command line.
    """
    names = {argument.split("=")[0] for argument in arguments}
    for spelling in spellings:
        typed = [name for name in spelling if name in names]
        if len(typed) == 1:
            others = "|".join(re.escape(name) for name in spelling if name != typed[0])
            message = re.sub(rf"(?<![\w-])(?:{others})(?![\w-])", typed[0], message)
    return message
