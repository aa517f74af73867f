"""The backends through the front door: a real server, and Triton's own client."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from lookwire.local import LocalServer
from tests.models.repositories import write

TEXTS = """
backend: "%s" max_batch_size: 4 response_cache { enable: %s }
input [{ name: "INPUT0" data_type: TYPE_STRING dims: [-1] }]
output [{ name: "OUTPUT0" data_type: TYPE_STRING dims: [-1] }]
"""
UPPER = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        if (texts == b"").any():
            error = pb_utils.TritonError("an empty text", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        texts = texts.copy()
        texts[...] = [[text.upper() for text in row] for row in texts]
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", texts)])
"""
TWO_STEPS = """
platform: "ensemble" max_batch_size: 4
input [{ name: "IN" data_type: TYPE_STRING dims: [-1] }]
output [{ name: "OUT" data_type: TYPE_STRING dims: [-1] }]
ensemble_scheduling {
  step {
    model_name: "same" model_version: -1
    input_map { key: "INPUT0" value: "IN" } output_map { key: "OUTPUT0" value: "between" }
  }
  step {
    model_name: "upper" model_version: -1
    input_map { key: "INPUT0" value: "between" } output_map { key: "OUTPUT0" value: "OUT" }
  }
}
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton.InferenceServerClient]:
    root: Path = tmp_path_factory.mktemp("models")
    write(root, "same", TEXTS % ("identity", "true"))
    write(root, "upper", TEXTS % ("python", "false"), model=UPPER)
    write(root, "both", TWO_STEPS)
    with (
        LocalServer(root, cache_config="local,size=1048576") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        yield client


def ask(client: triton.InferenceServerClient, model: str, *texts: bytes, input: str = "INPUT0") -> list[bytes]:
    tensor = triton.InferInput(input, [1, len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([texts], np.object_))
    result = client.infer(model, [tensor])
    answer: list[bytes] = result.as_numpy(result.get_response().outputs[0].name)[0].tolist()
    return answer


def test_python_model_answers_a_client(client: triton.InferenceServerClient) -> None:
    """A model.py answers tritonclient, and its own errors reach the caller with their code and message."""
    assert ask(client, "upper", b"red", b"blue") == [b"RED", b"BLUE"]
    with pytest.raises(InferenceServerException, match="an empty text") as raised:
        ask(client, "upper", b"")
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_ensemble_answers_a_client(client: triton.InferenceServerClient) -> None:
    """An ensemble of an identity and a python model answers tritonclient and describes itself as Triton's do."""
    assert ask(client, "both", b"hat", input="IN") == [b"HAT"]
    assert client.get_model_metadata("both").platform == "ensemble"
    assert len(client.get_model_config("both").config.ensemble_scheduling.step) == 2
    with pytest.raises(InferenceServerException, match="an empty text"):
        ask(client, "both", b"", input="IN")


def test_cache_hits_count_as_successes_only(client: triton.InferenceServerClient) -> None:
    """A hit counts as a success and a hit, not as an inference or an execution."""

    def counts() -> tuple[int, ...]:
        stats = client.get_inference_statistics("same").model_stats[0]
        inferences = stats.inference_stats
        return (
            inferences.success.count,
            inferences.cache_hit.count,
            inferences.cache_miss.count,
            stats.inference_count,
            stats.execution_count,
        )

    before = counts()
    for _ in range(3):
        assert ask(client, "same", b"equal") == [b"equal"]

    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [3, 2, 1, 1, 1]
