"""Publishing a finished folder on the hub."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from skipdit_cli import console
from skipdit_cli.cards.card import CARD
from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.files import MARKER, names_in, read_marker
from skipdit_cli.models.folder import is_legal
from skipdit_cli.models.index import INDEX, is_part, parts_of
from skipdit_cli.skip import skip_folder


def check_push(hub_id: str | None, private: bool = False) -> None:
    """Whether a folder could be pushed, as far as can be known without asking the hub.

    Raises:
        UsageError: The id has another form, there is no token, or the hub is out of bounds.
    """
    if hub_id is None:
        if private:
            raise UsageError("Got --private without --push-to-hub OWNER/NAME; give both or neither.")
        return
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(hub_id)
        fits = hub_id.count("/") == 1
    except HFValidationError:
        fits = False
    if not fits:
        raise UsageError(f"Got --push-to-hub '{hub_id}' but expected OWNER/NAME, such as alice/skip-dit-xl.")
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"Got --push-to-hub {hub_id} with HF_HUB_OFFLINE=1, which forbids it; leave one of them out.")
    if get_token() is None:
        raise UsageError(f"Got --push-to-hub {hub_id} but no token for the hub; run 'hf auth login' or set HF_TOKEN.")


def push(folder: Path, hub_id: str, private: bool = False) -> str:
    """Upload the pipeline in ``folder``, and nothing else that lies there; makes the repository if there is none.

    Returns:
        Its address.
    Raises:
        SkipditError: The hub refused, or was not to be reached.
    """
    from huggingface_hub import HfApi

    patterns = pipeline_patterns(folder)  # before a repository is made: what is damaged is not pushed
    console.say(f"Uploading {folder} to {hub_id} ...")
    api = HfApi()
    try:
        address = str(api.create_repo(hub_id, private=private or None, exist_ok=True))
        if private and not api.repo_info(hub_id).private:
            raise SkipditError(
                f"Repository {hub_id} is public already, so nothing was uploaded to it; {folder} is kept."
            )
        api.upload_folder(
            repo_id=hub_id,
            folder_path=folder,
            allow_patterns=patterns,
            commit_message="Upload a model made with skipdit",
        )
    except SkipditError:
        raise
    except Exception as cause:  # of HTTP, of the hub's checks, of the disk: whatever it is, the folder is whole
        raise SkipditError(
            f"The upload to {hub_id} failed ({first_line(cause)}); {folder} is whole and kept, to push it run "
            f"'{by_hand(folder, hub_id)}'."
        ) from cause
    console.say(f"Pushed to {address}.")
    return address


def pipeline_patterns(folder: Path) -> list[str]:
    """Glob patterns of the files that make up the pipeline in a folder: of a run, not its checkpoints and metrics. A
    transformer alone is all that its manifest lists."""
    if is_part(folder):
        return [escape(name) for name in (read_marker(folder) or {"files": names_in(folder)})["files"]]
    parts = parts_of(folder)
    branches = [skip_folder(part) for part in parts if part.startswith("transformer")]
    legal = sorted(escape(file.name) for file in folder.iterdir() if file.is_file() and is_legal(file.name))
    return [INDEX, CARD, *legal, *(f"{part}/*" for part in (*parts, *branches))]


def by_hand(folder: Path, hub_id: str) -> str:
    """The command that uploads the same."""
    patterns = [pattern.removesuffix("/*") for pattern in pipeline_patterns(folder)]
    others = [path for path in folder.iterdir() if not any(fnmatchcase(path.name, pattern) for pattern in patterns)]
    if is_part(folder):
        others = [folder / MARKER]
    named = {re.sub(r"-\d+$", "-*", path.name) + "/*" * path.is_dir() for path in others}
    left_out = [word for pattern in sorted(named) for word in ("--exclude", pattern)]
    return shlex.join(["hf", "upload", hub_id, str(folder), *left_out])
