"""The folder of a run: which of its files the run wrote, and which belong to the finished pipeline."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from skipdit_cli import files
from skipdit_cli.cards.card import CARD, is_own_card
from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.skip import skip_folder
from skipdit_cli.training.run.state import ASIDE, METRICS, SAMPLES, Checkpoints

INDEX = "model_index.json"
TEXT_PARTS = ("text_encoder*", "tokenizer*", "image_encoder", "feature_extractor", "safety_checker")
TRAINED_PARTS = (*TRANSFORMERS, *map(skip_folder, TRANSFORMERS))
PIPELINE_FILES = (INDEX, *TRAINED_PARTS, "scheduler", "vae", *TEXT_PARTS)
RUN_FILES = ("checkpoint-*", SAMPLES, "logs", METRICS, f"{ASIDE}-*", files.MARKER, "*.tmp-*")


def check_run(output: Path) -> None:
    """Check that a run can be resumed in a folder.

    Raises:
        UsageError: The folder holds no run, or a file that no run wrote stands in the place of the pipeline.
    """
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if files.read_marker(output) is None and names and not Checkpoints(output).steps():
        raise UsageError(f"Output {output} holds {names[0]} and no checkpoint, so no run is in it; give another -o.")
    for path in files.unlisted_files(output) if files.read_marker(output) else ():
        if _is_of_pipeline(path.relative_to(output)):
            raise UsageError(
                f"Output {output} holds {path.relative_to(output)}, which no run wrote and whose place the finished "
                "pipeline would take; move it elsewhere."
            )


def unlisted_pipeline_files(output: Path, model: Path | None) -> list[str]:
    """Return the files of a finished pipeline in the folder of a run of version 0.1.0, which listed none.

    Args:
        model: The pipeline folder that the run begins with; None from scratch.
    """
    names = files.names_in(output)
    of_model = {name for name in names if model is not None and (model / name).is_file() and name != CARD}
    of_run = {CARD} if is_own_card(output / CARD) else set()
    return [name for name in names if name in of_model | of_run or _is_of_pipeline(Path(name))]


def _is_of_pipeline(path: Path) -> bool:
    return any(fnmatchcase(path.parts[0], pattern) for pattern in PIPELINE_FILES)
