"""When a call that the server has refused for now is made again."""

import random

from lookwire.errors import LookwireError, ResourceExhausted

# A share of the delay that the server names, so that callers who were refused together do not come back together.
_JITTER = 0.5
# The least seconds between two attempts, whatever the server names.
_LEAST = 0.01


def pause(error: LookwireError, seconds_left: float) -> float | None:
    """Returns how many seconds to wait before the failed call is made again; None if its error is final.

    That is any error but a ResourceExhausted for which the server names a delay that ends in time.
    """
    if not isinstance(error, ResourceExhausted) or error.retry_after is None:
        return None
    seconds = max(error.retry_after, _LEAST) * random.uniform(1, 1 + _JITTER)  # noqa: S311 - nothing secret
    return seconds if seconds < seconds_left else None
