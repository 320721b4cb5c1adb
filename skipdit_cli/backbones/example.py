"""What a model of a declared family is called with."""

from __future__ import annotations

import torch

TEXT_TOKENS = 120  # Latte's pipeline encodes prompts to this length


def example_inputs(transformer, batch: int = 1, device="cpu", dtype: torch.dtype = torch.float32) -> dict:
    """Arguments of one forward, all zero, at the model's own size.

    Returns:
        ``hidden_states`` (batch, C, H, W), or (batch, C, frames, H, W) of a video model; ``timestep`` (batch,);
        ``class_labels`` (batch,) or ``encoder_hidden_states`` (batch, 120, channels) where the model takes them.
    """
    config = transformer.config
    frames = [config.video_length] if "video_length" in config else []
    shape = (batch, config.in_channels, *frames, config.sample_size, config.sample_size)
    inputs = {
        "hidden_states": torch.zeros(shape, device=device, dtype=dtype),
        "timestep": torch.zeros(batch, device=device, dtype=torch.long),
    }
    if "caption_channels" in config:
        text = (batch, TEXT_TOKENS, config.caption_channels)
        inputs["encoder_hidden_states"] = torch.zeros(text, device=device, dtype=dtype)
    elif config.num_embeds_ada_norm is not None:
        inputs["class_labels"] = torch.zeros(batch, device=device, dtype=torch.long)
    return inputs
