"""Hunyuan-DiT (arXiv 2405.08748), which has long skips of its own."""

from __future__ import annotations

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import one_list
from skipdit_cli.families.family import ExampleSize, Family, Training
from skipdit_cli.families.pipeline_parts import call_parameters


class HunyuanConditioning(TextConditioning):
    """Two text encoders, each with a mask. Image sizes and style are those of the pipeline's call."""

    def encode(self, text, device):
        """Return the embeddings of a caption by both text encoders, and their masks."""
        encodings: dict = {}
        for index, (suffix, longest) in enumerate((("", 77), ("_t5", 256))):
            embeds, _, mask, _ = self.pipe.encode_prompt(
                text,
                device=device,
                do_classifier_free_guidance=False,
                max_sequence_length=longest,
                text_encoder_index=index,
            )
            encodings |= {f"encoder_hidden_states{suffix}": embeds, f"text_embedding_mask{suffix}": mask}
        return encodings

    def predict(self, model, xt, times, texts, **arguments):
        """Return the output of the model, which gets rotary embeddings, sizes and a style."""
        import torch
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        transformer, (height, width) = self.transformer, self.pixels(xt)
        grid = tuple(side // self.config.patch_size for side in xt.shape[-2:])
        region = get_resize_crop_region_for_grid(grid, 512 // 8 // self.config.patch_size)
        rotary = get_2d_rotary_pos_embed(
            transformer.inner_dim // transformer.num_heads, region, grid, device=xt.device, output_type="pt"
        )
        sizes = (*call_parameters(self.pipe)["original_size"].default, height, width, 0, 0)
        inputs = {
            **texts,
            "image_meta_size": torch.tensor([sizes], device=xt.device, dtype=xt.dtype).repeat(len(xt), 1),
            "style": torch.zeros(len(xt), dtype=torch.long, device=xt.device),
            "image_rotary_emb": rotary,
        }
        return super().predict(model, xt, times.to(xt.dtype), inputs, **arguments)


def example_rotary_embedding(example):
    """Return the cosines and sines of an example forward, each (tokens, head width)."""
    shape = example.tokens, example.config.attention_head_dim
    return example.ones(*shape), example.zeros(*shape)


FAMILY = Family(
    "HunyuanDiT2DModel",
    trunk=one_list("blocks", native_skips=True),
    example=ExampleSize(text_width=("cross_attention_dim",), arguments={"image_rotary_emb": example_rotary_embedding}),
    training=Training(
        ("HunyuanDiTPipeline",), {"HunyuanDiTPAGPipeline": "HunyuanDiTPipeline"}, captions=HunyuanConditioning
    ),
)
