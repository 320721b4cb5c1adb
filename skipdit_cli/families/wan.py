"""Wan 2.1 and 2.2 (arXiv 2503.20314)."""

from __future__ import annotations

import math

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import one_list
from skipdit_cli.families.family import ExampleSize, Family, Training


class WanConditioning(TextConditioning):
    """Prompts are padded with zeros, which the transformer attends to, in training as in sampling."""

    def encode(self, text, device):
        """Return the embeddings of a caption, padded with zeros."""
        embeds, _ = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, device=device, max_sequence_length=self.longest()
        )
        return {"encoder_hidden_states": embeds}

    def predict(self, model, xt, times, texts, **arguments):
        """Return the output of the model, which may take a timestep for every token."""
        if self.pipe.config.expand_timesteps:  # Wan 2.2's 5B takes a timestep for every token
            tokens = xt[0, 0].numel() // math.prod(self.config.patch_size[-2:])
            times = times[:, None].expand(-1, tokens)
        return super().predict(model, xt, times, texts, **arguments)


FAMILY = Family(
    "WanTransformer3DModel",
    trunk=one_list("blocks"),
    example=ExampleSize(grid=(21, 60, 104)),
    training=Training(
        ("WanPipeline",),
        {"WanVideoToVideoPipeline": "WanPipeline"},
        captions=WanConditioning,
        videos=True,
        clip_frames=81,
    ),
)
