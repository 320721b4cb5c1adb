"""The diffusion loss: the error of the prediction, and the variational bound of a learned variance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

PREDICTIONS = ("epsilon", "v_prediction")


class Losses(NamedTuple):
    """Means over a batch.

    Args:
        total: The loss, which carries the gradient.
        mse: The squared error of the prediction.
        vb: The variational bound in bits per dimension; 0 for a model without a learned variance.
    """

    total: torch.Tensor
    mse: torch.Tensor
    vb: torch.Tensor


class DiffusionLoss:
    """The loss on a scheduler's noise levels (arXiv 2006.11239, and 2102.09672 for the learned variance).

    Exactly what the DiT repository minimises (``training_losses`` in diffusion/gaussian_diffusion.py, with
    ``LossType.MSE`` and ``ModelVarType.LEARNED_RANGE``): mse + vb, vb unscaled, its mean detached. PixArt and
    HunyuanDiT train with copies of that file, the latter to predict v (arXiv 2202.00512).

    Args:
        betas: (T,), the noise schedule.
        prediction: The prediction type of the model: ``epsilon``, the noise, or ``v_prediction``.
    """

    density = None
    """Timesteps are drawn uniformly."""

    def __init__(self, betas: torch.Tensor, prediction: str = "epsilon"):
        betas, self.prediction = betas.double(), prediction
        alphas = torch.cumprod(1 - betas, dim=0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        posterior = betas * (1 - before) / (1 - alphas)
        tables = {
            "signal": alphas.sqrt(),
            "noise": (1 - alphas).sqrt(),
            "from_x0": betas * before.sqrt() / (1 - alphas),
            "from_xt": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
            # The posterior variance at t = 0 is 0; its logarithm is taken from t = 1.
            "log_least": torch.cat([posterior[1:2], posterior[1:]]).log(),
            "log_most": betas.log(),
        }
        self.tables = {name: table.float() for name, table in tables.items()}
        self.num_timesteps = len(betas)

    def to(self, device: torch.device) -> DiffusionLoss:
        """Move the tables to a device."""
        self.tables = {name: table.to(device) for name, table in self.tables.items()}
        return self

    def _at(self, name: str, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return self.tables[name][t].view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return noisy latents x_t of q(x_t | x_0), (B, C, [F,] H, W), for t (B,) int64."""
        return self._at("signal", t, x0) * x0 + self._at("noise", t, x0) * noise

    def times(self, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """Return timesteps as the model takes them."""
        return t

    def __call__(self, output, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> Losses:
        """Return the loss of a prediction.

        Args:
            output: (B, C or 2C, [F,] H, W): the prediction, followed by the variance if the model learns one.
            x0, noise: (B, C, [F,] H, W).
            t: (B,) int64 in 0..T-1.
        """
        channels = x0.shape[1]
        predicted, variance = output.float().split([channels, output.shape[1] - channels], dim=1)
        signal, level = self._at("signal", t, x0), self._at("noise", t, x0)
        target = noise if self.prediction == "epsilon" else signal * noise - level * x0
        mse = (target - predicted).square().mean()
        if variance.shape[1] == 0:
            return Losses(mse, mse.detach(), torch.zeros_like(mse))
        xt, predicted = self.add_noise(x0, noise, t), predicted.detach()
        restored = (
            (xt - level * predicted) / signal if self.prediction == "epsilon" else signal * xt - level * predicted
        )
        vb = self.bound(restored, variance, x0, xt, t).mean()
        return Losses(mse + vb, mse.detach(), vb.detach())

    def bound(self, x0_predicted, variance, x0, xt, t) -> torch.Tensor:
        """Return the term of the variational bound at t in bits per dimension, (B,)."""

        def at(name: str) -> torch.Tensor:
            return self._at(name, t, x0)

        mean = at("from_x0") * x0_predicted + at("from_xt") * xt
        true_mean = at("from_x0") * x0 + at("from_xt") * xt
        share = (variance + 1) / 2
        log_variance = share * at("log_most") + (1 - share) * at("log_least")
        divergence = gaussian_divergence(true_mean, at("log_least"), mean, log_variance)
        surprise = -discretised_log_likelihood(x0, mean, 0.5 * log_variance)
        bits = torch.where((t == 0).view(-1, *[1] * (x0.ndim - 1)), surprise, divergence)
        return bits.flatten(1).mean(dim=1) / math.log(2)


def gaussian_divergence(mean, log_variance, other_mean, other_log_variance) -> torch.Tensor:
    """Return KL(N(mean, ...) || N(other_mean, ...)) element by element, in nats."""
    spread = (log_variance - other_log_variance).exp()
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance + spread + distance - 1)


def discretised_log_likelihood(x, mean, log_scale) -> torch.Tensor:
    """Return the log probability in nats of x's 1/127.5-wide bin under a Gaussian; x is 8-bit, scaled to [-1, 1].

    The normal distribution function is ADM's tanh approximation, for the numbers of the DiT repository.
    """
    scale = (-log_scale).exp()
    above = _normal_cdf(scale * (x - mean + 1 / 255))
    below = _normal_cdf(scale * (x - mean - 1 / 255))
    inside = (above - below).clamp(min=1e-12).log()
    at_ends = torch.where(x > 0.999, (1 - below).clamp(min=1e-12).log(), inside)
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), at_ends)


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
