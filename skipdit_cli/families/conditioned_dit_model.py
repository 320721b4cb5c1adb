"""DiT with each of the four ways of conditioning that its paper compares, in diffusers' style and of its parts.

The path of this module is written into ``model_index.json``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import LabelEmbedding, PatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # by this name diffusers finds how to load the class
from diffusers.models.normalization import AdaLayerNorm, AdaLayerNormZero
from torch import nn

from skipdit_cli.families.conditioned_dit import ADALN, ADALN_ZERO, CONDITIONINGS, CROSS_ATTENTION, IN_CONTEXT


class AdaptiveNormBlock(nn.Module):
    """A block whose layer norms are shifted and scaled by the conditioning, and, with gates, so are its residuals.

    With gates it is the adaLN-Zero block of diffusers' ``DiTTransformer2DModel``, without embedders of its own.

    Args:
        dim: D, the width.
        num_attention_heads, attention_head_dim: Number and width of the attention heads.
        gated: Whether there are gates: adaLN-Zero, else adaLN.
        norm_eps: Of the layer norm before the MLP of a gated block; the others have 1e-6.
        activation_fn: Of the MLP.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        gated: bool,
        norm_eps: float = 1e-6,
        activation_fn: str = "gelu-approximate",
    ):
        super().__init__()
        self.gated = gated
        if gated:
            self.norm1: nn.Module = AdaLayerNormZero(dim)
            self.norm2: nn.Module = nn.LayerNorm(dim, elementwise_affine=False, eps=norm_eps)
        else:
            adaptive: Any = {"output_dim": 2 * dim, "norm_eps": 1e-6, "chunk_dim": 1}
            self.norm1, self.norm2 = AdaLayerNorm(dim, **adaptive), AdaLayerNorm(dim, **adaptive)
        self.attn1 = Attention(dim, heads=num_attention_heads, dim_head=attention_head_dim, bias=True)
        self.ff = FeedForward(dim, activation_fn=activation_fn)

    def forward(self, hidden_states: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """Run the block.

        Args:
            hidden_states: (batch, tokens, D).
            conditioning: (batch, D).
        """
        if not self.gated:
            hidden_states = hidden_states + self.attn1(self.norm1(hidden_states, temb=conditioning))
            return hidden_states + self.ff(self.norm2(hidden_states, temb=conditioning))
        normed, gate, shift, scale, gate_mlp = self.norm1(hidden_states, emb=conditioning)
        hidden_states = gate.unsqueeze(1) * self.attn1(normed) + hidden_states
        normed = self.norm2(hidden_states) * (1 + scale[:, None]) + shift[:, None]
        return gate_mlp.unsqueeze(1) * self.ff(normed) + hidden_states


class ConditionedDiTTransformer2DModel(ModelMixin, ConfigMixin, CacheMixin):  # type: ignore[misc]  # as in diffusers
    """DiT (arXiv 2212.09748, section 3.2) that is told its timestep and its class label in one of four ways.

    ``in-context``: as two more tokens, which are removed after the last block. ``cross-attention``: each block attends
    to the two, after its self-attention. ``adaln``: their sum gives the shift and the scale of each layer norm.
    ``adaln-zero``: it gives gates of the residuals too, which begin at 0. The first two have layer norms with weights,
    also before the output, as in the parameter counts of the paper.

    The official code has only the last. Timestep frequencies are those of the official code.

    Args:
        conditioning: One of ``CONDITIONINGS``.
        num_attention_heads, attention_head_dim: Their product is D.
        in_channels: Of the latents.
        out_channels: Twice ``in_channels`` where the variance is learned; None for as many.
        num_layers: The number of blocks.
        sample_size: Height and width of the latents.
        patch_size: Height and width of a patch.
        activation_fn: Of the MLPs.
        num_embeds_ada_norm: Number of classes, which is also the null label.
        norm_eps: Of layer norms.

    Raises:
        ValueError: There is no such conditioning.
    """

    config: Any
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = ["pos_embed", "norm"]
    _no_split_modules: Any = ["AdaptiveNormBlock", "BasicTransformerBlock"]
    _repeated_blocks: Any = ["AdaptiveNormBlock", "BasicTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        conditioning: str = ADALN_ZERO,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        sample_size: int = 32,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int = 1000,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise ValueError(f"Got conditioning '{conditioning}' but expected one of {', '.join(CONDITIONINGS)}.")
        self.inner_dim = dim = num_attention_heads * attention_head_dim
        self.out_channels = in_channels if out_channels is None else out_channels
        self.gradient_checkpointing = False
        self.is_adaptive = conditioning in (ADALN, ADALN_ZERO)

        # 1. Input
        self.pos_embed = PatchEmbed(sample_size, sample_size, patch_size, in_channels, dim)

        # 2. Conditioning
        self.time_proj = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=dim)
        self.class_embedder = LabelEmbedding(num_embeds_ada_norm, dim, dropout_prob=0.1)

        # 3. Blocks
        def block() -> nn.Module:
            heads = (dim, num_attention_heads, attention_head_dim)
            if self.is_adaptive:
                return AdaptiveNormBlock(*heads, conditioning == ADALN_ZERO, norm_eps, activation_fn)
            return BasicTransformerBlock(
                *heads,
                cross_attention_dim=dim if conditioning == CROSS_ATTENTION else None,
                activation_fn=activation_fn,
                attention_bias=True,
                norm_eps=norm_eps,
            )

        self.transformer_blocks = nn.ModuleList(block() for _ in range(num_layers))

        # 4. Output
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=not self.is_adaptive, eps=1e-6)
        self.proj_out_1 = nn.Linear(dim, 2 * dim) if self.is_adaptive else None
        self.proj_out_2 = nn.Linear(dim, patch_size * patch_size * self.out_channels)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.LongTensor,
        class_labels: torch.LongTensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the noise, and the variance where it is learned.

        Args:
            hidden_states: (batch, channels, height, width) latents.
            timestep: (batch,).
            class_labels: (batch,) class labels.
            return_dict: Return a ``Transformer2DModelOutput`` instead of a tuple.
        Returns:
            (batch, out_channels, height, width).
        """
        height, width = hidden_states.shape[-2:]
        hidden_states = self.pos_embed(hidden_states)
        time = self.timestep_embedder(self.time_proj(timestep).to(hidden_states.dtype))
        label = self.class_embedder(class_labels)

        both, num_patches = torch.stack((time, label), dim=1), hidden_states.shape[1]
        if self.config.conditioning == IN_CONTEXT:
            hidden_states = torch.cat((hidden_states, both), dim=1)
        for block in self.transformer_blocks:
            if self.is_adaptive:
                hidden_states = self._run(block, hidden_states, time + label)
            elif self.config.conditioning == CROSS_ATTENTION:
                hidden_states = self._run(block, hidden_states, None, both)
            else:
                hidden_states = self._run(block, hidden_states)

        hidden_states = self.norm_out(hidden_states[:, :num_patches])
        if self.proj_out_1 is not None:
            shift, scale = self.proj_out_1(F.silu(time + label)).chunk(2, dim=1)
            hidden_states = hidden_states * (1 + scale[:, None]) + shift[:, None]
        output = self._unpatchify(self.proj_out_2(hidden_states), height, width)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _run(self, block: nn.Module, *arguments: torch.Tensor | None) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            checkpoint: Any = self._gradient_checkpointing_func
            return checkpoint(block, *arguments)
        return block(*arguments)

    def _unpatchify(self, patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(batch, patches, p·p·C) to (batch, C, height, width)."""
        p = self.config.patch_size
        grid = patches.reshape(len(patches), height // p, width // p, p, p, self.out_channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), self.out_channels, height, width)
