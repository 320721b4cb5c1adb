"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206)."""

from __future__ import annotations

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import TEXT_IMAGE, one_list
from skipdit_cli.families.family import ExampleSize, Family, Training


class StableDiffusion3Conditioning(TextConditioning):
    """The transformer takes the encodings of three text encoders, and a pooled one."""

    def encode(self, text, device):
        """Return the embeddings of a caption by all text encoders, and the pooled ones."""
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            text, None, None, device, do_classifier_free_guidance=False, max_sequence_length=self.longest()
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


FAMILY = Family(
    "SD3Transformer2DModel",
    trunk=one_list(streams=TEXT_IMAGE),
    example=ExampleSize(text_tokens=333),
    training=Training(
        ("StableDiffusion3Pipeline",),
        dict.fromkeys(
            (
                "StableDiffusion3Img2ImgPipeline",
                "StableDiffusion3InpaintPipeline",
                "StableDiffusion3PAGPipeline",
                "StableDiffusion3PAGImg2ImgPipeline",
            ),
            "StableDiffusion3Pipeline",
        ),
        captions=StableDiffusion3Conditioning,
    ),
)
