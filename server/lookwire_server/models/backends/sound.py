"""A batch some of whose requests are refused before it is executed."""

from collections.abc import Sequence

from lookwire_server.errors import LookwireError
from lookwire_server.models.model import Request
from lookwire_server.models.session import Execution, Session


def execute_sound(session: Session, batch: Sequence[Request | LookwireError]) -> Execution:
    """Executes the requests of a batch; each error in it is the answer in its place."""
    sound = [item for item in batch if isinstance(item, Request)]
    if not sound:
        return Execution([item for item in batch if isinstance(item, LookwireError)], 0.0, 0.0, 0.0)
    execution = session.execute(sound)
    answers = iter(execution.answers)
    execution.answers = [next(answers) if isinstance(item, Request) else item for item in batch]
    return execution
