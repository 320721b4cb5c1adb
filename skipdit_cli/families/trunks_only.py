"""Families of which the package knows the trunk, and perhaps the sizes of an example forward, and nothing else."""

from __future__ import annotations

from skipdit_cli.families.declarations import HIDDEN, IMAGE_TEXT, TEXT_IMAGE, double_and_single, one_list
from skipdit_cli.families.family import ExampleSize, Family

TRUNKS_ONLY = (
    Family(
        "Flux2Transformer2DModel",
        double_and_single(TEXT_IMAGE, HIDDEN, joins=TEXT_IMAGE),
        ExampleSize(batched_ids=True),
    ),
    Family("ChromaTransformer2DModel", double_and_single(TEXT_IMAGE, HIDDEN, joins=TEXT_IMAGE)),
    Family(
        "AuraFlowTransformer2DModel",
        double_and_single(
            TEXT_IMAGE, HIDDEN, joins=TEXT_IMAGE, names=("joint_transformer_blocks", "single_transformer_blocks")
        ),
    ),
    Family("Lumina2Transformer2DModel", one_list("layers", width=("hidden_size",))),
    Family("SanaTransformer2DModel", one_list()),
    Family("QwenImageTransformer2DModel", one_list(streams=TEXT_IMAGE)),
    Family(
        "ZImageTransformer2DModel",
        one_list("layers", ("x",), joined="x", width=("dim",)),
        ExampleSize(patch=(1, 2, 2)),
    ),
    Family("CogVideoXTransformer3DModel", one_list(streams=IMAGE_TEXT), ExampleSize(frames_first=True)),
    Family("ConsisIDTransformer3DModel", example=ExampleSize(frames_first=True)),
    Family("CogView4Transformer2DModel", one_list(streams=IMAGE_TEXT)),
    Family("LTXVideoTransformer3DModel", one_list(), ExampleSize(grid=(21, 16, 22))),
    Family(
        "LTX2VideoTransformer3DModel",
        one_list(streams=("hidden_states", "audio_hidden_states")),
        ExampleSize(grid=(16, 16, 24)),
    ),
    Family("HunyuanVideoTransformer3DModel", double_and_single(IMAGE_TEXT), ExampleSize(grid=(33, 90, 160))),
    Family("MochiTransformer3DModel", one_list(streams=IMAGE_TEXT), ExampleSize(grid=(4, 60, 106))),
    Family("AllegroTransformer3DModel", one_list()),
)
