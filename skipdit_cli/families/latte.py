"""Text-to-video Latte (arXiv 2401.03048)."""

from __future__ import annotations

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.family import ExampleSize, Family, OfficialFiles, PipelineAround, Training
from skipdit_cli.families.latte_class import TRUNK


class LatteConditioning(TextConditioning):
    """The pipeline cuts a prompt to its own tokens, because its transformer masks none."""

    def encode(self, text, device):
        """Return the embeddings of a caption's own tokens."""
        embeds, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, device=device)
        return {"encoder_hidden_states": embeds}

    def gather(self, encodings):
        """Return the batch, with an attention bias that hides the padding of the shorter texts."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        texts = [encoding["encoder_hidden_states"][0] for encoding in encodings]
        mask = pad_sequence([torch.ones(len(tokens)) for tokens in texts], batch_first=True)
        bias = ((1 - mask) * -10000.0)[:, None]
        return {"encoder_hidden_states": pad_sequence(texts, batch_first=True), "encoder_attention_mask": bias}

    def predict(self, model, xt, times, texts, **arguments):
        """Return the output of the model, whose text bias has a batch of one for each frame."""
        bias = texts["encoder_attention_mask"].repeat_interleave(xt.shape[2], dim=0)  # diffusers takes one a frame
        return super().predict(model, xt, times, {**texts, "encoder_attention_mask": bias}, **arguments)


FAMILY = Family(
    "LatteTransformer3DModel",
    trunk=TRUNK,
    example=ExampleSize(text_tokens=120),
    pipeline=PipelineAround("LattePipeline", by_class=False, timestep_spacing="leading"),
    training=Training(("LattePipeline",), captions=LatteConditioning, videos=True),
    official=OfficialFiles(
        kind="text-to-video Latte",
        title="Latte text-to-video checkpoint",
        title_with_branches="Skip-DiT checkpoint of Latte text-to-video",
        marker="temporal_transformer_blocks.",
    ),
)
