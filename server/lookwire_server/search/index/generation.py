"""A sealed index on disk: one directory, which is whole or is not used.

    rows.npz       ids, keys and field values by slot
    vectors        the sealed index itself
    manifest.json  what it is, of what state of the store, and the size and SHA-256 of the other files and of itself

It is written under another name, brought to disk and then renamed. Keys name versions of items, so whatever the store holds
now can be joined with it; a directory that is damaged, of another store, or newer than the store is refused.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from lookwire_server.search.failpoints import reach
from lookwire_server.search.fields import Field
from lookwire_server.search.index.columns import Columns, texts
from lookwire_server.search.index.exact import ExactIndex
from lookwire_server.search.index.hnsw import HnswIndex
from lookwire_server.search.index.ivf import IvfIndex
from lookwire_server.search.index.sealed import Effort, Sealed
from lookwire_server.search.store.collections import IndexKind

FORMAT = 1
MANIFEST = "manifest.json"
ROWS = "rows.npz"
VECTORS = "vectors"
BUILDING = ".building"
INDEXES: dict[IndexKind, type[ExactIndex] | type[IvfIndex] | type[HnswIndex]] = {
    IndexKind.EXACT: ExactIndex,
    IndexKind.IVF: IvfIndex,
    IndexKind.HNSW: HnswIndex,
}
CHUNK_BYTES = 1 << 24
# What reading damaged files raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)

# The types of numpy take every array by name for the flag after them.
_savez: Any = np.savez


class Doubtful(Exception):
    """A generation cannot be used; the message says why. The store has all that is in it."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a generation is.

    `sequence` is the number of the last write that it has, `requested` the kind in the collection's settings, of which `kind` was
    made, `fields` the declared fields with their types, `effort` what a
    search needs for the recall wanted, and the recalls are those that were measured with it: None where there were no queries.
    """

    store: str
    collection: int
    generation: int
    sequence: int
    count: int
    dimension: int
    requested: IndexKind
    kind: IndexKind
    fields: tuple[tuple[str, str], ...]
    target_recall: float
    effort: Effort
    near_recall: float | None
    far_recall: float | None
    trained_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A sealed index in memory: `ids`, `keys` and `columns` have a row for each slot of `index`."""

    manifest: Manifest
    ids: list[str]
    keys: NDArray[np.int64]
    columns: Columns
    index: Sealed

    @classmethod
    def read(cls, directory: Path, fields: tuple[Field, ...]) -> Self:
        """Reads and checks a generation; raises Doubtful. Other fields than it was made with are left empty."""
        try:
            manifest = checked_manifest(directory)
            with np.load(directory / ROWS, allow_pickle=False) as arrays:
                ids = texts(arrays["ids"], arrays["id_ends"])
                keys = arrays["keys"]
                columns = Columns(fields)
                if manifest.fields == described(fields):
                    columns.restore({name: arrays[name] for name in arrays.files})
            index = index_of(directory, manifest)
        except UNREADABLE as error:
            raise Doubtful(f"{directory}: {error}") from error
        if not len(ids) == len(keys) == index.count == manifest.count:
            raise Doubtful(f"{directory}: {len(ids)} ids, {len(keys)} keys and {index.count} vectors")
        return cls(manifest, ids, keys, columns, index)


def described(fields: tuple[Field, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((field.name, str(field.type)) for field in fields)


def index_of(directory: Path, manifest: Manifest) -> Sealed:
    """Opens the sealed index of a generation that was checked."""
    return INDEXES[manifest.kind].open(directory / VECTORS)


def write(directory: Path, manifest: Manifest, rows: dict[str, NDArray[Any]], index: Sealed) -> None:
    """Writes a generation whole; when it returns the directory is on disk under its name."""
    building = directory.with_name(directory.name + BUILDING)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    index.save(building / VECTORS)
    _savez(building / ROWS, **rows)
    reach("build.after_index")
    files = {
        name: {"bytes": (building / name).stat().st_size, "sha256": digest(building / name)} for name in (VECTORS, ROWS)
    }
    content = {"format": FORMAT, "faiss": faiss.__version__, **asdict(manifest), "files": files}
    (building / MANIFEST).write_text(json.dumps({**content, "sha256": digest_of(content)}, indent=1))
    for path in (*building.iterdir(), building):
        synchronise(path)
    reach("build.before_rename")
    building.rename(directory)
    synchronise(directory.parent)
    reach("build.after_rename")


def checked_manifest(directory: Path) -> Manifest:
    """Reads the manifest and compares all files with it; raises ValueError, KeyError or OSError."""
    content = json.loads((directory / MANIFEST).read_bytes())
    if not isinstance(content, dict) or content.pop("sha256", None) != digest_of(content):
        raise ValueError("the manifest does not have the checksum that it names")
    if (content.pop("format"), content.pop("faiss")) != (FORMAT, faiss.__version__):
        raise ValueError("it was made by another release")
    for name, expected in content.pop("files").items():
        path = directory / name
        if path.stat().st_size != expected["bytes"] or digest(path) != expected["sha256"]:
            raise ValueError(f"{name} does not have the checksum that the manifest names")
    content["kind"], content["requested"] = IndexKind(content["kind"]), IndexKind(content["requested"])
    content["fields"] = tuple((name, type) for name, type in content["fields"])
    content["effort"] = Effort(**content["effort"])
    return Manifest(**content)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashed.update(chunk)
    return hashed.hexdigest()


def digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def synchronise(path: Path) -> None:
    """Brings a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
