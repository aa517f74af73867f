"""Files of Hugging Face's hub: from its cache, or fetched; if neither, the message says which are wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from lookwire_export.reference import ExportError

SECONDS = 10
"""How long the hub may take to answer before it counts as out of reach."""


class UnreachableError(ExportError):
    """The hub cannot be reached, and its cache lacks what is wanted."""


def file(repository: str, names: Sequence[str], instead: str, advised: str = "") -> Path | None:
    """Returns the first of the files that the repository has, or None if it has none of them.

    What is in the cache is taken without asking the hub, and so is the cache's record that a file does not exist. Raises
    UnreachableError if the hub cannot be reached; `instead` says what the person may give once the files are there, and
    `advised` which of them is sure to exist (the first, if it is left out).
    """
    cached = {name: _cached(repository, name) for name in names}
    for found in cached.values():
        if isinstance(found, str):
            return Path(found)
    wanted = [name for name, found in cached.items() if found is not huggingface_hub._CACHED_NO_EXIST]
    for name in wanted:
        try:
            # Asked first: hf_hub_download itself tries for half a minute before it gives up.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, name), timeout=SECONDS)
            return Path(huggingface_hub.hf_hub_download(repository, name, etag_timeout=SECONDS))
        except LocalEntryNotFoundError as error:
            raise _wanted(repository, wanted, instead, error, advised) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise _absent(repository) from error
        except Exception as error:
            # What its network library raises differs between versions of huggingface_hub.
            raise _wanted(repository, wanted, instead, error, advised) from error
    return None


def required(repository: str, names: Sequence[str], instead: str, advised: str = "") -> Path:
    """Returns the first of the files that the repository has; having none of them is an error too."""
    found = file(repository, names, instead, advised)
    if found is None:
        raise ExportError(f"the repository {repository} of the hub has no {' or '.join(names)}")
    return found


def folder(repository: str, patterns: Sequence[str], instead: str) -> Path:
    """Returns a folder with those files of the repository that match the patterns."""
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), etag_timeout=SECONDS))
    except HFValidationError as error:
        raise _misnamed(repository) from error
    except RepositoryNotFoundError as error:
        raise _absent(repository) from error
    except Exception as error:
        raise _wanted(repository, patterns, instead, error) from error


def is_cached(repository: str, name: str) -> bool:
    """Whether a file of the repository is in the cache."""
    return isinstance(_cached(repository, name), str)


def _cached(repository: str, name: str) -> Any:
    """Returns the path of a file in the cache, None, or `_CACHED_NO_EXIST` if the cache knows that there is no such file."""
    try:
        return huggingface_hub.try_to_load_from_cache(repository, name)
    except HFValidationError as error:
        raise _misnamed(repository) from error


def _misnamed(repository: str) -> ExportError:
    return ExportError(f"{repository!r} cannot be a repository of the hub: expected ORG/NAME, without a revision")


def _absent(repository: str) -> ExportError:
    return ExportError(f"the hub has no repository {repository}, or it wants a login (`hf auth login`)")


def _wanted(
    repository: str, names: Sequence[str], instead: str, error: Exception, advised: str = ""
) -> UnreachableError:
    reason = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else type(error).__name__
    name = advised if advised in names else names[0]
    return UnreachableError(
        f"the hub cannot be reached ({reason}), and its cache has no {' or '.join(names)} of {repository}. On a machine with"
        f" network: `hf download {repository} {name} --local-dir DIR`; then {instead}"
    )
