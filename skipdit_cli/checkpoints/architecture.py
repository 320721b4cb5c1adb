"""What a DiT's weights need beyond what diffusers' config can say, and a model made from its config."""

from __future__ import annotations

from torch import nn

from skipdit_cli.errors import UsageError

TIME_EMBEDDINGS = ("official", "diffusers")


def build_transformer(config: dict):
    """A diffusers transformer with random weights (no weights, under ``torch.device("meta")`` or accelerate's
    ``init_empty_weights``).

    diffusers' DiT fixes the hidden width of its MLPs to 4·D. A model with another ratio carries ``mlp_ratio`` in its
    config, and gets diffusers' own ``FeedForward`` in that width; plain diffusers refuses such weights by their shape.

    Args:
        config: ``_class_name`` (DiTTransformer2DModel if it has none) and the arguments of that class.
    Raises:
        UsageError: diffusers has no such class, or does not take these arguments.
    """
    import diffusers

    config = dict(config)
    name = config.get("_class_name", "DiTTransformer2DModel")
    ratio = config.pop("mlp_ratio", 4.0)
    try:
        transformer = getattr(diffusers, name).from_config(config)
    except (AttributeError, TypeError, ValueError, ArithmeticError, NotImplementedError) as cause:
        raise UsageError(f"Got a transformer config for {name} that diffusers cannot build: {cause}.") from cause
    if ratio != 4.0:
        for block in transformer.transformer_blocks:
            block.ff = _feed_forward(transformer, ratio)
        transformer.register_to_config(mlp_ratio=ratio)
    return transformer.eval()


def _feed_forward(transformer, ratio: float) -> nn.Module:
    from diffusers.models.attention import FeedForward

    width = transformer.inner_dim
    config = transformer.config
    return FeedForward(
        width, dropout=config.dropout, activation_fn=config.activation_fn, inner_dim=round(ratio * width)
    )


def set_time_embedding(transformer, kind: str) -> None:
    """Space a DiT's timestep frequencies as its weights were trained with; changes this instance only.

    The DiT repository has exp(-ln(10000)·k/128) for k = 0..127 (``TimestepEmbedder`` in its models.py); diffusers
    divides by 127. No effect on other families.

    Args:
        kind: ``official`` or ``diffusers``.
    Raises:
        UsageError: Another kind.
    """
    if kind not in TIME_EMBEDDINGS:
        raise UsageError(f"Got time embedding '{kind}' but expected one of {', '.join(TIME_EMBEDDINGS)}.")
    for block in getattr(transformer, "transformer_blocks", ()):
        projection = getattr(getattr(getattr(block, "norm1", None), "emb", None), "time_proj", None)
        if projection is not None:
            projection.downscale_freq_shift = 0 if kind == "official" else 1


def default_scheduler():
    """The DiT repository's noise schedule: 1000 linear betas 1e-4..0.02, timesteps spaced evenly with both ends."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="linspace",
    )
