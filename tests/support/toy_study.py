"""A study for tests: a training of a few steps, a conversion of what it made, and a count of weights."""

from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.studies.spread import spread
from skipdit_cli.studies.study import Findings, Study, at_least

MODEL = """about: A tiny model.
source: tests.
model:
  class: DiTTransformer2DModel
  config: {num_layers: 2, num_attention_heads: 1, attention_head_dim: 8, in_channels: 1, out_channels: 2,
    sample_size: 8, patch_size: 4, num_embeds_ada_norm: 10}
train: {data: digits, skip-branches: false, train-batch-size: 4}
"""


@dataclass(frozen=True)
class ToySettings:
    """The settings of the toy study."""

    preset: str
    steps: int = at_least(0)
    factor: float = 1.0


def commands(settings, seeds):
    """Return one training a seed, and one conversion of the first."""
    train = f"train --preset {settings.preset} --max-train-steps {settings.steps} --checkpointing-steps 1"
    lines = {f"vanilla-{seed}": f"{train} --seed {seed}" for seed in seeds}
    return {**lines, "skip-0": "convert -m {run}/vanilla-0"}


def count_weights(folder: str) -> int:
    """Return the bytes of the weights of a transformer."""
    return sum(path.stat().st_size for path in Path(folder, "transformer").glob("*.safetensors"))


def measure(run):
    """Measure what the commands made."""
    calls = {name: {"folder": str(run.folder(name))} for name in run.lines}
    sizes = run.measured_all(count_weights, calls)
    losses = [run.result(f"vanilla-{seed}")["loss"] for seed in run.seeds]
    numbers = {"sizes": sizes, "losses": losses, "scaled": run.settings.factor * losses[0]}
    return Findings(f"The loss is {spread(losses, 3)}.", numbers=numbers)


STUDY = Study("toy", "what does a toy weigh", "Toys are light.", ToySettings, commands, measure)
