"""Publish a finished folder on the hub: which of its files are uploaded, and how to upload them by hand."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from skipdit_cli.cards.card import CARD
from skipdit_cli.cards.plans import PLANS, plan_files
from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.files import MARKER, names_in, read_marker
from skipdit_cli.models.folder import PIPELINE_CODE, is_legal
from skipdit_cli.models.hub import check_upload, upload_folder
from skipdit_cli.models.index import INDEX, is_part, parts_of
from skipdit_cli.skip import skip_folder


def check_push(hub_id: str | None, private: bool = False) -> None:
    """Check the values of ``--push-to-hub`` and ``--private``, as far as that is known without asking the hub.

    Raises:
        UsageError: The id is not OWNER/NAME, no token is stored, the hub is switched off, or ``--private`` is given
            without an id.
    """
    if hub_id is not None:
        check_upload(hub_id)
    elif private:
        raise UsageError("Got --private without --push-to-hub OWNER/NAME; give both or neither.")


def push(folder: Path, hub_id: str, private: bool = False) -> str:
    """Upload the pipeline in a folder, and nothing else that lies there; the repository is made if there is none.

    Returns:
        The address of the repository.
    Raises:
        SkipditError: The hub refused it, or was not reached; the folder is kept.
    """
    patterns = pipeline_patterns(folder)  # before a repository is made: a damaged folder is not pushed
    try:
        return upload_folder(folder, hub_id, patterns, private)
    except SkipditError:
        raise
    except Exception as cause:  # HTTP, the hub's checks and the disk each raise their own; the folder is whole
        raise SkipditError(
            f"The upload to {hub_id} failed ({first_line(cause)}); {folder} is whole and kept, to push it run "
            f"'{upload_command(folder, hub_id)}'."
        ) from cause


def pipeline_patterns(folder: Path) -> list[str]:
    """Return glob patterns of the files that make up the pipeline in a folder.

    The plans in ``plans/`` belong to it. Of a training run these leave out its checkpoints and metrics. A transformer
    alone is all that its manifest lists.
    """
    if is_part(folder):
        return [escape(name) for name in (read_marker(folder) or {"files": names_in(folder)})["files"]]
    parts = parts_of(folder)
    branches = [skip_folder(part) for part in parts if part.startswith("transformer")]
    legal = sorted(escape(file.name) for file in folder.iterdir() if file.is_file() and is_legal(file.name))
    plans = [f"{PLANS}/{escape(file.name)}" for file in plan_files(folder)]
    return [INDEX, CARD, PIPELINE_CODE, *legal, *plans, *(f"{part}/*" for part in (*parts, *branches))]


def upload_command(folder: Path, hub_id: str) -> str:
    """Return the ``hf`` command that uploads the same files."""
    patterns = [pattern.removesuffix("/*") for pattern in pipeline_patterns(folder)]
    others = [path for path in folder.iterdir() if not any(fnmatchcase(path.name, pattern) for pattern in patterns)]
    if is_part(folder):
        others = [folder / MARKER]
    plans = plan_files(folder)
    excluded = {
        re.sub(r"-\d+$", "-*", path.name) + "/*" * path.is_dir()
        for path in others
        if not (plans and path.name == PLANS)
    }
    excluded |= {f"{PLANS}/{file.name}" for file in (folder / PLANS).glob("*") if plans and file not in plans}
    arguments = [word for pattern in sorted(excluded) for word in ("--exclude", pattern)]
    return shlex.join(["hf", "upload", hub_id, str(folder), *arguments])
