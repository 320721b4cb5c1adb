"""The settings of ``skipdit finetune`` beside those of every training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from skipdit_cli.settings import MODEL, HubSettings, setting
from skipdit_cli.training.training_settings import TrainingSettings


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of ``skipdit finetune``: which part of the model is trained, and how."""

    train: str = setting("skip", "Train 'skip': the branches alone, the trunk frozen (stage 1); or 'all': everything.")
    expert: str | None = setting(None, "Transformer to train, of two (Wan 2.2): high (noise) or low.", MODEL)
    lora: str | None = setting(None, "LoRA to load under the branches: train with the one you sample with.", MODEL)
    hub: HubSettings = field(default_factory=HubSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    @property
    def only_branches(self) -> bool:
        """Whether the skip branches alone are trained."""
        return self.train == "skip"
