"""Refusing what could not be answered in time."""

import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tritonclient.grpc import service_pb2 as v2
from tritonclient.grpc import service_pb2_grpc

from lookwire.local import LocalServer
from lookwire_server.encoding.encoder import Encoder
from lookwire_server.errors import QueueFull
from lookwire_server.lanes import Lane
from tests.server.test_embedding_cache import encoder, tower  # noqa: F401 - fixtures
from tests.server.tower import Tower

DELAY = 0.2
CONFIG = """
backend: "identity" max_batch_size: 1
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
parameters { key: "execute_delay_ms" value { string_value: "200" } }
"""


def request() -> v2.ModelInferRequest:
    message = v2.ModelInferRequest(model_name="slow", raw_input_contents=[np.zeros(1, np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    return message


def test_a_request_that_would_be_too_late_is_refused_at_once(tmp_path: Path) -> None:
    """It is told after how long to come again; one with time to wait, and one that waits for ever, are answered."""
    (tmp_path / "slow" / "1").mkdir(parents=True)
    (tmp_path / "slow" / "config.pbtxt").write_text(CONFIG)
    with LocalServer(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        infer(request())
        waiting = [infer.future(request()) for _ in range(5)]
        time.sleep(DELAY / 2)
        patient = infer.future(request(), timeout=10)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            infer(request(), timeout=4 * DELAY)
        took = time.monotonic() - began
        status = rpc_status.from_call(refused.value)
        for call in (*waiting, patient):
            call.result()

    assert took < DELAY
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    retry = error_details_pb2.RetryInfo()
    assert [detail.Unpack(retry) for detail in status.details].count(True) == 1
    assert 3.5 * DELAY < retry.retry_delay.ToTimedelta().total_seconds() < 6 * DELAY


async def test_nothing_is_done_for_what_will_be_refused(encoder: Encoder, tower: Tower) -> None:  # noqa: F811
    """An encoder asks its tower before it tokenises; bulk work waits instead."""
    tower.full = True

    with pytest.raises(QueueFull):
        await encoder.embed(["a red dress"], deadline=time.monotonic() + 1)
    bulk = await encoder.embed(["a red dress"], lane=Lane.BULK, deadline=time.monotonic() + 1)

    assert tower.lanes == [Lane.BULK]
    assert bulk.vectors.any()
