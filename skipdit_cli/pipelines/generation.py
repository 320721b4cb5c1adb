"""Forward ``generate`` to the Python code in model cards that were written before it was a public name."""

from skipdit_cli.sampling.generate import generate

__all__ = ["generate"]
