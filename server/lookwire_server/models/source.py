"""What a model is loaded from: its folder below a root, or the files that a load request brought.

`<root>/<model>/config.pbtxt` and `<root>/<model>/<version>/`; versions are folders named by integers without leading zeros.
"""

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from lookwire_server.errors import InvalidArgument, LoadFailure
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.config_file import FILE

log = structlog.get_logger()

DUPLICATE = "model appears in two or more repositories"
# Clients match on these words.
UNKNOWN = "failed to load '{name}', failed to poll from model repository"

# The files of a folder: path within it, size, and time of the last change in nanoseconds.
Stamp = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A model's folder as it stood at one moment; two are equal if no file has changed between them.

    `config` are config.pbtxt and configs/, `common` all else that the versions share, `versions` each version's own files.
    A `temporary` folder holds the files of a load request.
    """

    directory: Path
    config: Stamp
    common: Stamp
    versions: Mapping[int, Stamp]
    temporary: bool = False

    def selected(self, config: ModelConfig) -> list[int]:
        """The version numbers that the config's version_policy selects, ascending; InvalidArgument if there are none."""
        present = sorted(self.versions)
        policy = config.message.version_policy
        match policy.WhichOneof("policy_choice"):
            case "all":
                selected = present
            case "specific":
                wanted = set(policy.specific.versions)
                selected = [version for version in present if version in wanted]
                if absent := sorted(wanted.difference(present)):
                    log.warning("versions of the version policy are absent", model=config.name, versions=absent)
            case _:
                selected = present[-(policy.latest.num_versions or 1) :]
        if not selected:
            raise InvalidArgument(
                f"{self.directory}: at least one version must be available under the version policy; "
                f"versions are folders named 1, 2, ...; found {', '.join(map(str, present)) or 'none'}"
            )
        return selected


def version_number(name: str) -> int | None:
    """The version that a folder of this name holds; None if it is not a version's: Triton ignores leading zeros too."""
    if not (name.isascii() and name.isdigit()) or (name[0] == "0" and name != "0"):
        return None
    return int(name)


def is_model(directory: Path) -> bool:
    """Whether a folder is a model's: it has a config, or a version."""
    return directory.is_dir() and (
        (directory / FILE).is_file() or any(version_number(entry.name) is not None for entry in directory.iterdir())
    )


def names(roots: Iterable[Path]) -> dict[str, int]:
    """The models below the roots, and in how many of them each is; folders whose name begins with a dot are none."""
    found: dict[str, int] = {}
    for root in roots:
        for entry in sorted(root.iterdir()):
            if not entry.name.startswith(".") and is_model(entry):
                found[entry.name] = found.get(entry.name, 0) + 1
    return found


def find(roots: Sequence[Path], name: str) -> Source | None:
    """The model's folder, None if no root has it; LoadFailure if several do, or if it cannot be read."""
    try:
        folders = [root / name for root in roots if not name.startswith(".") and is_model(root / name)]
        if len(folders) > 1:
            raise LoadFailure(f"{UNKNOWN.format(name=name)}: {DUPLICATE}: {', '.join(map(str, folders))}", model=name)
        return scan(folders[0]) if folders else None
    except (OSError, ValueError) as error:  # a name that the file system does not take is a ValueError or an OSError
        raise LoadFailure(f"{UNKNOWN.format(name=name)}: {error}", model=name) from error


def scan_all(roots: Sequence[Path]) -> dict[str, Source | None]:
    """All models below the roots; None for one that several have. OSError if a folder cannot be read."""
    found: dict[str, Source | None] = {}
    for name, roots_with in names(roots).items():
        folders = [root / name for root in roots if is_model(root / name)]
        if roots_with > 1:
            found[name] = None
        elif folders:  # it may have gone since it was listed
            found[name] = scan(folders[0])
    return found


def scan(directory: Path, *, temporary: bool = False) -> Source:
    """The folder as it stands now."""
    config: Stamp = ()
    common: Stamp = ()
    versions: dict[int, Stamp] = {}
    for entry in sorted(directory.iterdir()):
        number = version_number(entry.name)
        if number is not None and entry.is_dir():
            versions[number] = stamps(entry)
        elif entry.name in (FILE, "configs"):
            config += stamps(entry)
        else:
            common += stamps(entry)
    return Source(directory, config, common, versions, temporary)


def stamps(path: Path) -> Stamp:
    """The stamps of a file, or of all files below a folder, less what Python and editors leave there."""
    if path.name == "__pycache__" or path.name.startswith("."):
        return ()
    try:
        if path.is_dir():
            return tuple(
                (f"{path.name}/{name}", size, changed)
                for entry in sorted(path.iterdir())
                for name, size, changed in stamps(entry)
            )
        status = path.stat()
    except FileNotFoundError:  # gone between the listing and the look, or a link to nowhere
        return ()
    return ((path.name, status.st_size, status.st_mtime_ns),)


def keep_files(name: str, files: Mapping[str, bytes]) -> Source:
    """Writes the files of a load request to a temporary folder named like the model.

    The keys are "file:<path within the model's folder>". InvalidArgument for a path that leads out of it, LoadFailure if the
    file system refuses one.
    """
    paths = {file_path(key): content for key, content in files.items()}
    parent = Path(tempfile.mkdtemp(prefix="lookwire-"))
    try:
        directory = parent / name
        directory.mkdir()
        for path, content in paths.items():
            target = directory.joinpath(*path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return scan(directory, temporary=True)
    except (OSError, ValueError) as error:
        shutil.rmtree(parent, ignore_errors=True)
        raise LoadFailure(f"{UNKNOWN.format(name=name)}: cannot keep the files sent: {error}", model=name) from error


def remove_files(directory: Path) -> None:
    """Removes what `keep_files` wrote."""
    shutil.rmtree(
        directory.parent, onerror=lambda _, path, error: log.warning("cannot remove", path=path, error=error[1])
    )


def file_path(key: str) -> tuple[str, ...]:
    """The parts of a file's path within the model's folder."""
    parts = tuple(key.removeprefix("file:").split("/"))
    if not key.startswith("file:") or "\\" in key or any(part in ("", ".", "..") for part in parts):
        raise InvalidArgument(
            f"the file parameter '{key}' must be 'file:' and a path within the model's folder, "
            "such as 'file:1/model.onnx'"
        )
    return parts
