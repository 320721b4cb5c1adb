"""The feature network of handwritten digits: a small classifier, trained here on scikit-learn's scans.

``python -m skipdit_cli.evaluation.digits_network FILE`` trains it again, in about a minute on one core.
"""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from skipdit_cli.files import replacing
from skipdit_cli.presets import embedded_folder
from skipdit_cli.training.data.moving_digits import scans

SIDE = 8
"""Height and width of a scan, to which images are averaged."""
HELD_OUT = 360
"""The scans that training leaves out, one in five."""
EPOCHS, BATCH = 40, 64


class DigitsNetwork(nn.Module):
    """A convolutional classifier of digits: three layers of 3x3 on 8x8 pixels, a layer of 64 features, 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 0
        self.value_range = "uint8"
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 32, 3, padding=1)
        self.features = nn.Linear(32 * 16, 64)
        self.logits = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of digits, which are averaged to 8x8 pixels first.

        Args:
            images: uint8 (N, C, H, W), grey or RGB.

        Returns:
            ``features`` (N, 64), ``spatial`` (N, 8, 4, 4) and ``logits`` (N, 10).
        """
        grey = images.to(torch.float32).mean(1, keepdim=True) / 127.5 - 1
        x = F.relu(self.first(F.adaptive_avg_pool2d(grey, (8, 8))))
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        x = F.relu(self.third(x))
        features = F.relu(self.features(F.dropout(x.flatten(1), 0.3, self.training)))
        return {"features": features, "spatial": x[:, :8], "logits": self.logits(features)}


def split() -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the scans to train on, and of those held out."""
    order = np.random.default_rng(0).permutation(len(scans()[0]))
    return order[HELD_OUT:], order[:HELD_OUT]


def train_network(epochs: int = EPOCHS) -> DigitsNetwork:
    """Return the network, trained on the scans that are not held out, each shifted by up to one pixel."""
    images, labels = (torch.from_numpy(values) for values in scans())
    kept = torch.from_numpy(split()[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DigitsNetwork().train()
        steps = epochs * -(-len(kept) // BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for batch in kept[torch.randperm(len(kept))].split(BATCH):
                top, left = torch.randint(0, 3, (2,)).tolist()
                padded = F.pad(images[batch][:, None], (1, 1, 1, 1))
                logits = network(padded[..., top : top + SIDE, left : left + SIDE])["logits"]
                optimizer.zero_grad()
                F.cross_entropy(logits, labels[batch]).backward()
                optimizer.step()
                schedule.step()
    return _with_unit_features(network.eval(), images[kept])


def _with_unit_features(network: DigitsNetwork, images: torch.Tensor) -> DigitsNetwork:
    """Scale the features to a mean square of 1 and the logits' weights inversely: KID cubes products of features, and
    is all noise in a small unit."""
    with torch.no_grad():
        scale = network(images[:, None])["features"].square().mean().sqrt()
        network.features.weight.div_(scale)
        network.features.bias.div_(scale)
        network.logits.weight.mul_(scale)
    return network


def held_out_accuracy(network: nn.Module) -> float:
    """Return the share of the held-out scans that a network classifies correctly."""
    images, labels = (torch.from_numpy(values) for values in scans())
    held_out = torch.from_numpy(split()[1])
    with torch.no_grad():
        predicted = network(images[held_out][:, None])["logits"].argmax(1)
    return float((predicted == labels[held_out]).double().mean())


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network as TorchScript, without the parts that differ from machine to machine: paths and an id."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network), buffer)
    with (
        replacing(path) as part,
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as target,
    ):
        for name in source.namelist():
            if not name.endswith((".debug_pkl", "/serialization_id")):
                target.writestr(zipfile.ZipInfo(name), source.read(name))


if __name__ == "__main__":
    destination = Path(sys.argv[1]) if len(sys.argv) > 1 else embedded_folder() / "digits-features.pt"
    trained = train_network()
    save_network(trained, destination)
    print(f"{destination}: {100 * held_out_accuracy(trained):.1f} % of {HELD_OUT} scans held out")
