"""How much one reply may hold."""

from lookwire_server.errors import ReplyTooLarge
from lookwire_server.rpc import convert
from lookwire_server.search.searcher import SearchResult

# Room for 1,000 hits with payloads of 64 KiB.
MAX_REPLY_BYTES = 64 << 20


class ReplyRoom:
    """The bytes that the hits of one reply may still take: their payloads, vectors and group values."""

    def __init__(self) -> None:
        self._left = MAX_REPLY_BYTES

    def take(self, result: SearchResult, member: str) -> None:
        """Raises ReplyTooLarge if the hits do not fit, and then takes nothing; vectors go as that member of Matrix."""
        taken = sum(map(len, result.payloads))
        if result.vectors is not None:
            taken += result.vectors.size * convert.DTYPES[member].itemsize
        if result.group_values is not None:
            taken += sum(len(value.encode()) for value in result.group_values if isinstance(value, str))
        if taken > self._left:
            raise ReplyTooLarge(
                f"payloads, vectors and group values of the hits have {taken} bytes, the reply has room for {self._left}: "
                "ask for payload_fields or ids_only, or for fewer hits",
                bytes=taken,
                room=self._left,
                limit=MAX_REPLY_BYTES,
            )
        self._left -= taken
