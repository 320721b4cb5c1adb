"""Which process the weights of an official image file were trained for: DiT's denoising diffusion or SiT's flow.

Both repositories name and shape their tensors alike, so that the weights alone cannot tell. SiT (willisma/SiT): noise
lies at t = 0 and data at t = 1 of the path x_t = t·data + (1-t)·noise, and the model predicts the velocity
data - noise (``Transport.training_losses`` in transport/transport.py, with its defaults).
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from skipdit_cli.errors import UsageError

DIT, SIT = "dit", "sit"
"""Values of ``convert --process``: denoising diffusion, and flow matching."""
KEYS_OF_SIT = ("path_type", "prediction")
"""Arguments of SiT's train.py that DiT's has not."""


def process_of(path, arguments, wanted: str | None = None, tells_dit: str = "") -> tuple[str, str]:
    """The process of an official file, and why it is known, or that it is assumed.

    Args:
        arguments: The ``args`` that the training script saved in the file; None where it holds none.
        wanted: What ``--process`` says.
        tells_dit: What else in the file only a DiT (or Latte) has; empty for nothing.
    Raises:
        UsageError: ``--process`` contradicts the file, or it was trained on a path or prediction that no scheduler of
            diffusers samples.
    """
    saved = {} if arguments is None else dict(arguments if isinstance(arguments, dict) else vars(arguments))
    process, why = _told(saved, tells_dit)
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


def _told(saved: dict, tells_dit: str) -> tuple[str | None, str]:
    """What the file itself says; None where it says nothing."""
    if tells_dit:
        return DIT, tells_dit
    model = str(saved.get("model", ""))
    for name, process in (("SiT", SIT), ("DiT", DIT)):
        if model.startswith(name):
            return process, f"its args say model {model}"
    found = [key for key in KEYS_OF_SIT if key in saved]
    return (SIT, f"its args have {found[0]}") if found else (None, "")


def _named_after_sit(path) -> bool:
    return re.search(r"(?<![a-z])sit(?![a-z])", Path(path).name, re.IGNORECASE) is not None


def _check_path(path, saved: dict) -> None:
    for key, allowed in zip(KEYS_OF_SIT, ("Linear", "velocity")):
        if saved.get(key, allowed) != allowed:
            raise UsageError(
                f"Checkpoint {path} is a SiT with {key} {saved[key]}, but what can be converted is {key} {allowed}, "
                "flow matching as diffusers' schedulers sample it."
            )


def as_flow(path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """Turn a SiT in diffusers' terms of a DiT into what flow matching schedulers expect, in place.

    The output layer keeps the rows of the velocity (SiT drops the others after every forward) with the sign turned:
    diffusers' velocity is noise - data. Time is turned by ``skip.time_embedding``.

    Args:
        config, state: As ``read_dit`` returns them.
    Raises:
        UsageError: The output has neither the channels of the input nor twice as many.
    """
    channels, made = config["in_channels"], config["out_channels"]
    if made not in (channels, 2 * channels):
        raise UsageError(
            f"Checkpoint {path} is no SiT: it makes {made} channels of {channels}, but expected {channels} or "
            f"{2 * channels}."
        )
    for name in ("proj_out_2.weight", "proj_out_2.bias"):
        by_pixel = state[name].unflatten(0, (config["patch_size"] ** 2, made))
        state[name] = -by_pixel[:, :channels].flatten(0, 1)
    config["out_channels"] = channels
