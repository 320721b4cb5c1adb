"""Decoders of latents, read from wherever one lies."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from skipdit_cli.errors import NotFiniteError, UsageError, reading
from skipdit_cli.finite import first_broken
from skipdit_cli.models.bounds import stored_shapes
from skipdit_cli.models.claims import check_model
from skipdit_cli.models.hub import HUB_ARGUMENTS, is_local
from skipdit_cli.models.weights import variant_of
from skipdit_cli.sampling.latents import latent_channels

KINDS = ("AutoencoderKL", "AutoencoderKLTemporalDecoder")
"""Frame by frame, and with a look at the frames around."""


def load_vae(name, in_channels: int | None = None, **arguments):
    """The decoder of a latent-space model.

    Args:
        name: A folder of one, a pipeline folder (its ``vae/``), or a hub id: OWNER/NAME, whose root or ``vae/`` holds
            one, or OWNER/NAME/FOLDER (``maxin-cn/Latte-1/vae_temporal_decoder``).
        in_channels: Of the transformer that it is for, if that is known already.
        arguments: As for diffusers' ``from_pretrained``.
    Raises:
        UsageError: There is none, it is of another kind, or its latents have another number of channels.
        NotFiniteError: A weight is NaN or infinite.
    """
    import diffusers

    arguments["local_files_only"] = Path(name).expanduser().is_dir() or is_local(arguments)
    hub = {key: arguments[key] for key in HUB_ARGUMENTS if key in arguments}
    for path, inner in (places := _places(str(name))):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own affair
                config = diffusers.AutoencoderKL.load_config(path, subfolder=inner, **hub)
                kind = config.get("_class_name")
                if kind not in KINDS:
                    raise UsageError(f"Got --vae {name}, which holds a {kind} but expected one of {', '.join(KINDS)}.")
                shapes = stored_shapes(Path(path) / inner)
                check_model(getattr(diffusers, kind), config, f"Got --vae {name}, which", shapes)
                named = {"variant": variant_of(Path(path) / inner)} if Path(path).is_dir() else {}
                vae = getattr(diffusers, kind).from_pretrained(path, subfolder=inner, **{**named, **arguments})
            break
        except UsageError:
            raise
        except Exception:
            if (path, inner) == places[-1]:
                where = "" if Path(path).is_dir() else ", from the hub or its local cache"
                with reading(f"Got --vae {name}, which", failed=f"cannot be read{where}"):
                    raise
    if where := first_broken(vae.state_dict().items()):
        raise NotFiniteError(f"Got --vae {name}, which holds {where}; get its weights again.")
    if in_channels is not None:
        check_vae(vae, in_channels, name)
    return vae


def check_vae(vae, in_channels: int, name=None) -> None:
    """
    Raises:
        UsageError: Its latents have another number of channels than the model, or it does not say how many.
    """
    own, named = latent_channels(vae.config), "" if name is None else f" {name}"
    if own is None:
        raise UsageError(f"Got --vae{named}, a {type(vae).__name__}, whose config does not say how many channels.")
    if own != in_channels:
        raise UsageError(f"Got --vae{named} with {own} latent channels, but the model has {in_channels}.")


def _places(name: str) -> list[tuple[str, str]]:
    """Where a decoder may lie: path or hub id, and the folder in it."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return [(str(folder), "vae" if (folder / "vae").is_dir() else "")]
    found = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)((?:/[\w.-]+)*)", name)
    if folder.is_file() or found is None:
        raise UsageError(
            f"Got --vae {name}, which is no folder; give one, or a hub id (OWNER/NAME or OWNER/NAME/FOLDER)."
        )
    hub_id, inner = found[1], found[2].lstrip("/")
    return [(hub_id, inner)] if inner else [(hub_id, ""), (hub_id, "vae")]
