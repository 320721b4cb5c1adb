"""What a model is told about a sample, as arguments of its forward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn.utils.rnn import pad_sequence

from skipdit_cli.errors import UsageError
from skipdit_cli.training.listing import Condition
from skipdit_cli.training.store import Store, fingerprint

REMEMBERED = 4096


class ClassConditioning:
    """Class ids; a dropped one becomes the id past the last, which means no class."""

    def __init__(self, num_classes: int):
        self.null_label = num_classes

    def __call__(
        self, conditions: Sequence[Condition], dropped: torch.Tensor, device: torch.device, frames: int = 1
    ) -> dict:
        """
        Args:
            conditions: B class ids.
            dropped: (B,) bool.
        """
        labels = torch.where(dropped, self.null_label, torch.tensor(conditions))
        return {"class_labels": labels.to(device)}


class NoConditioning:
    """A model of nothing but noise and time."""

    def __call__(
        self, conditions: Sequence[Condition], dropped: torch.Tensor, device: torch.device, frames: int = 1
    ) -> dict:
        return {}


class CaptionConditioning:
    """Captions through the pipeline's own ``encode_prompt``; a dropped one becomes the empty text.

    Args:
        pipe: A pipeline with tokenizer and text encoder, which goes to ``device``.
        store: Where encoded texts are kept; without it the last ``REMEMBERED`` are, in memory.
    Raises:
        UsageError: The pipeline has no text encoder.
    """

    def __init__(self, pipe, device: torch.device, store: Store | None = None):
        if pipe.text_encoder is None:
            raise UsageError(
                "The model's folder has no text encoder to read captions with; 'skipdit convert --text-from' adds one."
            )
        self.pipe = pipe
        pipe.text_encoder.to(device).requires_grad_(False).eval()
        self.encode = lru_cache(maxsize=REMEMBERED)(self._encode if store is None else self._kept)
        if store is not None:
            self.store, self.made = store, {"text_encoder": fingerprint(pipe.text_encoder, {})}

    def __call__(
        self, conditions: Sequence[Condition], dropped: torch.Tensor, device: torch.device, frames: int = 1
    ) -> dict:
        """``encoder_hidden_states`` (B, tokens, channels), and a bias (B·frames, 1, tokens) that hides what only fills
        up the shorter texts: each sees its own tokens, as it does alone in ``LattePipeline``."""
        texts = ["" if drop else text for text, drop in zip(conditions, dropped.tolist())]
        encoded = [self.encode(text) for text in texts]
        own = pad_sequence([torch.ones(len(tokens)) for tokens in encoded], batch_first=True)
        bias = ((1 - own) * -10000.0)[:, None].repeat_interleave(frames, dim=0)
        padded = pad_sequence(encoded, batch_first=True)
        return {"encoder_hidden_states": padded.to(device), "encoder_attention_mask": bias.to(device)}

    def _kept(self, text: str) -> torch.Tensor:
        return self.store.get({**self.made, "text": text}, lambda: self._encode(text))

    @torch.no_grad()
    def _encode(self, text: str) -> torch.Tensor:
        """(tokens, channels), float32, on the CPU."""
        device = self.pipe.text_encoder.device
        embeddings, _ = self.pipe.encode_prompt(text, do_classifier_free_guidance=False, device=device)
        return embeddings[0].float().cpu()


def conditioning_of(pipe, device: torch.device, store: Store | None = None):
    """What the pipeline's transformer is told.

    Args:
        store: Where encoded texts are kept.
    """
    config = pipe.transformer.config
    if "caption_channels" in config:
        return CaptionConditioning(pipe, device, store)
    classes = config.num_embeds_ada_norm
    return NoConditioning() if classes is None else ClassConditioning(classes)
