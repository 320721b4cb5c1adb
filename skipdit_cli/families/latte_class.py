"""Class-conditional and unconditional Latte (arXiv 2401.03048), which diffusers does not have."""

from __future__ import annotations

from dataclasses import replace

from skipdit_cli.families import dit
from skipdit_cli.families.adaln_zero import initialise
from skipdit_cli.families.declarations import Backbone, BlockList
from skipdit_cli.families.family import Family, PipelineAround, Training

TRUNK = Backbone((BlockList("transformer_blocks"), BlockList("temporal_transformer_blocks")), interleaved=True)

OFFICIAL = replace(
    dit.OFFICIAL,
    kind="Latte",
    title="Latte checkpoint",
    title_with_branches="Skip-DiT checkpoint of Latte",
    flow_title="",
    marker="temp_embed",
    hub_ids=(),
    embedders_in="",
    frame_table="temp_embed",
    needs_labels=False,
    config={},
)
"""Names of ``Latte`` in models/latte.py of Vchitect/Latte, whose blocks are those of DiT: even ones are spatial, odd
ones temporal. With skip branches ``Latte_skip`` in class-to-video/models/latte.py of OpenSparseLLMs/Skip-DiT."""

FAMILY = Family(
    "LatteClassTransformer3DModel",
    trunk=TRUNK,
    classes=(
        "skipdit_cli.families.latte_class_model.LatteClassTransformer3DModel",
        "skipdit_cli.sampling.pipelines.latte_class_pipeline.LatteClassPipeline",
    ),
    pipeline=PipelineAround("LatteClassPipeline"),
    training=Training(("LatteClassPipeline",), videos=True),
    initialise=initialise,
    official=OFFICIAL,
)
