"""The table of requests that their sender may repeat."""

from dataclasses import dataclass
from typing import Any

import apsw

from lookwire_server.errors import InvalidArgument
from lookwire_server.search.fields import shown, utf8_length
from lookwire_server.search.store.database import Database

MAX_KEY_BYTES = 128
# How many requests of a collection are remembered, and how many more there may be before the oldest are forgotten.
REMEMBERED = 10_000
SURPLUS = 1_000


@dataclass(frozen=True, slots=True)
class Request:
    """A request that writes only once: a key of its sender's choice, and the SHA-256 of what it asks for."""

    key: str
    digest: bytes

    def __post_init__(self) -> None:
        length = utf8_length(self.key)
        if length is None or not 1 <= length <= MAX_KEY_BYTES:
            raise InvalidArgument(
                f"an idempotency key has 1 to {MAX_KEY_BYTES} bytes of UTF-8",
                field="idempotency_key",
                limit=MAX_KEY_BYTES,
            )


# What an upsert is answered: its sequence, how many of its ids were new, and how many existed.
Answer = tuple[int, int, int]


class RequestTable:
    """What the last requests of each collection were answered."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # By the writer.

    def add(self, number: int, request: Request, answer: Answer) -> None:
        """Remembers the answer to a request of a new key, and forgets the oldest beyond REMEMBERED, some at a time."""
        connection = self._database.connection
        connection.execute(
            "INSERT INTO requests (collection, idempotency_key, digest, sequence, inserted, replaced)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (number, request.key, request.digest, *answer),
        )
        count: int = connection.execute("SELECT count(*) FROM requests WHERE collection = ?", (number,)).get
        if count > REMEMBERED + SURPLUS:
            connection.execute(
                "DELETE FROM requests WHERE number IN"
                " (SELECT number FROM requests WHERE collection = ? ORDER BY number LIMIT ?)",
                (number, count - REMEMBERED),
            )

    def remove_all(self, number: int) -> None:
        self._database.connection.execute("DELETE FROM requests WHERE collection = ?", (number,))

    def answered_before(self, number: int, request: Request) -> Answer | None:
        """Is `answered`, as the writer sees it."""
        return _find(self._database.connection, number, request)

    # By reader threads.

    def answered(self, number: int, request: Request) -> Answer | None:
        """Returns what an earlier request of the same key was answered, None if there was none.

        Raises InvalidArgument if it asked for something else.
        """
        return _find(self._database.reader(), number, request)


def _find(connection: apsw.Connection, number: int, request: Request) -> Answer | None:
    rows: list[Any] = connection.execute(
        "SELECT digest, sequence, inserted, replaced FROM requests WHERE collection = ? AND idempotency_key = ?",
        (number, request.key),
    ).fetchall()
    if not rows:
        return None
    digest, sequence, inserted, replaced = rows[0]
    if digest != request.digest:
        raise InvalidArgument(
            f"the idempotency key {shown(request.key)} is that of an earlier request with other items",
            field="idempotency_key",
            idempotency_key=request.key,
        )
    return sequence, inserted, replaced
