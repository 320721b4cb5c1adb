"""PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692)."""

from __future__ import annotations

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import one_list
from skipdit_cli.families.family import ExampleSize, Family, Training


class PixArtConditioning(TextConditioning):
    """The larger PixArt-alpha models also take the size of the image."""

    def encode(self, text, device):
        """Return the embeddings of a caption, padded, and their mask."""
        embeds, mask, *_ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, device=device, max_sequence_length=self.longest()
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def predict(self, model, xt, times, texts, **arguments):
        """Return the output of the model, which gets the size of the image if it has an input for it."""
        import torch

        size: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            height, width = self.pixels(xt)
            sizes = torch.tensor([[height, width, height / width]], device=xt.device).repeat(len(xt), 1)
            size = {"resolution": sizes[:, :2], "aspect_ratio": sizes[:, 2:]}
        return super().predict(model, xt, times, texts, added_cond_kwargs=size, **arguments)


FAMILY = Family(
    "PixArtTransformer2DModel",
    trunk=one_list(),
    former_names={"Transformer2DModel": "ada_norm_single"},
    example=ExampleSize(text_tokens=120),
    training=Training(
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        {"PixArtSigmaPAGPipeline": "PixArtSigmaPipeline"},
        captions=PixArtConditioning,
    ),
)
