"""Timestep frequencies of DiT: those of diffusers' class differ from those that most weights were trained with."""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.embeddings import Timesteps

from skipdit_cli.errors import UsageError

TIME_EMBEDDINGS = ("official", "diffusers", "sit")
NUM_TIMESTEPS = 1000
"""The number of training timesteps of DiT and Latte, and of SiT as diffusers counts them."""
RECORD = "_time_embedding"
"""Key of a transformer's config. diffusers keeps keys that begin with an underscore, and does not read them."""


class TimeFromNoise(Timesteps):
    """The timestep frequencies of SiT, whose time runs from 0 for noise to 1 for data.

    It takes timesteps as diffusers counts them in flow matching, 1000 for noise and 0 for data.
    """

    def forward(self, timesteps):
        return super().forward(1 - timesteps / NUM_TIMESTEPS)


def set_time_embedding(transformer, kind: str) -> None:
    """Set the timestep frequencies of a DiT, in place; other families are left as they are.

    The DiT repository has exp(-ln(10000)·k/128) for k = 0..127 (``TimestepEmbedder`` in its models.py); diffusers
    divides by 127. SiT has the frequencies of the DiT repository, for a time from 0, noise, to 1, data.

    Args:
        transformer: The model. Only this instance changes.
        kind: One of ``TIME_EMBEDDINGS``.

    Raises:
        UsageError: The kind is none of these.
    """
    if kind not in TIME_EMBEDDINGS:
        raise UsageError(f"Got time embedding '{kind}' but expected one of {', '.join(TIME_EMBEDDINGS)}.")
    for projection in _projections(transformer):
        projection.downscale_freq_shift = 1 if kind == "diffusers" else 0
        projection.__class__ = TimeFromNoise if kind == "sit" else Timesteps


def time_embedding_of(transformer) -> str | None:
    """Return the kind of timestep frequencies that a DiT has now; None for other families."""
    projection = next(_projections(transformer), None)
    if projection is None:
        return None
    if isinstance(projection, TimeFromNoise):
        return "sit"
    return "diffusers" if projection.downscale_freq_shift else "official"


def record_time_embedding(transformer, kind: str) -> None:
    """Set the timestep frequencies, and record them in the transformer's config, which keeps them where the weights
    are saved without branches."""
    set_time_embedding(transformer, kind)
    if time_embedding_of(transformer) is not None and (kind != "diffusers" or RECORD in transformer.config):
        transformer.register_to_config(**{RECORD: kind})


def _projections(transformer) -> Iterator[Timesteps]:
    """The timestep projection of each block."""
    for block in getattr(transformer, "transformer_blocks", ()):
        projection = getattr(getattr(getattr(block, "norm1", None), "emb", None), "time_proj", None)
        if projection is not None:
            yield projection
