"""What the measurements of trainings read, files and packages: what is missing is said before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.training.data_source import parse_data


def missing_files(data: Iterable[str], features: str) -> list[str]:
    """Return the data sources, and the network of the scores, that are not on this machine.

    Args:
        data: Data sources, as ``--data``.
        features: As for ``Measurement``.
    """
    folders = [path for text in dict.fromkeys(data) if (path := parse_data(text).path) and not path.exists()]
    needed = [f"the data set {path}" for path in folders]
    if features != "digits" and not Path(features).is_file():
        needed.append(f"the TorchScript file {features} of the feature network")
    return needed


def check_measurable(data: Iterable[str], features: str, samples: Sequence[int], reference_samples: int) -> None:
    """Refuse what could be measured on no model, before models are trained for it.

    Args:
        data, features: As for ``missing_files``.
        samples, reference_samples: The numbers of samples that are scored, and of real ones.

    Raises:
        UsageError: Files or a package are missing, or samples are too few for a score.
    """
    from skipdit_cli.evaluation.distances import check_torchmetrics

    if missing := missing_files(data, features):
        raise UsageError(f"The study needs {' and '.join(missing)}, which {_is(missing)} not here; see --dry-run.")
    if 1 in (*samples, reference_samples):
        raise UsageError("Got 1 sample to score but expected at least 2; change 'samples' or 'reference_samples'.")
    if any(samples):
        check_torchmetrics()


def _is(things: Sequence[str]) -> str:
    return "is" if len(things) == 1 else "are"
