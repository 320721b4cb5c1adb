"""What a step costs, where that can be counted."""

from __future__ import annotations


def counted(transformer):
    """The ``StepFlops`` of a transformer; None where no example inputs of it can be made up, or its forward does not
    run without weights."""
    from skipdit_cli.bench.flops import StepFlops

    try:
        return StepFlops(transformer)
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError):
        return None
