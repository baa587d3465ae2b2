"""Asking the Hugging Face Hub once, and saying in one sentence why it does not give a thing.

Left to themselves, the libraries ask many times, wait in between, and blame the name for a fault of
the network.
"""

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub import errors as hub
from huggingface_hub.utils import validate_repo_id


def answers(
    name: str,
    repository: str,
    file: str,
    *,
    revision: str | None,
    kind: str,
    cached: bool,
    way: str,
) -> bool:
    """Ask the Hub whether it has a repository; False means to go on with the cache alone.

    Parameters
    ----------
    name : str
        What the reader wrote; each message begins with it.
    repository : str
        The id.
    file : str
        What to ask for. A model without it is none; a data set may do without.
    revision : str, optional
        A branch, tag or commit.
    kind : {"model", "dataset"}
        Of repository.
    cached : bool
        Whether there may be a copy on this machine to go on with.
    way : str
        How to do without the Hub.

    Raises
    ------
    OSError
        If the Hub does not give it, and there is no copy; the message says why and what to do.
    """
    try:
        validate_repo_id(repository)
    except hub.HFValidationError as error:
        raise OSError(
            f"{name}: neither a folder nor a Hub id; a Hub id looks like 'google/vit-base-patch16'"
        ) from error
    if constants.HF_HUB_OFFLINE:
        if cached:
            return False
        raise OSError(
            f"{name}: HF_HUB_OFFLINE is set and the {kind} is not in the cache; unset it to "
            f"download, or use {way}"
        )
    url = hf_hub_url(repository, file, repo_type=kind, revision=revision or "main")
    try:
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except hub.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repository}"
        raise OSError(
            f"{name}: the repository is gated; ask for access on {page} "
            "and log in with `hf auth login`"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise OSError(
            f"{name}: the Hub has the repository but no revision {revision!r}; "
            "look up its branches and tags, or leave `revision` out"
        ) from error
    except hub.EntryNotFoundError as error:
        if kind == "model":
            raise OSError(
                f"{name}: the repository has no {file}, so it is no transformers model; "
                "choose one that carries the tag 'transformers'"
            ) from error
    except hub.RepositoryNotFoundError as error:
        token = ", or the token that was sent is not valid" * (error.response.status_code == 401)
        raise OSError(
            f"{name}: the Hub has no such repository, or it is private{token}; check the spelling, "
            "or log in with `hf auth login`"
        ) from error
    except hub.HfHubHTTPError as error:
        if cached:
            return False
        status = error.response.status_code
        raise OSError(
            f"{name}: the Hub answered with status {status}; that is a fault on its side or too "
            f"many requests, so try again later, or use {way}"
        ) from error
    except Exception as error:  # the HTTP library under huggingface_hub differs by version
        if cached:
            return False
        raise OSError(
            f"{name}: could not reach the Hub ({constants.ENDPOINT}): the network failed, not the "
            f"name ({error}). Check the connection or the proxy, or use {way}"
        ) from error
    return True
