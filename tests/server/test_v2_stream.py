"""ModelStreamInfer: many requests on one stream, their answers in order, errors that do not end it."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from lookwire.local import LocalServer
from tests.server import v2_models

BUDGET = 4 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return v2_models.write(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[LocalServer]:
    with LocalServer(models, max_inflight_bytes=BUDGET) as server:
        yield server


@pytest.fixture
def stub(server: LocalServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request(id: str, model: str = "floats", value: float = 1.0, size: int = 1) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(
        model_name=model, id=id, raw_input_contents=[np.full((1, size), value, np.float32).tobytes()]
    )
    made.inputs.add(name="INPUT0", datatype="FP32", shape=[1, size])
    return made


def outcomes(responses: Iterable[pb.ModelStreamInferResponse]) -> list[tuple[str, str]]:
    """The ids of responses and their errors, empty for those that went well."""
    return [(response.infer_response.id, response.error_message) for response in responses]


def test_answers_come_in_the_order_of_requests(stub: Any) -> None:
    """Answers keep the order of the requests though quicker models answer first, and all come after a half-close."""
    models = ["slow", *["floats"] * 300, "slow", "floats"]
    requests = [request(str(number), model, float(number)) for number, model in enumerate(models)]

    responses = list(stub.ModelStreamInfer(iter(requests)))

    assert outcomes(responses) == [(str(number), "") for number in range(len(models))]
    values = [np.frombuffer(response.infer_response.raw_output_contents[0], np.float32)[0] for response in responses]
    assert values == list(range(len(models)))
    assert all(response.infer_response.parameters["triton_final_response"].bool_param for response in responses)


def test_requests_of_a_stream_are_in_flight_together(stub: Any) -> None:
    """Requests to three slow models take the time of one: a stream does not wait for one answer to take the next request."""
    requests = [request(model, model) for model in ("slow", "one_at_a_time", "patient")]

    started = time.monotonic()
    responses = list(stub.ModelStreamInfer(iter(requests)))

    assert len(responses) == 3
    assert time.monotonic() - started < 0.8  # each takes 0.3 s


def test_a_failed_request_leaves_the_stream_open(server: LocalServer) -> None:
    """An error is a message for its request; the client's later requests on the stream are answered."""
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def got(result: Any, error: Any) -> None:
        answers.put((result, error))

    good = triton.InferInput("INPUT0", [1, 1], "FP32")
    good.set_data_from_numpy(np.ones((1, 1), np.float32))
    with triton.InferenceServerClient(server.address) as client:
        client.start_stream(partial(got))
        client.async_stream_infer("nobody", [good], request_id="first")
        client.async_stream_infer("floats", [good], request_id="second", enable_empty_final_response=True)
        (_, error), (result, nothing) = answers.get(timeout=10), answers.get(timeout=10)
        client.stop_stream()

    assert error.message() == "Request for unknown model: 'nobody' is not found"
    assert nothing is None
    assert result.get_response().id == "second"


def test_errors_name_their_request(stub: Any) -> None:
    """An error message carries the id of the request that failed, and Triton's words."""
    wrong = request("wrong")
    wrong.raw_input_contents.append(b"more")

    responses = list(stub.ModelStreamInfer(iter([request("a"), wrong, request("b")])))

    assert [id for id, _ in outcomes(responses)] == ["a", "wrong", "b"]
    assert responses[1].error_message.startswith("[request id: wrong] raw_input_contents has 2 entries")


def test_errors_end_the_stream_where_that_is_asked_for(stub: Any) -> None:
    """With triton_grpc_error the first error is the status of the call, after the answers before it."""
    call = stub.ModelStreamInfer(
        iter([request("a"), request("b", "nobody"), request("c")]), metadata=[("triton_grpc_error", "true")]
    )

    first = next(call)
    with pytest.raises(grpc.RpcError) as failure:
        next(call)

    assert first.infer_response.id == "a"
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert failure.value.details() == "Request for unknown model: 'nobody' is not found"


def test_cancelling_a_stream_cancels_what_waits(server: LocalServer) -> None:
    """After a cancel the requests that wait are not executed, and the next stream is served."""
    with grpc.insecure_channel(server.address) as channel, triton.InferenceServerClient(server.address) as client:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        before = executions(client)
        call = stub.ModelStreamInfer(iter([request(str(number), "slow") for number in range(20)]))
        next(call)
        call.cancel()
        time.sleep(0.7)  # two more executions, if any were made

        assert executions(client) - before <= 2
        assert outcomes(stub.ModelStreamInfer(iter([request("again")]))) == [("again", "")]


def executions(client: triton.InferenceServerClient) -> int:
    count: int = client.get_inference_statistics("slow").model_stats[0].execution_count
    return count


def test_a_stream_beyond_the_budget_is_told_to_try_again(server: LocalServer, stub: Any) -> None:
    """Requests that would hold more bytes than may be in flight get UNAVAILABLE's words; the others are answered."""
    size = BUDGET // 4 // 4 * 3 // 4
    names = [str(number) for number in range(12)]

    responses = list(stub.ModelStreamInfer(iter([request(name, "slow", size=size) for name in names])))

    assert [id for id, _ in outcomes(responses)] == names
    errors = [error for _, error in outcomes(responses) if error]
    assert errors
    assert all("bytes are in flight on streams" in error for error in errors)
    assert len(errors) < len(names)


def test_a_stream_is_not_read_while_much_is_in_flight(server: LocalServer, stub: Any) -> None:
    """No more than 256 requests of a stream are taken until the first is answered; then it goes on."""
    requests = [request("x", "slow" if number < 4 else "floats") for number in range(1000)]

    with triton.InferenceServerClient(server.address) as client:
        before = successes(client)
        call = stub.ModelStreamInfer(iter(requests))
        time.sleep(0.6)  # the slow ones take 1.2 s
        during = successes(client) - before
        answered = len(list(call))

    assert 200 < during <= 256
    assert answered == 1000


def successes(client: triton.InferenceServerClient) -> int:
    count: int = client.get_inference_statistics("floats").model_stats[0].inference_stats.success.count
    return count


def test_streams_end_when_the_server_stops(models: Path) -> None:
    """A stop does not wait for idle streams: what is in flight is answered, then the stream ends with UNAVAILABLE."""
    release = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield request("a", "slow")
        release.wait(20)

    with LocalServer(models) as server, grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(1) as pool:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())
        time.sleep(0.2)
        stopping = pool.submit(server.stop)
        try:
            answer = next(call)
            with pytest.raises(grpc.RpcError) as failure:
                next(call)
        finally:
            release.set()
        started = time.monotonic()
        stopping.result()

    assert answer.infer_response.id == "a"
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 5
