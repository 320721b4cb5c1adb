"""Class-conditional and unconditional Latte, in diffusers' style and of its parts; diffusers does not have the model.

The path of this module is written into ``model_index.json``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import (
    LabelEmbedding,
    PatchEmbed,
    TimestepEmbedding,
    Timesteps,
    get_1d_sincos_pos_embed_from_grid,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # by this name diffusers finds how to load the class
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn


class LatteClassBlock(nn.Module):
    """An adaLN-zero block whose attention runs over the patches of a frame, or over the frames at a patch.

    Both kinds have the same input layout, because everything but the attention works token by token. A block that the
    cache skips costs no transposition.

    Args:
        dim: D, the width.
        num_attention_heads, attention_head_dim: Number and width of the attention heads.
        mlp_ratio: Hidden width of the MLP over D.
        dropout: In attention and MLP.
        attention_bias: Of the query, key and value projections.
        activation_fn: Of the MLP.
        temporal: Attend over frames.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_bias: bool = True,
        activation_fn: str = "gelu-approximate",
        temporal: bool = False,
    ):
        super().__init__()
        self.temporal = temporal
        self.norm1 = AdaLayerNormZero(dim)
        self.attn1 = Attention(
            dim, heads=num_attention_heads, dim_head=attention_head_dim, dropout=dropout, bias=attention_bias
        )
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.ff = FeedForward(dim, dropout=dropout, activation_fn=activation_fn, inner_dim=round(mlp_ratio * dim))

    def forward(self, hidden_states: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """Run the block.

        Args:
            hidden_states: (batch, frames, patches, D).
            conditioning: (batch, D).
        Returns:
            (batch, frames, patches, D).
        """
        shape = hidden_states.shape
        x = hidden_states.flatten(1, 2)
        normed, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(x, emb=conditioning)
        x = x + gate[:, None] * self._attend(normed.unflatten(1, shape[1:3])).flatten(1, 2)
        normed = self.norm2(x) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        x = x + gate_mlp[:, None] * self.ff(normed)
        return x.reshape(shape)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2) if self.temporal else x
        attended = self.attn1(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return attended.transpose(1, 2) if self.temporal else attended


class LatteClassTransformer3DModel(ModelMixin, ConfigMixin, CacheMixin):  # type: ignore[misc]  # as in diffusers
    """Class-conditional or unconditional Latte (arXiv 2401.03048, variant 1).

    It is ``Latte`` in models/latte.py of the official code with ``extras`` 2 or 1, and has its timestep frequencies.
    Images beside the video of a sample (the official ``use_image_num``) are a second call with
    ``enable_temporal_attentions=False``, because only temporal blocks attend across frames.

    Args:
        num_attention_heads, attention_head_dim: Their product is D, a multiple of 4.
        in_channels: Of the latents.
        out_channels: Twice ``in_channels`` where the variance is learned; None for as many.
        num_layers: Number of (spatial, temporal) pairs: half the official depth.
        mlp_ratio: Hidden width of the MLPs over D.
        dropout: In attention and MLPs.
        attention_bias: Of the query, key and value projections.
        sample_size: Height and width of the latents.
        patch_size: Of the spatial patches; frames are not joined.
        activation_fn: Of the MLPs.
        num_embeds_ada_norm: Number of classes, which is also the null label; None for an unconditional model.
        video_length: Most frames that the model has positions for.
    """

    config: Any
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = ["pos_embed", "norm"]
    _no_split_modules: Any = ["LatteClassBlock"]
    _repeated_blocks: Any = ["LatteClassBlock"]

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 14,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = None,
        video_length: int = 16,
    ):
        super().__init__()
        self.inner_dim = dim = num_attention_heads * attention_head_dim
        self.out_channels = in_channels if out_channels is None else out_channels
        self.gradient_checkpointing = False

        # 1. Input
        self.pos_embed = PatchEmbed(sample_size, sample_size, patch_size, in_channels, dim)
        frames = get_1d_sincos_pos_embed_from_grid(dim, torch.arange(video_length), output_type="pt")
        self.register_buffer("temp_pos_embed", frames.float()[None], persistent=False)

        # 2. Conditioning
        self.time_proj = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=dim)
        classes = num_embeds_ada_norm
        self.class_embedder = None if classes is None else LabelEmbedding(classes, dim, dropout_prob=0.1)

        # 3. Blocks, which alternate
        def blocks(temporal: bool) -> nn.ModuleList:
            return nn.ModuleList(
                LatteClassBlock(
                    dim,
                    num_attention_heads,
                    attention_head_dim,
                    mlp_ratio=mlp_ratio,
                    dropout=dropout,
                    attention_bias=attention_bias,
                    activation_fn=activation_fn,
                    temporal=temporal,
                )
                for _ in range(num_layers)
            )

        self.transformer_blocks = blocks(temporal=False)
        self.temporal_transformer_blocks = blocks(temporal=True)

        # 4. Output
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.proj_out_1 = nn.Linear(dim, 2 * dim)
        self.proj_out_2 = nn.Linear(dim, patch_size * patch_size * self.out_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.LongTensor,
        class_labels: torch.LongTensor | None = None,
        enable_temporal_attentions: bool = True,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the noise, and the variance where it is learned.

        Args:
            hidden_states: (batch, channels, frames, height, width) latents.
            timestep: (batch,).
            class_labels: (batch,) class labels; None for an unconditional model.
            enable_temporal_attentions: False leaves out the temporal blocks and positions: frames are images.
            return_dict: Return a ``Transformer2DModelOutput`` instead of a tuple.
        Returns:
            (batch, out_channels, frames, height, width).
        Raises:
            ValueError: A class-conditional model gets no labels, an unconditional one gets some, or there are too many
                frames.
        """
        frames, height, width = hidden_states.shape[2:]
        if enable_temporal_attentions and frames > self.config.video_length:
            raise ValueError(f"Got {frames} frames but the model has positions for {self.config.video_length}.")

        # 1. Input
        patches = hidden_states.transpose(1, 2)
        hidden_states = self.pos_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
        conditioning = self._condition(timestep, class_labels, hidden_states.dtype)

        # 2. Blocks
        blocks = zip(self.transformer_blocks, self.temporal_transformer_blocks)
        for index, (spatial_block, temporal_block) in enumerate(blocks):
            hidden_states = self._run(spatial_block, hidden_states, conditioning)
            if enable_temporal_attentions:
                if index == 0:
                    hidden_states = hidden_states + self.temp_pos_embed[:, :frames, None].to(hidden_states.dtype)
                hidden_states = self._run(temporal_block, hidden_states, conditioning)

        # 3. Output
        shift, scale = self.proj_out_1(F.silu(conditioning)).chunk(2, dim=1)
        hidden_states = self.norm_out(hidden_states) * (1 + scale[:, None, None]) + shift[:, None, None]
        output = self._unpatchify(self.proj_out_2(hidden_states), height, width)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _run(self, block: nn.Module, hidden_states: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            checkpoint: Any = self._gradient_checkpointing_func
            return checkpoint(block, hidden_states, conditioning)
        return block(hidden_states, conditioning)

    def _condition(self, timestep: torch.Tensor, class_labels: torch.Tensor | None, dtype) -> torch.Tensor:
        """Embed timestep and class label: (batch, D)."""
        conditioning = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        if (class_labels is None) != (self.class_embedder is None):
            kind = "an unconditional" if class_labels is not None else "a class-conditional"
            given = "class_labels" if class_labels is not None else "no class_labels"
            raise ValueError(f"Got {given} for {kind} model.")
        if class_labels is None or self.class_embedder is None:
            return conditioning
        return conditioning + self.class_embedder(class_labels)

    def _unpatchify(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(batch, frames, patches, p·p·C) to (batch, C, frames, height, width)."""
        p = self.config.patch_size
        batch, frames = patches.shape[:2]
        grid = patches.reshape(batch, frames, height // p, width // p, p, p, self.out_channels)
        return grid.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, self.out_channels, frames, height, width)
