"""Random directions in the space of a model's weights, each row as long as the row of the weight (after Li et al.,
arXiv 1712.09913, section 4)."""

from __future__ import annotations

import hashlib

import torch

BRANCHES = "skip_branches."
"""What the names of the parameters of skip branches begin with."""


def direction(name: str, weight: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a random direction for one parameter.

    It is drawn from N(0, 1) by the seed and the name alone, so that the parameters that two models share have the
    same draws; each output row is then scaled to the norm of that row of the weight.

    Args:
        name: The name of the parameter in its model.
        weight: (rows, ...). Biases and other parameters of one dimension get the direction 0.
        seed: The seed of the direction.

    Returns:
        A tensor of the shape, dtype and device of the weight.
    """
    if weight.ndim < 2:
        return torch.zeros_like(weight)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    draws = torch.randn(weight.shape, generator=generator).to(weight.device, torch.float64).flatten(1)
    lengths = weight.detach().double().flatten(1).norm(dim=1, keepdim=True)
    draws *= lengths / draws.norm(dim=1, keepdim=True)
    return draws.view(weight.shape).to(weight.dtype)


class Plane:
    """A plane through the weights of a model: theta + alpha d1 + beta d2. Its context ends with the former weights.

    Args:
        model: The model, whose parameters are changed in place.
        seed: The seed of both directions.
        with_branches: Whether the weights of skip branches are perturbed as well.
    """

    def __init__(self, model: torch.nn.Module, seed: int, with_branches: bool = True):
        self.parameters = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.ndim > 1 and (with_branches or not name.startswith(BRANCHES))
        }
        self.weights = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        self.directions = [
            {name: direction(name, weight, 2 * seed + each) for name, weight in self.weights.items()}
            for each in (0, 1)
        ]

    def __enter__(self) -> Plane:
        return self

    def __exit__(self, *exception) -> None:
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(self.weights[name])

    @torch.no_grad()
    def move(self, alpha: float, beta: float) -> None:
        """Set the weights to a point of the plane."""
        first, second = self.directions
        for name, weight in self.parameters.items():
            weight.copy_(self.weights[name] + alpha * first[name] + beta * second[name])
