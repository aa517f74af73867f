"""The dynamic batcher, with sessions that tests control."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import DeadlineExceeded, InvalidArgument, ModelFailure, QueueFull, QueueTimeout, Unavailable
from lookwire_server.lanes import Lane
from lookwire_server.metrics import Metrics
from lookwire_server.models.batcher import Batcher
from lookwire_server.models.config import from_message
from lookwire_server.models.model import Request, Tensor
from lookwire_server.models.session import StackedSession

CONFIG = """
name: "doubler" backend: "test" max_batch_size: 8
input [{ name: "x" data_type: TYPE_INT32 dims: [-1] }]
output [{ name: "y" data_type: TYPE_INT32 dims: [1] }]
dynamic_batching { %s }
parameters { key: "pad_value" value { string_value: "0" } }
parameters { key: "length_buckets" value { string_value: "4,8" } }
"""


class Doubler:
    """Answers each row with twice its sum; holds while the gate is shut, and records the shapes it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.answer: Callable[[Tensor], Tensor] = lambda x: 2 * x.sum(axis=1, keepdims=True, dtype=np.int32)

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.gate.wait(10)
        self.shapes.append(inputs["x"].shape)
        return {"y": self.answer(inputs["x"])}


def request(*rows: list[int], lane: Lane = Lane.INTERACTIVE, deadline: float | None = None) -> Request:
    return Request({"x": np.array(rows, np.int32)}, lane, deadline)


@asynccontextmanager
async def batcher(
    *sessions: Doubler, batching: str = "", metrics: Metrics | None = None, hold: int = 0
) -> AsyncIterator[Batcher]:
    config = from_message(text_format.Parse(CONFIG % batching, model_config_pb2.ModelConfig()))
    failures: list[str] = []
    stacked = [StackedSession(config, session.run) for session in sessions]
    served = Batcher(config, 1, stacked, metrics or Metrics(), failures.append, hold)
    try:
        yield served
    finally:
        for session in sessions:
            session.gate.set()
        await served.close()
    assert failures == []


async def queued(served: Batcher, rows: int) -> None:
    """Waits until so many rows are in the queue."""
    async with asyncio.timeout(5):
        while sum(served._queue.rows.values()) != rows:
            await asyncio.sleep(0.001)


async def test_batch_forms_while_the_model_is_busy() -> None:
    """A lone request goes at once; those that come meanwhile share the next execution, and each gets its own rows."""
    session = Doubler()
    async with batcher(session) as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(served.infer(request([value]))) for value in range(2, 8)]
        await queued(served, 6)
        session.gate.set()
        answers = await asyncio.gather(first, *rest)

    assert [int(answer.outputs["y"][0, 0]) for answer in answers] == [2, 4, 6, 8, 10, 12, 14]
    assert session.shapes == [(1, 4), (6, 4)]
    assert (served.statistics.inference_count, served.statistics.execution_count) == (7, 2)
    assert served.statistics.success.count == 7


class Concurrent(StackedSession):
    """A session that takes a batch of each lane at once."""

    concurrent = True


async def test_bulk_work_holds_up_no_interactive_work() -> None:
    """Where a session takes both lanes at once, an interactive request is answered while a bulk batch is executed."""
    gate = threading.Event()
    config = from_message(text_format.Parse(CONFIG % "", model_config_pb2.ModelConfig()))

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if inputs["x"][0, 0] == 1:
            gate.wait(10)
        return {"y": 2 * inputs["x"][:, :1]}

    served = Batcher(config, 1, [Concurrent(config, run)], Metrics(), pytest.fail)
    bulk = asyncio.create_task(served.infer(request([1], lane=Lane.BULK)))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        interactive = await served.infer(request([5]))
        assert not bulk.done()
        gate.set()
        answers = [interactive, await bulk]
        await served.close()

    assert [int(answer.outputs["y"][0, 0]) for answer in answers] == [10, 2]


async def test_padding_goes_to_the_longest_bucket() -> None:
    """Rows of unequal lengths share a batch, padded to the bucket of the longest."""
    session = Doubler()
    async with batcher(session) as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(served.infer(request([1] * length))) for length in (1, 5, 3)]
        await queued(served, 3)
        session.gate.set()
        answers = await asyncio.gather(first, *rest)

    assert [int(answer.outputs["y"][0, 0]) for answer in answers] == [2, 2, 10, 6]
    assert session.shapes[1] == (3, 8)


async def test_oversized_request_is_split_and_put_together() -> None:
    """A request of more rows than a batch is executed in parts and answered as one."""
    session = Doubler()
    async with batcher(session) as served:
        answer = await served.infer(request(*([value] for value in range(21))))

    assert answer.outputs["y"].ravel().tolist() == [2 * value for value in range(21)]
    assert all(rows <= 8 for rows, _ in session.shapes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=8), min_size=1, max_size=11), st.booleans()
        ),
        min_size=1,
        max_size=20,
    )
)
def test_answers_go_to_their_askers(requests: list[tuple[list[list[int]], bool]]) -> None:
    """Whatever is asked together, cancelled or not, of any size and length, every caller gets the answer to its own rows."""

    async def ask() -> None:
        async with batcher(Doubler(), Doubler()) as served:
            tasks = []
            for rows, cancelled in requests:
                length = max(map(len, rows))
                padded = [row + [0] * (length - len(row)) for row in rows]
                tasks.append((asyncio.create_task(served.infer(request(*padded))), rows, cancelled))
            await asyncio.sleep(0)
            for task, _, cancelled in tasks:
                if cancelled:
                    task.cancel()
            await asyncio.wait([task for task, _, _ in tasks])
            for task, rows, cancelled in tasks:
                if not cancelled:
                    assert task.result().outputs["y"].ravel().tolist() == [2 * sum(row) for row in rows]

    asyncio.run(ask())


async def test_cancelled_request_is_not_executed() -> None:
    """Work that nobody waits for is not run, and is counted."""
    session, metrics = Doubler(), Metrics()
    async with batcher(session, metrics=metrics) as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.05)
        doomed, kept = (asyncio.create_task(served.infer(request([value]))) for value in (2, 3))
        await queued(served, 2)
        doomed.cancel()
        await asyncio.wait([doomed])
        session.gate.set()
        await asyncio.gather(first, kept)

    assert session.shapes == [(1, 4), (1, 4)]
    assert metrics.rejected.labels("doubler", "1", "cancelled")._value.get() == 1


async def test_expired_request_is_not_executed() -> None:
    """A request whose deadline passes in the queue gets DeadlineExceeded before the next execution, and is counted."""
    session, metrics = Doubler(), Metrics()
    async with batcher(session, metrics=metrics) as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.05)
        late = asyncio.create_task(served.infer(request([2], deadline=time.monotonic() + 0.01)))
        await queued(served, 1)
        await asyncio.sleep(0.05)
        session.gate.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late

    assert session.shapes == [(1, 4)]
    assert metrics.rejected.labels("doubler", "1", "deadline")._value.get() == 1


async def test_queue_limit_of_the_config_is_exact() -> None:
    """max_queue_size requests wait, one more is refused, and the rest is answered."""
    session = Doubler()
    async with batcher(session, batching="default_queue_policy { max_queue_size: 3 }") as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(served.infer(request([value]))) for value in (2, 3, 4)]
        await queued(served, 3)
        with pytest.raises(QueueFull):
            await served.infer(request([5]))
        session.gate.set()
        answers = await asyncio.gather(first, *waiting)

    assert [int(answer.outputs["y"][0, 0]) for answer in answers] == [2, 4, 6, 8]


async def test_failing_execution_is_answered_and_survived() -> None:
    """When the model fails, its callers get ModelFailure without the cause's text, and the next request works."""
    session = Doubler()
    good = session.answer
    async with batcher(session) as served:
        session.answer = lambda x: 1 // 0  # type: ignore[assignment,return-value]  # a fault on purpose
        with pytest.raises(ModelFailure) as failure:
            await served.infer(request([1]))
        session.answer = good
        answer = await served.infer(request([2]))

    assert "division" not in str(failure.value)
    assert int(answer.outputs["y"][0, 0]) == 4
    assert served.statistics.fail.count == 1


async def test_wrong_number_of_rows_is_a_failure() -> None:
    """A model that answers with too few rows fails its batch instead of giving callers the rows of others."""
    session = Doubler()
    session.answer = lambda x: x[:-1, :1]
    async with batcher(session) as served:
        with pytest.raises(ModelFailure):
            await served.infer(request([1], [2]))


async def test_bad_request_never_reaches_the_queue() -> None:
    """A wrong name, dtype or shape is refused with what was expected, and the model is not run."""
    session = Doubler()
    async with batcher(session) as served:
        for inputs, words in (
            ({"z": np.zeros((1, 1), np.int32)}, "unexpected inference input 'z'"),
            ({"x": np.zeros((1, 1), np.float32)}, "expects 'INT32'"),
            ({"x": np.zeros((1, 1, 1), np.int32)}, r"Expected \[-1,-1\], got \[1,1,1\]"),
            ({"x": np.zeros((0, 1), np.int32)}, "no rows"),
            ({}, "missing required input"),
        ):
            with pytest.raises(InvalidArgument, match=words):
                await served.infer(Request(inputs))

    assert session.shapes == []


async def test_close_finishes_what_waits() -> None:
    """Closing answers everything that was accepted and refuses what comes after."""
    session = Doubler()
    async with batcher(session) as served:
        session.gate.clear()
        tasks = [asyncio.create_task(served.infer(request([0])))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(served.infer(request([value]))) for value in range(1, 5)]
        await queued(served, 4)
        closing = asyncio.create_task(served.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await served.infer(request([9]))
        session.gate.set()
        await closing
        answers = await asyncio.gather(*tasks)

    assert [int(answer.outputs["y"][0, 0]) for answer in answers] == [0, 2, 4, 6, 8]


async def test_dead_instance_is_noticed() -> None:
    """If an instance's thread ends, all that wait are told and the owner is called."""
    config = from_message(text_format.Parse(CONFIG % "", model_config_pb2.ModelConfig()))
    failures: list[str] = []
    session = Doubler()

    def die(x: Tensor) -> Tensor:
        raise SystemExit

    session.answer = die
    served = Batcher(config, 1, [StackedSession(config, session.run)], Metrics(), failures.append)
    session.gate.clear()
    running = asyncio.create_task(served.infer(request([1])))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(served.infer(request([2])))
    await queued(served, 1)

    session.gate.set()

    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await running
    assert len(failures) == 1
    await served.close()


async def test_queue_delay_is_honoured_only_where_set() -> None:
    """With max_queue_delay a lone request waits for company, at most that long; without, it goes at once."""
    session = Doubler()
    async with batcher(session, batching="max_queue_delay_microseconds: 100000") as served:
        started = time.monotonic()
        early = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.02)
        await asyncio.gather(early, served.infer(request([2])))
        elapsed = time.monotonic() - started

    assert session.shapes == [(2, 4)]
    assert elapsed >= 0.09


async def test_queue_timeout_is_exact() -> None:
    """A request that waits longer than its policy allows is told at that moment, not when an instance is free."""
    session, metrics = Doubler(), Metrics()
    policy = "default_queue_policy { default_timeout_microseconds: 50000 }"
    async with batcher(session, batching=policy, metrics=metrics) as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.01)
        started = time.monotonic()
        with pytest.raises(QueueTimeout, match="Request timeout expired"):
            await served.infer(request([2]))
        elapsed = time.monotonic() - started
        session.gate.set()
        await first

    assert 0.05 <= elapsed < 0.5
    assert served.statistics.failures == {"QUEUE_TIMEOUT": 1}
    assert served.statistics.pending == 0
    assert metrics.rejected.labels("doubler", "1", "queue_timeout")._value.get() == 1


async def test_order_is_preserved_where_asked() -> None:
    """With preserve_ordering an answer waits for those of earlier requests, also where another instance was faster."""
    slow, fast = Doubler(), Doubler()
    async with batcher(slow, fast, batching="preserve_ordering: true") as served:
        slow.gate.clear()
        ended: list[int] = []

        async def ask(value: int) -> None:
            await served.infer(request([value]))
            ended.append(value)

        tasks = []
        for value in range(4):
            tasks.append(asyncio.create_task(ask(value)))
            await asyncio.sleep(0.02)
        assert ended == []
        slow.gate.set()
        await asyncio.gather(*tasks)

    assert ended == [0, 1, 2, 3]


async def test_cancelled_request_does_not_hold_up_the_order() -> None:
    """With preserve_ordering a caller that leaves is not waited for."""
    slow, fast = Doubler(), Doubler()
    async with batcher(slow, fast, batching="preserve_ordering: true") as served:
        slow.gate.clear()
        stuck = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.02)
        other = asyncio.create_task(served.infer(request([2])))
        await asyncio.sleep(0.02)
        stuck.cancel()
        answer = await asyncio.wait_for(other, 1)

    assert int(answer.outputs["y"][0, 0]) == 4


async def test_first_batch_is_held_until_enough_wait() -> None:
    """With `hold`, nothing runs before so many requests wait; then they run as usual."""
    session = Doubler()
    async with batcher(session, hold=3) as served:
        tasks = [asyncio.create_task(served.infer(request([value]))) for value in (1, 2)]
        await asyncio.sleep(0.05)
        assert session.shapes == []
        await asyncio.gather(*tasks, served.infer(request([3])))
        await served.infer(request([4]))

    assert session.shapes == [(3, 4), (1, 4)]


async def test_failed_piece_fails_its_request_once() -> None:
    """When a piece of an oversized request fails, the request fails, and what is left of it is not executed."""
    session = Doubler()
    session.answer = lambda x: 1 // 0  # type: ignore[assignment,return-value]  # a fault on purpose
    async with batcher(session) as served:
        with pytest.raises(ModelFailure):
            await served.infer(request(*([value] for value in range(64))))

    assert len(session.shapes) == 1
    assert (served.statistics.fail.count, served.statistics.pending) == (1, 0)


async def test_timeout_counts_the_wait_only() -> None:
    """A request whose execution has begun is not ended by its queue timeout, however many pieces it has."""
    session = Doubler()
    policy = "default_queue_policy { default_timeout_microseconds: 30000 }"
    async with batcher(session, batching=policy) as served:
        session.gate.clear()
        asking = asyncio.create_task(served.infer(request(*([value] for value in range(20)))))
        await asyncio.sleep(0.08)
        session.gate.set()
        answer = await asking

    assert len(answer.outputs["y"]) == 20


async def test_wrong_answer_to_one_costs_the_others_nothing() -> None:
    """When the pieces of one request do not fit together, that request fails and its neighbours in a batch do not."""
    session = Doubler()
    widths = iter([2, 1])
    session.answer = lambda x: np.zeros((len(x), next(widths)), np.int32)
    async with batcher(session, hold=2) as served:
        wrong = asyncio.create_task(served.infer(request(*([value] for value in range(9)))))
        right = asyncio.create_task(served.infer(request([1])))
        with pytest.raises(ModelFailure):
            await wrong
        answer = await right

    assert answer.outputs["y"].shape == (1, 1)


async def test_rejection_does_not_wait_for_the_order() -> None:
    """With preserve_ordering a request that is rejected unexecuted is told at once."""
    session = Doubler()
    policy = "preserve_ordering: true default_queue_policy { default_timeout_microseconds: 30000 }"
    async with batcher(session, batching=policy) as served:
        session.gate.clear()
        first = asyncio.create_task(served.infer(request([1])))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueTimeout):
            await asyncio.wait_for(served.infer(request([2])), 1)
        session.gate.set()
        await first


async def test_instance_that_dies_idle_does_not_hold_up_the_close() -> None:
    """A thread that ends while it has no work is noticed, and the batcher can still be closed."""
    config = from_message(text_format.Parse(CONFIG % "", model_config_pb2.ModelConfig()))
    failures: list[str] = []
    served = Batcher(config, 1, [StackedSession(config, Doubler().run)], Metrics(), failures.append)
    served._died(served._instances[0], SystemExit())

    await asyncio.wait_for(served.close(), 1)

    assert len(failures) == 1


class Immediate(StackedSession):
    """A session that is executed on the event loop."""

    immediate = True


async def test_immediate_session_has_no_thread() -> None:
    """A session that takes less time than a thread's waking is executed on the loop, however much waits at once."""
    config = from_message(text_format.Parse(CONFIG % "", model_config_pb2.ModelConfig()))
    session = Doubler()
    before = threading.enumerate()
    served = Batcher(config, 1, [Immediate(config, session.run)], Metrics(), pytest.fail, hold=3000)
    started = [thread for thread in threading.enumerate() if thread.name == "doubler-0" and thread not in before]
    tasks = [asyncio.create_task(served.infer(request([value]))) for value in range(2999)]
    await asyncio.sleep(0.01)
    answers = await asyncio.gather(*tasks, served.infer(request([2999])))
    session.answer = lambda x: 1 // 0  # type: ignore[assignment,return-value]  # a fault on purpose
    with pytest.raises(ModelFailure):
        await served.infer(request([1]))
    await served.close()

    assert [int(answer.outputs["y"][0, 0]) for answer in answers] == [2 * value for value in range(3000)]
    assert started == []
    assert (served.statistics.execution_count, served.statistics.inference_count) == (375, 3000)


async def test_refused_priority_costs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not let a thread lower its priority, the model is served all the same."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.setpriority", refuse)
    async with batcher(Doubler()) as served:
        answer = await served.infer(request([3]))

    assert answer.outputs["y"].tolist() == [[6]]
