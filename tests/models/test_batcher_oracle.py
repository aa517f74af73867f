"""Nobody gets another's answer, every request ends, and the counters add up: the batcher against an oracle."""

import asyncio
import threading
import time
from typing import Any

import numpy as np
from google.protobuf import text_format
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import LookwireError
from lookwire_server.lanes import Lane
from lookwire_server.metrics import Metrics
from lookwire_server.models.batcher import Batcher
from lookwire_server.models.config import from_message
from lookwire_server.models.model import Request, Response, Tensor
from lookwire_server.models.session import StackedSession

CONFIG = """
name: "echo" backend: "test" max_batch_size: 8
input [{ name: "ids" data_type: TYPE_INT64 dims: [-1] }, { name: "extra" data_type: TYPE_INT64 dims: [2, -1] optional: true }]
output [{ name: "twice" data_type: TYPE_INT64 dims: [-1] }]
dynamic_batching { %s }
%s
"""
PADDED = """
parameters { key: "pad_value" value { string_value: "0" } }
parameters { key: "length_buckets" value { string_value: "2,4" } }
"""
BATCHING = st.sampled_from(
    [
        "",
        "preferred_batch_size: [2, 5]",
        "preferred_batch_size: [4] max_queue_delay_microseconds: 3000",
        "preserve_ordering: true",
        "priority_levels: 3 default_priority_level: 2 default_queue_policy { max_queue_size: 4 }",
        "default_queue_policy { default_timeout_microseconds: 4000 allow_timeout_override: true }",
        "default_queue_policy { default_timeout_microseconds: 2000 timeout_action: DELAY max_queue_size: 6 }",
    ]
)
ASKED = st.fixed_dictionaries(
    {
        "rows": st.sampled_from([1, 1, 2, 3, 0, 9, 19]),
        "length": st.sampled_from([1, 1, 2, 5]),
        "extra": st.sampled_from([None, None, None, 1, 2]),
        "lane": st.sampled_from(list(Lane)),
        "priority": st.integers(0, 4),
        "timeout": st.sampled_from([0.0, 0.0, 0.001]),
        "deadline": st.sampled_from([None, None, 0.001, 5.0]),
    }
)
EXPECTED = {"QUEUE_FULL", "QUEUE_TIMEOUT", "DEADLINE_EXCEEDED", "MODEL_FAILURE", "INVALID_ARGUMENT", "CANCELLED"}


class Twice:
    """Doubles its input; holds while the gate is shut, fails when told to, and counts what it executed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.failures = 0
        self.rows: list[int] = []

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.gate.wait(10)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("a fault on purpose")
        self.rows.append(len(inputs["ids"]))
        return {"twice": 2 * inputs["ids"]}


class Oracle(RuleBasedStateMachine):
    """Requests carry numbers that no other request has; the answer must be their doubles."""

    @initialize(batching=BATCHING, padded=st.booleans(), instances=st.integers(1, 3))
    def start(self, batching: str, padded: bool, instances: int) -> None:
        message = text_format.Parse(CONFIG % (batching, PADDED if padded else ""), model_config_pb2.ModelConfig())
        config = from_message(message)
        self.loop = asyncio.new_event_loop()
        self.twice = [Twice() for _ in range(instances)]
        self.fatal: list[str] = []
        self.metrics = Metrics()
        self.asked: list[tuple[asyncio.Task[Response], Tensor]] = []
        self.next_id = 1

        async def make() -> Batcher:
            sessions = [StackedSession(config, twice.run) for twice in self.twice]
            return Batcher(config, 1, sessions, self.metrics, self.fatal.append)

        self.batcher = self.loop.run_until_complete(make())

    @rule(burst=st.lists(ASKED, min_size=1, max_size=5))
    def ask(self, burst: list[dict[str, Any]]) -> None:
        """Several requests that arrive together."""
        for asked in burst:
            rows, length = asked.pop("rows"), asked.pop("length")
            ids = np.arange(self.next_id, self.next_id + rows * length, dtype=np.int64).reshape(rows, length)
            self.next_id += rows * length
            inputs: dict[str, Any] = {"ids": ids}
            if extra := asked.pop("extra"):
                inputs["extra"] = np.zeros((rows, 2, extra), np.int64)
            if (wait := asked.pop("deadline")) is not None:
                asked["deadline"] = time.monotonic() + wait
            self.asked.append((self.loop.create_task(self.batcher.infer(Request(inputs, **asked))), ids))
        self.turn(0.0)

    @rule(instance=st.integers(0, 2))
    def shut(self, instance: int) -> None:
        self.twice[instance % len(self.twice)].gate.clear()

    @rule(instance=st.integers(0, 2))
    def open(self, instance: int) -> None:
        self.twice[instance % len(self.twice)].gate.set()

    @rule(instance=st.integers(0, 2))
    def fail(self, instance: int) -> None:
        self.twice[instance % len(self.twice)].failures += 1

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task, _ = data.draw(st.sampled_from(self.asked))
        task.cancel()
        self.turn(0.0)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.005]))
    def turn(self, seconds: float) -> None:
        """Lets the loop run."""
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for twice in self.twice:
            twice.gate.set()
        tasks = [task for task, _ in self.asked]

        async def end() -> None:
            await asyncio.wait_for(self.batcher.close(), 20)
            if tasks:
                await asyncio.wait(tasks, timeout=5)

        self.loop.run_until_complete(end())
        self.loop.close()
        self.check()

    def check(self) -> None:
        counted = self.batcher.statistics
        succeeded = 0
        for task, ids in self.asked:
            assert task.done(), "a request has no answer"
            if task.cancelled():
                continue
            if (error := task.exception()) is not None:
                assert isinstance(error, LookwireError)
                assert error.reason in EXPECTED
                continue
            succeeded += 1
            assert task.result().outputs["twice"].tolist() == (2 * ids).tolist()
        assert self.fatal == []
        assert counted.success.count == succeeded
        # A task cancelled before its first step never called the batcher.
        assert counted.success.count + counted.fail.count <= len(self.asked)
        assert sum(counted.failures.values()) == counted.fail.count
        assert set(counted.failures) <= EXPECTED
        assert counted.pending == 0
        executed = [rows for twice in self.twice for rows in twice.rows]
        assert (counted.execution_count, counted.inference_count) == (len(executed), sum(executed))
        assert sum(batch.count for batch in counted.batches.values()) == len(executed)
        assert all(rows <= 8 for rows in executed)


TestOracle = Oracle.TestCase
TestOracle.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
