"""The Hugging Face hub: the one place that asks it for a model or uploads a folder to it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.families.pipeline_parts import SECOND
from skipdit_cli.models.index import INDEX, check_denoiser, check_folder, is_part, pipeline_class
from skipdit_cli.models.weights import check_variant, read_json, variant_among
from skipdit_cli.quiet import quiet
from skipdit_cli.skip import SKIP, SkipBranches, skip_folder

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
"""Arguments of ``from_pretrained`` that say how the hub is asked."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""A hub id, OWNER/NAME."""
TIMEOUT = 10
"""Seconds until an unreachable hub is given up; its own client tries for half a minute, for each file anew."""


def find_folder(path, flag: str = "--model", without: Sequence[str] = (), **arguments) -> Path:
    """Return the folder of a pipeline, and download it first if ``path`` is a hub id that is not in the local cache.

    Args:
        path: A pipeline folder, or a hub id (OWNER/NAME).
        flag: The flag that named it, for the error message.
        without: Parts of a pipeline on the hub that are not downloaded.
        arguments: revision, token, local_files_only, variant, ... as for ``from_pretrained``; others are ignored.
    Raises:
        UsageError: It is not a pipeline folder, or neither the hub nor the local cache has it.
    """
    folder = Path(path).expanduser()
    if os.path.isdir(folder):  # pathlib's own raises where the text is too long for a path
        check_folder(folder)
        check_variant(folder, arguments.get("variant"))
        return folder
    if os.path.isfile(folder):
        raise UsageError(f"Got {flag} {path}, a file; run 'skipdit convert -m {path} -o FOLDER' first.")
    if not HUB_ID.fullmatch(str(path)):
        raise UsageError(f"Got {flag} {path}, which does not exist; give a pipeline folder or a hub id (OWNER/NAME).")
    arguments = {key: arguments[key] for key in (*HUB_ARGUMENTS, "variant") if key in arguments}
    folder = _download(str(path), arguments, without)
    check_folder(folder)
    check_variant(folder, arguments.get("variant"))
    return folder


def find_branches(path, subfolder: str = SKIP, **arguments) -> Path:
    """Return the folder of skip branches of a model folder or a repository, downloading them without the model.

    Args:
        path: A model folder, its ``skip/`` alone, or a hub id (OWNER/NAME) of either.
        subfolder: The folder of the branches in it.
        arguments: revision, token, cache_dir, ... as for ``from_pretrained``.
    Returns:
        The folder of the branches. A second transformer's lie beside it, and plans in ``plans`` beside it.
    Raises:
        UsageError: There are none, or neither the hub nor the local cache has them.
    """
    folder = Path(path).expanduser()
    if not os.path.exists(folder) and HUB_ID.fullmatch(str(path)):
        folder = _download_branches(str(path), subfolder, arguments)
    elif not os.path.isdir(folder):
        raise UsageError(f"Got skip branches {path}, which is no folder; give one, or a hub id (OWNER/NAME).")
    if (folder / subfolder / "config.json").is_file():
        return folder / subfolder
    if is_part(folder) and read_json(folder / "config.json").get("_class_name") == SkipBranches.__name__:
        return folder
    raise UsageError(f"Got {path}, which holds no {subfolder}/ of skip branches; 'skipdit convert' writes one.")


def _download_branches(hub_id: str, subfolder: str, requested: dict) -> Path:
    """Return the snapshot of a repository's skip branches and plans, without the weights of its model."""
    from huggingface_hub import snapshot_download

    arguments = {**requested, "local_files_only": is_local(requested)}
    second = subfolder.replace(SKIP, skip_folder(SECOND))
    patterns = [f"{subfolder}/*", f"{second}/*", "plans/*", "config.json"]
    with quiet(errors_only=True):
        try:
            folder = Path(snapshot_download(hub_id, allow_patterns=patterns, **arguments))
            if not (folder / subfolder).is_dir() and (folder / "config.json").is_file():  # skip/ was uploaded alone
                snapshot_download(hub_id, allow_patterns=["*.safetensors"], **arguments)
        except Exception as cause:  # the hub's client raises many
            raise UsageError(_refusal(hub_id, cause, requested)) from cause
    return folder


def is_local(arguments: dict) -> bool:
    """Return whether the hub's local cache alone is read.

    It is where ``local_files_only`` or ``HF_HUB_OFFLINE=1`` says so, and where the hub does not answer.
    """
    from huggingface_hub import constants

    return bool(arguments.get("local_files_only") or constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT))


@cache
def answers(endpoint: str) -> bool:
    """Return whether a server answers at an address; it is asked once a process."""
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=TIMEOUT)
    except Exception:  # which one depends on the HTTP client of the installed version
        return False
    return True


def _download(hub_id: str, requested: dict, without: Sequence[str]) -> Path:
    """Return the snapshot of a pipeline in the local cache, with its ``skip/``, card and licence."""
    from huggingface_hub import hf_hub_download, snapshot_download

    arguments = {**requested, "local_files_only": is_local(requested)}
    with quiet(errors_only=True):
        try:
            plain = {name: value for name, value in arguments.items() if name != "variant"}
            index = read_json(hf_hub_download(hub_id, INDEX, **plain))
            check_denoiser(hub_id, index)
            left_out = dict.fromkeys(without)  # diffusers does not download a part that is passed, if only as None
            if not arguments["local_files_only"] and arguments.get("variant") is None:
                arguments["variant"] = _published_variant(hub_id, plain)
            folder = pipeline_class(hub_id, index).download(hub_id, **arguments, **left_out)
            if not arguments["local_files_only"]:  # diffusers downloads what the index lists, and skip/ is not listed
                patterns = [f"{SKIP}/*", f"{skip_folder(SECOND)}/*", "README.md", "LICEN*", "NOTICE*"]
                snapshot_download(hub_id, allow_patterns=patterns, **plain)
        except UsageError:
            raise
        except Exception as cause:  # the hub's client, its cache and diffusers each raise their own
            raise UsageError(_refusal(hub_id, cause, requested)) from cause
    return Path(folder)


def _published_variant(hub_id: str, arguments: dict) -> str | None:
    """Return the one variant in which the hub has the transformer's weights; None if it has them without one."""
    from huggingface_hub import HfApi

    arguments = {name: arguments[name] for name in ("revision", "token") if name in arguments}
    files = map(Path, HfApi().list_repo_files(hub_id, **arguments))
    return variant_among(file.name for file in files if file.parent.name == "transformer")


def _refusal(hub_id: str, cause: Exception, arguments: dict) -> str:
    """Say in one sentence why a model could not be downloaded, and what to do."""
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
    offline = arguments.get("local_files_only") or constants.HF_HUB_OFFLINE
    advice = "go online without HF_HUB_OFFLINE and --local-files-only" if offline else "try again when the hub answers"
    return f"Model {hub_id} is no folder here and not in the hub's local cache; check the name, or {advice}."


def check_upload(hub_id: str) -> None:
    """Check that a folder could be uploaded to a repository, as far as that is known without asking the hub.

    Raises:
        UsageError: The id is not OWNER/NAME, no token is stored, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(hub_id)
        valid = hub_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UsageError(f"Got --push-to-hub '{hub_id}' but expected OWNER/NAME, such as alice/skip-dit-xl.")
    if constants.HF_HUB_OFFLINE:
        raise UsageError(f"Got --push-to-hub {hub_id} with HF_HUB_OFFLINE=1, which forbids it; leave one of them out.")
    if get_token() is None:
        raise UsageError(f"Got --push-to-hub {hub_id} but no token for the hub; run 'hf auth login' or set HF_TOKEN.")


def upload_folder(folder: Path, hub_id: str, patterns: Sequence[str], private: bool = False) -> str:
    """Upload files of a folder to a repository, which is made if there is none, and return its address.

    Args:
        patterns: Glob patterns of the files, relative to ``folder``.
        private: Make the repository a private one.
    Raises:
        SkipditError: The repository is public although ``private`` is set; nothing is uploaded then.
        Exception: Whatever the hub's client raises.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    address = str(api.create_repo(hub_id, private=private or None, exist_ok=True))
    if private and not api.repo_info(hub_id).private:
        raise SkipditError(f"Repository {hub_id} is public already, so nothing was uploaded to it; {folder} is kept.")
    message = "Upload a model made with skipdit"
    api.upload_folder(repo_id=hub_id, folder_path=folder, allow_patterns=list(patterns), commit_message=message)
    return address
