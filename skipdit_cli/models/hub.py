"""Whether the hub can be asked, and what it means when it says no."""

from __future__ import annotations

from functools import cache

from skipdit_cli.errors import first_line

SECONDS = 10
"""To wait for the hub before its cache alone is asked: its own client tries for half a minute, for each file anew."""


def is_local(arguments: dict) -> bool:
    """Whether only the hub's local cache is asked: as wanted (``local_files_only``, ``HF_HUB_OFFLINE=1``), or because
    nothing answers."""
    from huggingface_hub import constants

    return bool(arguments.get("local_files_only") or constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT))


@cache
def answers(endpoint: str) -> bool:
    """Whether there is anything at an address; asked once a process."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=SECONDS)
    except Exception:  # of whichever HTTP client it uses
        return False
    return True


def why_not(hub_id: str, cause: Exception, arguments: dict) -> str:
    """One sentence about a model that could not be fetched."""
    from huggingface_hub import constants, errors

    if isinstance(cause, errors.GatedRepoError):
        return f"Model {hub_id} is gated: accept its terms at {constants.ENDPOINT}/{hub_id}, then run 'hf auth login'."
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"Model {hub_id} has no revision {arguments.get('revision')}; check --revision."
    if isinstance(cause, errors.RepositoryNotFoundError):
        return f"Model {hub_id} is not on the hub, or it is private: check the name, or run 'hf auth login'."
    if isinstance(cause, errors.EntryNotFoundError) and not is_local(arguments):
        return f"Model {hub_id} is no pipeline of diffusers: it has no model_index.json; give one that is."
    if not is_local(arguments):
        return (
            f"Model {hub_id} is no folder here and not to be had from the hub ({first_line(cause)}); check the name."
        )
    wanted = arguments.get("local_files_only") or constants.HF_HUB_OFFLINE
    way = "go online without HF_HUB_OFFLINE and --local-files-only" if wanted else "try again when the hub answers"
    return f"Model {hub_id} is no folder here and not in the hub's local cache; check the name, or {way}."
