"""The process that an official image checkpoint was trained for: DiT's denoising diffusion or SiT's flow matching.

Both repositories give their tensors the same names and shapes, so the weights alone do not tell. In SiT
(willisma/SiT), noise lies at t = 0 and data at t = 1 of the path x_t = t·data + (1-t)·noise, and the model predicts
the velocity data - noise (``Transport.training_losses`` in transport/transport.py, with its defaults).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from skipdit_cli.errors import UsageError

DIT, SIT = "dit", "sit"
"""Values of ``convert --process``: denoising diffusion, and flow matching."""
SIT_ARGUMENTS = {"path_type": "Linear", "prediction": "velocity"}
"""Arguments of SiT's train.py that DiT's does not have, with the values that diffusers' schedulers can sample."""


def process_of(path, arguments, wanted: str | None = None, only_dit: str = "") -> tuple[str, str]:
    """Return the process of an official file, and why it is known or assumed.

    Args:
        path: The file.
        arguments: The ``args`` that the training script saved in the file; None if there are none.
        wanted: Value of ``--process``.
        only_dit: Why the file can hold no SiT; empty if it can.
    Raises:
        UsageError: ``--process`` contradicts the file, or the model was trained with a path or prediction that no
            scheduler of diffusers samples.
    """
    saved = {} if arguments is None else dict(arguments if isinstance(arguments, dict) else vars(arguments))
    process, why = _recorded_process(saved, only_dit)
    if process is not None and wanted not in (None, process):
        raise UsageError(f"Got --process {wanted}, but {path} is of another one: {why}; leave the flag out.")
    if process is None and wanted is not None:
        process, why = wanted, "as --process says"
    if process is None and _named_after_sit(path):
        process, why = SIT, "assumed from the file's name; --process dit if it is a DiT"
    if process is None:
        process, why = DIT, "assumed, for the file does not say; --process sit if it is a SiT"
    if process == SIT:
        _check_path(path, saved)
    return process, why


def _recorded_process(saved: dict, only_dit: str) -> tuple[str | None, str]:
    """The process that the file itself tells, and how; None if it does not."""
    if only_dit:
        return DIT, only_dit
    model = str(saved.get("model", ""))
    for name, process in (("SiT", SIT), ("DiT", DIT)):
        if model.startswith(name):
            return process, f"its args say model {model}"
    names = [name for name in SIT_ARGUMENTS if name in saved]
    return (SIT, f"its args have {names[0]}") if names else (None, "")


def _named_after_sit(path) -> bool:
    return re.search(r"(?<![a-z])sit(?![a-z])", Path(path).name, re.IGNORECASE) is not None


def _check_path(path, saved: dict) -> None:
    for key, allowed in SIT_ARGUMENTS.items():
        if saved.get(key, allowed) != allowed:
            raise UsageError(
                f"Checkpoint {path} is a SiT with {key} {saved[key]}, but what can be converted is {key} {allowed}, "
                "flow matching as diffusers' schedulers sample it."
            )


def as_flow(path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """Make a SiT that was read as a DiT predict what flow matching schedulers expect, in place.

    The output layer keeps the rows of the velocity alone (SiT drops the others after every forward), with the opposite
    sign: diffusers' velocity is noise - data. ``skip.time_embedding`` reverses the timesteps.

    Args:
        path: The checkpoint, for errors.
        config, state: As ``read_dit`` returns them.
    Raises:
        UsageError: The output has neither as many channels as the input nor twice as many.
    """
    channels, out_channels = config["in_channels"], config["out_channels"]
    if out_channels not in (channels, 2 * channels):
        raise UsageError(
            f"Checkpoint {path} is no SiT: it makes {out_channels} channels of {channels}, but expected {channels} or "
            f"{2 * channels}."
        )
    for name in ("proj_out_2.weight", "proj_out_2.bias"):
        by_pixel = state[name].unflatten(0, (config["patch_size"] ** 2, out_channels))
        state[name] = -by_pixel[:, :channels].flatten(0, 1)
    config["out_channels"] = channels
