"""The change of what a collection declares: its fields, and how it is to be indexed."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from lookwire_server.errors import FailedPrecondition, InvalidArgument, NotFound
from lookwire_server.search.fields import Field, Values, read_stored_payload, shown
from lookwire_server.search.index.columns import Columns
from lookwire_server.search.index.live import VectorIndex
from lookwire_server.search.index.load import columns_of
from lookwire_server.search.store.collections import CollectionRow, IndexSettings
from lookwire_server.search.store.store import Store
from lookwire_server.search.store.words import text_fields
from lookwire_server.search.writer import Alone


class Declaring(Protocol):
    """A collection, as far as changing its declarations goes."""

    row: CollectionRow

    @property
    def index(self) -> VectorIndex: ...
    @property
    def deleted(self) -> bool: ...
    def published(self) -> None:
        """Is called in the writer's thread when changes have become visible."""


class UpdateDeclarations(Alone):
    """Declares other fields, other settings of the index, or both; None leaves them as they are.

    Alone, because the values of the new fields are read for exactly the slots that are in memory. Searches go on with the view
    that they have.
    """

    size = 0

    def __init__(self, collection: Declaring, fields: tuple[Field, ...] | None, settings: IndexSettings | None) -> None:
        self._collection = collection
        self._fields = fields
        self._settings = settings
        self._row = collection.row
        self._columns: Columns | None = None

    def persist(self, store: Store) -> None:
        """Raises FailedPrecondition if the payload of an item does not fit the fields."""
        before = self._collection.row
        if self._collection.deleted:
            raise NotFound(f"collection {before.name!r} was deleted", collection=before.name)
        fields = before.fields if self._fields in (None, before.fields) else self._fields
        self._row = replace(before, fields=fields, index=self._settings or before.index)
        self._columns = None
        if fields is not before.fields:
            view = self._collection.index.view
            fitting = partial(fitting_values, fields)
            self._columns = columns_of(store, fields, view.rows.keys(view.count), fitting)
            if text_fields(self._row) != text_fields(before):
                store.words.rebuild(self._row)
        store.collections.update(self._row)

    def apply(self) -> None:
        if self._columns is not None:
            self._collection.index.redeclare(self._columns)

    def publish(self) -> None:
        # In this order: a filter is checked by the row first, and again by the view that it is evaluated on.
        self._collection.index.publish()
        self._collection.row = self._row
        self._collection.published()


def fitting_values(fields: Sequence[Field], id: str, payload: bytes) -> Values:
    """Returns the values of an item's fields; raises FailedPrecondition, with the path of the field, if it does not fit them."""
    try:
        return read_stored_payload(payload, fields)
    except InvalidArgument as error:
        names = [field.name for field in fields]
        name = error.metadata.get("payload_field")
        raise FailedPrecondition(
            f"item {shown(id)}: {error.message}",
            field=f"fields[{names.index(name)}]" if name in names else "fields",
            item=id,
            **error.metadata,
        ) from error
