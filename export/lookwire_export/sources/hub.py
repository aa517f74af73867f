"""Files of Hugging Face's hub: from its cache, or fetched; if neither, the message says which are wanted."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from lookwire_export.reference import ExportError

SECONDS = 10
"""How long the hub may take to answer before it counts as out of reach."""


def file(repository: str, names: Sequence[str], instead: str) -> Path | None:
    """Returns the first of the files that the repository has, or None if it has none of them.

    What is in the cache is taken without asking the hub. Raises ExportError if the hub cannot be reached; `instead` says
    what the person may give once the files are there.
    """
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        try:
            # Asked first: hf_hub_download itself tries for half a minute before it gives up.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, name), timeout=SECONDS)
            return Path(huggingface_hub.hf_hub_download(repository, name, etag_timeout=SECONDS))
        except LocalEntryNotFoundError as error:
            raise _wanted(repository, names, instead, error) from error
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise _absent(repository) from error
        except Exception as error:
            # What its network library raises differs between versions of huggingface_hub.
            raise _wanted(repository, names, instead, error) from error
    return None


def required(repository: str, names: Sequence[str], instead: str) -> Path:
    """Returns the first of the files that the repository has; having none of them is an error too."""
    found = file(repository, names, instead)
    if found is None:
        raise ExportError(f"the repository {repository} of the hub has no {' or '.join(names)}")
    return found


def folder(repository: str, patterns: Sequence[str], instead: str) -> Path:
    """Returns a folder with those files of the repository that match the patterns."""
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(patterns), etag_timeout=SECONDS))
    except RepositoryNotFoundError as error:
        raise _absent(repository) from error
    except Exception as error:
        raise _wanted(repository, patterns, instead, error) from error


def _absent(repository: str) -> ExportError:
    return ExportError(f"the hub has no repository {repository}, or it wants a login (`hf auth login`)")


def _wanted(repository: str, names: Sequence[str], instead: str, error: Exception) -> ExportError:
    reason = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else type(error).__name__
    return ExportError(
        f"the hub cannot be reached ({reason}), and its cache has no {' or '.join(names)} of {repository}. On a machine with"
        f" network: `hf download {repository} {names[0]} --local-dir DIR`; then {instead}"
    )
