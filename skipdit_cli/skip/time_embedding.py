"""How timesteps are told to a DiT: diffusers' class does it otherwise than the code that trained most weights."""

from __future__ import annotations

from collections.abc import Iterator

from diffusers.models.embeddings import Timesteps

from skipdit_cli.errors import UsageError

TIME_EMBEDDINGS = ("official", "diffusers", "sit")
NUM_TIMESTEPS = 1000
"""How many timesteps DiT, Latte and, in diffusers' terms, SiT count."""
RECORD = "_time_embedding"
"""Key of a transformer's config; diffusers leaves alone what begins with an underscore, and keeps it."""


class TimeFromNoise(Timesteps):
    """Timesteps as diffusers counts them in flow matching, 1000 for noise and 0 for data, told as SiT counts time."""

    def forward(self, timesteps):
        return super().forward(1 - timesteps / NUM_TIMESTEPS)


def set_time_embedding(transformer, kind: str) -> None:
    """Tell timesteps to a DiT as its weights were trained with; changes this instance only.

    The DiT repository has exp(-ln(10000)·k/128) for k = 0..127 (``TimestepEmbedder`` in its models.py); diffusers
    divides by 127. SiT has the frequencies of the DiT repository, for a time from 0, noise, to 1, data. No effect on
    other families.

    Args:
        kind: One of ``TIME_EMBEDDINGS``.
    Raises:
        UsageError: Another kind.
    """
    if kind not in TIME_EMBEDDINGS:
        raise UsageError(f"Got time embedding '{kind}' but expected one of {', '.join(TIME_EMBEDDINGS)}.")
    for projection in _projections(transformer):
        projection.downscale_freq_shift = 1 if kind == "diffusers" else 0
        projection.__class__ = TimeFromNoise if kind == "sit" else Timesteps


def time_embedding_of(transformer) -> str | None:
    """How timesteps are told to this instance now; None of a class that has one way alone."""
    projection = next(_projections(transformer), None)
    if projection is None:
        return None
    if isinstance(projection, TimeFromNoise):
        return "sit"
    return "diffusers" if projection.downscale_freq_shift else "official"


def record_time_embedding(transformer, kind: str) -> None:
    """Set it, and note it in the transformer's config, where weights that are saved without branches keep it."""
    set_time_embedding(transformer, kind)
    if time_embedding_of(transformer) is not None and (kind != "diffusers" or RECORD in transformer.config):
        transformer.register_to_config(**{RECORD: kind})


def _projections(transformer) -> Iterator[Timesteps]:
    """One a block."""
    for block in getattr(transformer, "transformer_blocks", ()):
        projection = getattr(getattr(getattr(block, "norm1", None), "emb", None), "time_proj", None)
        if projection is not None:
            yield projection
