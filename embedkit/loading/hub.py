"""One way to ask the Hugging Face Hub, and one sentence on why something cannot be had.

Left to themselves, the libraries ask many times, wait in between, and blame the name for a fault of
the network.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import filter_repo_objects

# What repositories hold beside a model for other programs, and what was left over from training.
_NEVER_NEEDED = ("*/*/*", "onnx/*", "openvino/*", "coreml/*", "checkpoint*/*", "runs/*")


def snapshot(
    name: str,
    repository: str,
    patterns: Sequence[str],
    *,
    kind: Literal["model", "dataset"],
    instead: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[Path, bool]:
    """Bring files of a repository into the cache; go on with what is there when the Hub is gone.

    Parameters
    ----------
    name : str
        What the reader wrote; each message begins with it.
    repository : str
        The id.
    patterns : sequence of str
        Which files, as `fnmatch` reads them.
    kind : {"model", "dataset"}
        Which kind of repository it is.
    instead : str
        How to go on without the Hub.
    revision : str, optional
        A branch, tag or commit.
    token : str or bool, optional
        Sent with each request; by default the one that `hf auth login` keeps.
    cache_dir : str or path, optional
        Where the cache is.

    Returns
    -------
    tuple of (Path, bool)
        The folder, which is named after the commit, and whether the Hub answered.

    Raises
    ------
    OSError
        If the Hub refuses, or cannot be asked and there is no copy; the message says why and what
        to do.
    """
    options: dict[str, Any] = {"repo_type": kind, "revision": revision, "cache_dir": cache_dir}
    chosen: dict[str, Any] = {"allow_patterns": [*patterns], "ignore_patterns": [*_NEVER_NEEDED]}
    copy = None
    try:
        with suppress(errors.LocalEntryNotFoundError):
            copy = Path(snapshot_download(repository, local_files_only=True, **options, **chosen))
        if constants.HF_HUB_OFFLINE and copy:
            return copy, False
        # Asked here first, because this request has a timeout and is made once.
        hub = HfApi(token=token)
        ask: Any = hub.model_info if kind == "model" else hub.dataset_info
        found = ask(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        names = filter_repo_objects([file.rfilename for file in found.siblings], **chosen)
        if copy and copy.name == found.sha and all((copy / name).is_file() for name in names):
            return copy, True
        return Path(snapshot_download(repository, token=token, **options, **chosen)), True
    except Exception as error:  # the HTTP library under huggingface_hub differs by version
        cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
        answer = _refusal(cause, repository, kind, revision)
        if copy and not answer:
            return copy, False
        raise OSError(f"{name}: {answer or _absence(cause, kind, instead)}") from error


def cached_commit(
    repository: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> tuple[str, ...]:
    """Give the commit of a model in the cache, as a tuple of one, without asking the Hub.

    Parameters
    ----------
    repository : str
        The id.
    revision : str, optional
        A branch, tag or commit.
    cache_dir : str or path, optional
        Where the cache is.

    Returns
    -------
    tuple of str
        Empty where the cache has none.
    """
    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=True,
            allow_patterns="config.json",
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return ()
    return (Path(folder).name,)


def _refusal(error: object, repository: str, kind: str, revision: str | None) -> str:
    """Say why the Hub refused a request; nothing if it could not be asked."""
    if isinstance(error, errors.HFValidationError):
        return "neither a folder nor a Hub id; a Hub id looks like 'google/vit-base-patch16'"
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' * (kind == 'dataset')}{repository}"
        return f"the repository is gated; ask for access on {page} and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"the Hub has the repository but no revision {revision!r}; look up its branches and "
            "tags, or leave `revision` out"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        token = ", or the token that was sent is not valid" * (error.response.status_code == 401)
        return (
            f"the Hub has no such repository, or it is private{token}; check the spelling, or log "
            "in with `hf auth login`"
        )
    return ""


def _absence(error: object, kind: str, instead: str) -> str:
    """Say why the Hub could not be asked, or why its answer could not be kept."""
    if constants.HF_HUB_OFFLINE:
        return (
            f"HF_HUB_OFFLINE is set and the {kind} is not in the cache; unset it to download, or "
            f"use {instead}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return (
            f"the Hub answered with status {error.response.status_code}; that is a fault on its "
            f"side or too many requests, so try again later, or use {instead}"
        )
    if isinstance(error, OSError) and error.errno:
        return f"what the Hub sent could not be stored in {constants.HF_HUB_CACHE} ({error})"
    return (
        f"could not reach the Hub ({constants.ENDPOINT}): the network failed, not the name "
        f"({error}). Check the connection or the proxy, or use {instead}"
    )
