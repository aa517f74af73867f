"""The tables of the database, and how those of earlier releases become these."""

from pathlib import Path
from typing import Any

import apsw

from lookwire_server.errors import FailedPrecondition

# A key is never given twice, so it names one version of an item: AUTOINCREMENT, and a changed item is a new row.
FIRST = """
CREATE TABLE collections (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    encoder TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    fields TEXT NOT NULL,
    created_microseconds INTEGER NOT NULL,
    sequence INTEGER NOT NULL
) STRICT;
CREATE TABLE items (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    id TEXT NOT NULL,
    payload BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (collection, id)
) STRICT;
"""
# An identity, so that files beside the database can name it; aliases, index settings, unfinished copies of collections,
# unfinished restores, kept sources (by an item's key), and the requests whose repetition must do nothing.
SECOND = """
ALTER TABLE collections ADD COLUMN index_kind TEXT NOT NULL DEFAULT 'automatic';
ALTER TABLE collections ADD COLUMN target_recall REAL NOT NULL DEFAULT 0.98;
ALTER TABLE collections ADD COLUMN keeps_sources INTEGER NOT NULL DEFAULT 0;
CREATE TABLE identity (store TEXT NOT NULL) STRICT;
INSERT INTO identity VALUES (lower(hex(randomblob(16))));
CREATE TABLE aliases (
    alias TEXT PRIMARY KEY,
    collection INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE copies (
    target INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    copied_key INTEGER NOT NULL
) STRICT;
CREATE TABLE restores (
    collection INTEGER PRIMARY KEY
) STRICT;
CREATE TABLE sources (
    key INTEGER PRIMARY KEY,
    is_text INTEGER NOT NULL,
    content BLOB NOT NULL
) STRICT;
CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL,
    idempotency_key TEXT NOT NULL,
    digest BLOB NOT NULL,
    sequence INTEGER NOT NULL,
    inserted INTEGER NOT NULL,
    replaced INTEGER NOT NULL,
    UNIQUE (collection, idempotency_key)
) STRICT;
"""
STEPS = (FIRST, SECOND)


def upgrade(connection: apsw.Connection, directory: Path) -> None:
    """Makes the tables, or brings those of an earlier release up to date; raises FailedPrecondition for a later one's."""
    version: Any = connection.pragma("user_version")
    if version > len(STEPS):
        raise FailedPrecondition(
            f"the data directory {directory} has schema version {version}; this server knows {len(STEPS)}",
            data_dir=directory,
            version=version,
            known=len(STEPS),
        )
    if version < len(STEPS):
        with connection:
            for step in STEPS[version:]:
                connection.execute(step)
            connection.pragma("user_version", len(STEPS))
