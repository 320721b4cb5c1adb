"""The training of a Diffusion Transformer, from scratch or continued, with or without skip branches."""

from skipdit_cli.training.training_settings import TrainingSettings

__all__ = ["TrainingSettings"]
