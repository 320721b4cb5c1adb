"""How a text-conditional transformer is conditioned on captions in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skipdit_cli.families.pipeline_parts import call_parameters, transformer_of

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]


class TextConditioning:
    """Encodes captions with the pipeline's own ``encode_prompt``, called as its ``__call__`` does, and runs the
    transformer on them.

    This base class fits texts that are all encoded to one length and passed to the transformer under the names that
    ``encode`` returns.

    Args:
        pipe: The text-conditional pipeline.
    """

    def __init__(self, pipe):
        self.pipe, self.transformer = pipe, transformer_of(pipe)
        self.config = self.transformer.config

    @property
    def note(self) -> str | None:
        """A sentence for the user about the model, before it is trained; None for nothing."""
        return None

    def encode(self, text: str, device: torch.device) -> Tensors:
        """Return a caption's encoding by argument name of the transformer, each tensor (1, ...)."""
        raise NotImplementedError

    def gather(self, encodings: Sequence[Tensors]) -> Tensors:
        """Return encoded captions as one batch in which each has the same effect as alone."""
        import torch

        return {name: torch.cat([encoding[name] for encoding in encodings]) for name in encodings[0]}

    def predict(self, model, xt: torch.Tensor, times: torch.Tensor, texts: Tensors, **arguments) -> torch.Tensor:
        """Return the output of the model.

        Args:
            model: The transformer, perhaps wrapped for distributed training.
            xt: (B, C, [F,] h, w) noisy latents.
            times: (B,) timesteps.
            texts: The result of ``gather``.
            arguments: Further arguments of the forward.
        Returns:
            (B, C, [F,] h, w).
        """
        return model(xt, timestep=times, return_dict=False, **texts, **arguments)[0]

    def pixels(self, xt: torch.Tensor) -> tuple[int, int]:
        """Return height and width of the image that latents (..., h, w) decode to."""
        return tuple(side * self.pipe.vae_scale_factor for side in xt.shape[-2:])

    def longest(self) -> int | None:
        """Return the maximum number of tokens that the pipeline's call has by default; None if it has no such."""
        parameter = call_parameters(self.pipe).get("max_sequence_length")
        return None if parameter is None else parameter.default
