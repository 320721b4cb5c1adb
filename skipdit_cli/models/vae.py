"""Load the VAE of a latent-space model from a folder or the hub, and check that it fits."""

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
"""Classes of VAEs for images, and for videos decoded with a view of neighbouring frames."""


def load_vae(name, in_channels: int | None = None, **arguments):
    """Load the VAE of a latent-space model.

    Args:
        name: The folder of a VAE, a pipeline folder (its ``vae/``), or a hub id: OWNER/NAME, whose root or ``vae/``
            holds one, or OWNER/NAME/FOLDER (``maxin-cn/Latte-1/vae_temporal_decoder``).
        in_channels: The channels of the transformer that it is for, if they are known already.
        arguments: As for diffusers' ``from_pretrained``.
    Raises:
        UsageError: There is none, it is of another class, or its latents have another number of channels.
        NotFiniteError: A weight is NaN or infinite.
    """
    import diffusers

    arguments["local_files_only"] = Path(name).expanduser().is_dir() or is_local(arguments)
    hub = {key: arguments[key] for key in HUB_ARGUMENTS if key in arguments}
    for path, subfolder in (places := _places(str(name))):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers' own affair
                config = diffusers.AutoencoderKL.load_config(path, subfolder=subfolder, **hub)
                kind = config.get("_class_name")
                if kind not in KINDS:
                    raise UsageError(f"Got --vae {name}, which holds a {kind} but expected one of {', '.join(KINDS)}.")
                shapes = stored_shapes(Path(path) / subfolder)
                check_model(getattr(diffusers, kind), config, f"Got --vae {name}, which", shapes)
                if Path(path).is_dir():
                    arguments["variant"] = arguments.get("variant") or variant_of(Path(path) / subfolder)
                vae = getattr(diffusers, kind).from_pretrained(path, subfolder=subfolder, **arguments)
            break
        except UsageError:
            raise
        except Exception:
            if (path, subfolder) == places[-1]:
                where = "" if Path(path).is_dir() else ", from the hub or its local cache"
                with reading(f"Got --vae {name}, which", failed=f"cannot be read{where}"):
                    raise
    if weight := first_broken(vae.state_dict().items()):
        raise NotFiniteError(f"Got --vae {name}, which holds {weight}; get its weights again.")
    if in_channels is not None:
        check_vae(vae, in_channels, name)
    return vae


def check_vae(vae, in_channels: int, name=None) -> None:
    """Check that a VAE has the latent channels of a model.

    Args:
        in_channels: The latent channels of the model.
        name: The VAE, as the user named it.
    Raises:
        UsageError: It has another number of them, or its config does not say how many.
    """
    channels, shown = latent_channels(vae.config), "" if name is None else f" {name}"
    if channels is None:
        raise UsageError(f"Got --vae{shown}, a {type(vae).__name__}, whose config does not say how many channels.")
    if channels != in_channels:
        raise UsageError(f"Got --vae{shown} with {channels} latent channels, but the model has {in_channels}.")


def _places(name: str) -> list[tuple[str, str]]:
    """Return where a VAE may lie: pairs of a path or hub id and a subfolder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return [(str(folder), "vae" if (folder / "vae").is_dir() else "")]
    match = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+)((?:/[\w.-]+)*)", name)
    if folder.is_file() or match is None:
        raise UsageError(
            f"Got --vae {name}, which is no folder; give one, or a hub id (OWNER/NAME or OWNER/NAME/FOLDER)."
        )
    hub_id, subfolder = match[1], match[2].lstrip("/")
    return [(hub_id, subfolder)] if subfolder else [(hub_id, ""), (hub_id, "vae")]
