"""The generations of one collection on disk: a directory for each."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import structlog

from lookwire_server.search.index.generation import BUILDING, Doubtful, Generation
from lookwire_server.search.store.collections import CollectionRow

log = structlog.get_logger()

INDEXES = "indexes"


class Generations:
    """Finds, reads and removes the generations of a collection of the store with the identity `store`."""

    def __init__(self, data_dir: Path, store: str, number: int) -> None:
        self.directory = data_dir / INDEXES / str(number)
        self._store = store

    def path(self, generation: int) -> Path:
        return self.directory / f"{generation:08d}"

    def numbers(self) -> list[int]:
        """Returns the numbers of those that are there, rising, be they sound or not."""
        return sorted(int(path.name) for path in self._paths() if path.name.isdecimal())

    def newest(self, row: CollectionRow, sequence: int) -> Generation | None:
        """Reads the newest that is sound and no newer than the store, whose last write is `sequence`; removes all others."""
        for number in reversed(self.numbers()):
            try:
                generation = self.read(number, row, sequence)
            except Doubtful as doubt:
                log.warning("index not used, it is made again from the database", collection=row.name, doubt=str(doubt))
            else:
                self.remove_all_but(number)
                return generation
        self.remove_all_but(None)
        return None

    def read(self, number: int, row: CollectionRow, sequence: int) -> Generation:
        """Raises Doubtful if it is damaged, or does not fit the store."""
        generation = Generation.read(self.path(number), row.fields)
        manifest = generation.manifest
        if (manifest.store, manifest.collection, manifest.generation) != (self._store, row.number, number):
            raise Doubtful(f"{self.path(number)}: it belongs to another collection")
        if manifest.sequence > sequence:
            raise Doubtful(f"{self.path(number)}: it is newer than the database")
        return generation

    def remove_all_but(self, kept: int | None) -> None:
        """Removes the others, half-built ones too. Files that are open stay readable for whoever has them."""
        for path in self._paths():
            if path.name.endswith(BUILDING) or (path.name.isdecimal() and int(path.name) != kept):
                shutil.rmtree(path, ignore_errors=True)

    def remove(self) -> None:
        """Removes all, and the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def disk_bytes(self) -> int:
        """The size of all files; one that is removed meanwhile does not count."""
        nbytes = 0
        for directory, _, names in os.walk(self.directory):
            for name in names:
                with suppress(FileNotFoundError):
                    nbytes += (Path(directory) / name).stat().st_size
        return nbytes

    def _paths(self) -> list[Path]:
        # Another thread may remove the directory at any time, when the collection is deleted.
        try:
            return list(self.directory.iterdir())
        except FileNotFoundError:
            return []
