"""DiT (arXiv 2212.09748), and SiT (arXiv 2401.08740), which has the same layers and is trained by flow matching."""

from __future__ import annotations

from typing import Any

from skipdit_cli.families.adaln_zero import initialise
from skipdit_cli.families.declarations import one_list
from skipdit_cli.families.family import Family, OfficialFiles, PipelineAround, Training

MLP_RATIO = 4.0
"""Hidden width of the MLPs over D in diffusers' class, which has no other."""


def build(kind: type[Any], config: dict):
    """Return a DiT whose MLPs have the hidden width that the config's ``mlp_ratio`` says.

    diffusers' class fixes it to 4·D. A model with another ratio carries ``mlp_ratio`` in its config and gets
    diffusers' own ``FeedForward`` of that width; plain diffusers refuses such weights by their shape.
    """
    config = dict(config)
    ratio = config.pop("mlp_ratio", MLP_RATIO)
    transformer = kind.from_config(config)
    if ratio != MLP_RATIO:
        for block in transformer.transformer_blocks:
            block.ff = _feed_forward(transformer, ratio)
        transformer.register_to_config(mlp_ratio=ratio)
    return transformer


def _feed_forward(transformer, ratio: float):
    from diffusers.models.attention import FeedForward

    width, config = transformer.inner_dim, transformer.config
    return FeedForward(
        width, dropout=config.dropout, activation_fn=config.activation_fn, inner_dim=round(ratio * width)
    )


OFFICIAL = OfficialFiles(
    kind="DiT",
    title="DiT repository checkpoint",
    title_with_branches="Skip-DiT checkpoint",
    flow_title="SiT checkpoint",
    hub_ids=("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-512"),
    modules={
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.linear": "proj_out_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
    },
    block_modules={
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm1.linear",
    },
    tensors={
        "t_embedder.mlp.0.weight": "timestep_embedder.linear_1.weight",
        "t_embedder.mlp.0.bias": "timestep_embedder.linear_1.bias",
        "t_embedder.mlp.2.weight": "timestep_embedder.linear_2.weight",
        "t_embedder.mlp.2.bias": "timestep_embedder.linear_2.bias",
    },
    label_table=("y_embedder.embedding_table.weight", "class_embedder.embedding_table.weight"),
    embedders_in="norm1.emb.",
    needs_labels=True,
    config={"norm_eps": 1e-6},
)
"""Names of ``DiT`` in models.py of facebookresearch/DiT; with skip branches ``DiT_skip`` in class-to-image/models.py
of OpenSparseLLMs/Skip-DiT."""

FAMILY = Family(
    "DiTTransformer2DModel",
    trunk=one_list(official_time=False),
    former_names={"Transformer2DModel": "ada_norm_zero"},
    classes=(
        "skipdit_cli.sampling.pipelines.dit_pipeline.DiTPipeline",
        "skipdit_cli.sampling.pipelines.sit_pipeline.SiTPipeline",
    ),
    pipeline=PipelineAround("DiTPipeline", flow="SiTPipeline", sample_flags="--class-labels 0,1"),
    training=Training(("DiTPipeline", "SiTPipeline")),
    initialise=initialise,
    official=OFFICIAL,
    build=build,
    own_keys=("mlp_ratio",),
)
