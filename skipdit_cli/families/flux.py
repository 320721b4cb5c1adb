"""Flux.1."""

from __future__ import annotations

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import TEXT_IMAGE, double_and_single
from skipdit_cli.families.family import Family, Training
from skipdit_cli.families.pipeline_parts import call_parameters


class FluxConditioning(TextConditioning):
    """The pipeline packs two by two latents into a token; a guidance-distilled model also takes the guidance scale,
    which is the default of the pipeline's call."""

    def encode(self, text, device):
        """Return the T5 embeddings of a caption, and the pooled CLIP ones."""
        embeds, pooled, _ = self.pipe.encode_prompt(text, None, device, max_sequence_length=self.longest())
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    @property
    def guidance(self) -> float | None:
        """The guidance scale that a guidance-distilled model takes; None for other models."""
        return call_parameters(self.pipe)["guidance_scale"].default if self.config.guidance_embeds else None

    @property
    def note(self) -> str | None:
        """The guidance scale that a guidance-distilled model is trained at, as a sentence."""
        scale = self.guidance
        return (
            None if scale is None else f"The model was distilled with guidance: it is trained at a scale of {scale}."
        )

    def predict(self, model, xt, times, texts, **arguments):
        """Return the output of the model, which runs on packed latents and position ids."""
        import torch

        height, width = xt.shape[-2:]
        guidance = None if self.guidance is None else torch.full((len(xt),), self.guidance, device=xt.device)
        tokens = self.pipe._pack_latents(xt, *xt.shape)
        image_ids = self.pipe._prepare_latent_image_ids(len(xt), height // 2, width // 2, xt.device, xt.dtype)
        text_ids = torch.zeros(texts["encoder_hidden_states"].shape[1], 3, device=xt.device, dtype=xt.dtype)
        inputs = {**texts, "img_ids": image_ids, "txt_ids": text_ids, "guidance": guidance}
        output = super().predict(model, tokens, times / 1000, inputs, **arguments)
        return self.pipe._unpack_latents(output, height, width, 1)


FAMILY = Family(
    "FluxTransformer2DModel",
    trunk=double_and_single(TEXT_IMAGE),
    training=Training(
        ("FluxPipeline",),
        {"FluxImg2ImgPipeline": "FluxPipeline", "FluxInpaintPipeline": "FluxPipeline"},
        captions=FluxConditioning,
        packing=(2, 2),
    ),
)
