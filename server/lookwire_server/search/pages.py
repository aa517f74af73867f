"""The pages of a list: how many members one has, and the token that continues it.

A token is the id that the last page ended with, bound to what was listed.
"""

import base64
import binascii
import hashlib

from lookwire_server.errors import InvalidArgument

DEFAULT_PAGE = 100
MAX_PAGE = 1_000
SCOPE_BYTES = 12


def members_on_page(page_size: int) -> int:
    """Returns the largest number to return: 0 asks for the default, and too much for the most (AIP-158)."""
    if page_size < 0:
        raise InvalidArgument(f"a page size is 0 or more, got {page_size}", field="page_size", page_size=page_size)
    return min(page_size or DEFAULT_PAGE, MAX_PAGE)


def token_after(id: str, scope: str) -> str:
    """Returns the token for the page after an id; `scope` is all that must stay the same from page to page."""
    return base64.urlsafe_b64encode(_digest(scope) + id.encode()).decode().rstrip("=")


def last_id(token: str, scope: str) -> str:
    """Returns the id that the token was made with; '' for an empty token. Raises InvalidArgument for a wrong one."""
    if not token:
        return ""
    try:
        content = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        digest, id = content[:SCOPE_BYTES], content[SCOPE_BYTES:].decode()
    except (binascii.Error, ValueError):
        digest, id = b"", ""
    if not id:
        raise InvalidArgument("the page token is not one that this server gave", field="page_token")
    if digest != _digest(scope):
        raise InvalidArgument("the page token belongs to another list: nothing else may change", field="page_token")
    return id


def _digest(scope: str) -> bytes:
    return hashlib.sha256(scope.encode()).digest()[:SCOPE_BYTES]
