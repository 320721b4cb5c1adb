"""The skip branches of a model: one LayerNorm and one Linear per pair of blocks."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from skipdit_cli.errors import UsageError
from skipdit_cli.skip.time_embedding import TIME_EMBEDDINGS

MERGES = ("residual", "replace")


class SkipBranches(ModelMixin, ConfigMixin):
    """Long skip branches from block i to block L-1-i (Skip-DiT, arXiv 2411.17616, section 3; ``DiT_skip`` in
    class-to-image/models.py of the official code).

    ``norms[i]`` and ``linears[i]`` belong to the pair (i, L-1-i); the official files count from the middle instead.

    Args:
        dim: D, the width of the trunk.
        num_layers: L, the number of blocks. An odd L leaves its middle block without a pair.
        merge: ``residual``: x + W·LN[x, s], W = 0 at first, so that a converted model is unchanged bit for bit.
            ``replace``: W·LN[x, s], the form of the official checkpoints.
        backbone: Class name of the transformer these branches belong to.
        time_embedding: ``official`` where the weights were trained with the DiT repository's timestep frequencies,
            which diffusers' DiT spaces differently; ``sit`` for those of a SiT; ``diffusers`` otherwise. Applied to
            the transformer that they are attached to.
        trunk: Of a class that is not declared, what was found (``Backbone.record``), so that no forward is needed to
            attach them again.
    """

    @register_to_config
    def __init__(
        self,
        dim: int,
        num_layers: int,
        merge: str = "residual",
        backbone: str = "DiTTransformer2DModel",
        time_embedding: str = "diffusers",
        trunk: dict | None = None,
    ):
        super().__init__()
        if merge not in MERGES:
            raise UsageError(f"Got merge '{merge}' but expected one of {', '.join(MERGES)}.")
        if time_embedding not in TIME_EMBEDDINGS:
            raise UsageError(
                f"Got time embedding '{time_embedding}' but expected one of {', '.join(TIME_EMBEDDINGS)}."
            )
        self.norms = nn.ModuleList(FP32LayerNorm(2 * dim, eps=1e-6) for _ in range(num_layers // 2))
        self.linears = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(num_layers // 2))
        if merge == "residual":
            for linear in self.linears:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    @property
    def num_pairs(self) -> int:
        return len(self.linears)

    def forward(self, x: torch.Tensor, source: torch.Tensor, pair: int) -> torch.Tensor:
        """Join ``source``, the output of block ``pair``, to x, the input of its target block.

        Args:
            x, source: (..., D), of one shape.
            pair: i of the pair (i, L-1-i).
        Returns:
            (..., D).
        """
        branch = self.linears[pair](self.norms[pair](torch.cat([x, source], dim=-1)))
        return x + branch if self.config.merge == "residual" else branch
