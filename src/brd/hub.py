"""Uploads to the Hugging Face Hub. The token is huggingface_hub's business: HF_TOKEN, or a login; it is never shown."""

import re
from pathlib import Path
from typing import Literal

from brd.errors import BrdError

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def check_licence(licence: str) -> str:
    """BrdError for what cannot be a licence identifier of the Hub."""
    if not _LICENCE.fullmatch(licence):
        raise BrdError(
            f"--licence {licence}: should be an identifier of the Hub, such as cc-by-sa-4.0, cc0-1.0, apache-2.0, or "
            "other (and say in --note what holds)"
        )
    return licence


def check_repository(name: str) -> str:
    """BrdError for what cannot be a repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise BrdError(f"{name}: no name of a repository, which is OWNER/NAME ({_in_a_line(error)})") from None
    if "/" not in name:
        raise BrdError(f"{name}: a repository is OWNER/NAME")
    return name


def check_login() -> None:
    """BrdError where an upload could not even begin."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise BrdError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it, or --dry-run writes the folder only"
        )
    if not get_token():
        raise BrdError(
            "not logged in to the Hub: set HF_TOKEN, or run `hf auth login` (--dry-run writes the folder only)"
        )


def upload(folder: Path, repository: str, kind: Literal["dataset", "model"], *, private: bool, message: str) -> str:
    """Upload a folder as a dataset or a model, made where there is none; returns its address. Raises BrdError when it
    fails: the folder stays, and the same call goes on from there."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type=kind, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = {401: "the token is not valid", 403: "the token may not write there"}.get(status, _in_a_line(error))
        raise BrdError(f"{repository}: the Hub refused ({status}: {why}); {folder} is ready, try again") from error
    except Exception as error:
        reason = _in_a_line(error)
        raise BrdError(f"{repository}: the upload failed ({reason}); {folder} is ready, try again") from error
    return str(url)


def _in_a_line(error: Exception) -> str:
    """An error's message in one line, without the token should it stand there."""
    from huggingface_hub import get_token

    line = " ".join(str(error).split()) or type(error).__name__
    token = get_token()
    return (line.replace(token, "***") if token else line)[:300]
