"""The skip branches of a model: one LayerNorm and one Linear per pair of blocks."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import FP32LayerNorm
from torch import nn

from skipdit_cli.errors import UsageError
from skipdit_cli.skip.time_embedding import TIME_EMBEDDINGS

MERGES = ("residual", "replace")


class SkipBranches(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as in diffusers: both have a config_name
    """Long skip branches from block i to block L-1-i (Skip-DiT, arXiv 2411.17616, section 3; ``DiT_skip`` in
    class-to-image/models.py of the official code).

    ``norms[i]`` and ``linears[i]`` belong to the pair (i, L-1-i); the official files count from the middle instead.

    Args:
        dim: D, the width of the trunk.
        num_layers: L, the number of blocks. An odd L leaves its middle block without a pair.
        merge: How a branch joins the trunk. ``residual`` is x + W·LN[x, s]; W is 0 at first, so that a converted model
            is unchanged bit for bit. ``replace`` is W·LN[x, s], the form of the official checkpoints.
        backbone: Class name of the transformer that the branches belong to.
        time_embedding: The timestep frequencies that the weights were trained with, which the transformer gets when
            the branches are attached: ``official`` for those of the DiT repository, which diffusers' DiT spaces
            differently, ``sit`` for those of SiT, and ``diffusers`` otherwise.
        trunk: For a class that is not declared, the trunk that was found (``Backbone.record``), so that attaching the
            branches again needs no forward.

    Attributes:
        num_pairs: The number of pairs (i, L-1-i).

    Raises:
        UsageError: The merge or the time embedding is none of these.
    """

    config: Any

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
        self.num_pairs = num_layers // 2
        self.norms = nn.ModuleList(FP32LayerNorm(2 * dim, eps=1e-6) for _ in range(self.num_pairs))
        self.linears = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(self.num_pairs))
        if merge == "residual":
            for parameter in self.linears.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, source: torch.Tensor, pair: int) -> torch.Tensor:
        """Join ``source``, the output of block ``pair``, to x, the input of its target block.

        Args:
            x: (..., D).
            source: (..., D), of the shape of x.
            pair: i of the pair (i, L-1-i).

        Returns:
            The new input of the target block, (..., D).
        """
        branch = self.linears[pair](self.norms[pair](torch.cat([x, source], dim=-1)))
        return x + branch if self.config.merge == "residual" else branch
