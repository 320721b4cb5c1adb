"""How a command uploads the folder that it made, and says so."""

from __future__ import annotations

from pathlib import Path

from skipdit_cli import console


def upload(folder: Path, hub_id: str | None, private: bool) -> str | None:
    """Upload a finished folder to the repository of ``--push-to-hub``, if there is one, and return its address.

    Raises:
        SkipditError: The hub refused it, or was not reached; the folder is kept.
    """
    if not hub_id:
        return None
    from skipdit_cli.cards.publish import push

    console.say(f"Uploading {folder} to {hub_id} ...")
    address = push(folder, hub_id, private)
    console.say(f"Pushed to {address}.")
    return address
