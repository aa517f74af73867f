"""What the server says of itself and its models, and what it can be told while it runs."""

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from lookwire.local import LocalServer
from tests.server import v2_models

TRACE = {
    "trace_file": [""],
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "trace_mode": ["triton"],
    "log_frequency": ["0"],
}
LOG = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    models = v2_models.write(tmp_path_factory.mktemp("models"))
    with LocalServer(
        models, id="mine", log_format="json", show_log=True, model_control_mode="explicit", load_model="*"
    ) as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as client:
        yield client
        nothing = {name: None for name in TRACE if name not in ("trace_file", "trace_mode")}
        client.update_trace_settings(settings=nothing)
        client.update_trace_settings("simple", settings=nothing)
        client.update_log_settings({name: value for name, value in LOG.items() if name != "log_file"})


def infer(client: triton.InferenceServerClient, model: str = "floats", id: str = "", rows: int = 1) -> None:
    given = triton.InferInput("INPUT0", [rows, 1], "FP32")
    given.set_data_from_numpy(np.ones((rows, 1), np.float32))
    client.infer(model, [given], request_id=id)


def failed(call: Any, *arguments: Any, **keywords: Any) -> tuple[str, str]:
    """The status and the words of a call that must fail."""
    with pytest.raises(InferenceServerException) as failure:
        call(*arguments, **keywords)
    return failure.value.status(), failure.value.message()


def events(capsys: pytest.CaptureFixture[str], name: str, count: int) -> list[dict[str, Any]]:
    """The log's events of that name since the last look, once there are `count` or a second is over."""
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 1
    while len(found) < count and time.monotonic() < deadline:
        time.sleep(0.02)
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
        found += [line for line in lines if line["event"] == name]
    return found


def test_server_metadata(client: triton.InferenceServerClient) -> None:
    """The server has the name it was given, and names the extensions that clients look for."""
    metadata = client.get_server_metadata()

    assert metadata.name == "mine"
    assert set(metadata.extensions) >= {"statistics", "classification", "model_repository", "trace", "logging"}
    assert "cuda_shared_memory" not in metadata.extensions
    assert "sequence" not in metadata.extensions


def test_readiness(client: triton.InferenceServerClient) -> None:
    """The server is live and ready; models are by name and version; unknown ones are not ready, which is no error."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("simple", "3")
    assert not client.is_model_ready("nobody")
    assert failed(client.is_model_ready, "simple", "first")[0] == "StatusCode.INVALID_ARGUMENT"


def test_model_metadata(client: triton.InferenceServerClient) -> None:
    """Metadata name versions, platform and tensors; the batch is a leading -1 where the model takes batches."""
    every, one = client.get_model_metadata("simple"), client.get_model_metadata("simple", "1")
    unbatched, strings = client.get_model_metadata("plain"), client.get_model_metadata("strings")

    assert (every.platform, list(every.versions), list(one.versions)) == ("onnxruntime_onnx", ["1", "2"], ["1"])
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in every.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    assert list(unbatched.outputs[0].shape) == [-1, 2]
    assert strings.inputs[0].datatype == "BYTES"
    assert failed(client.get_model_metadata, "nobody") == (
        "StatusCode.NOT_FOUND",
        "Request for unknown model: 'nobody' is not found",
    )


def test_model_config_is_the_effective_one(client: triton.InferenceServerClient) -> None:
    """The configuration comes with its defaults filled in."""
    config = client.get_model_config("floats").config

    assert (config.name, config.max_batch_size) == ("floats", 8)
    assert config.version_policy.latest.num_versions == 1
    assert config.instance_group[0].count == 1


def test_statistics_count_requests_rows_and_executions(client: triton.InferenceServerClient) -> None:
    """A request of three rows is one success, three inferences and one execution, in a batch of three."""
    before = client.get_inference_statistics("floats").model_stats[0]

    infer(client, rows=3)

    after = client.get_inference_statistics("floats", "1").model_stats[0]
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_count - before.inference_count == 3
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert 3 in [batch.batch_size for batch in after.batch_stats]
    every = {(stats.name, stats.version) for stats in client.get_inference_statistics().model_stats}
    assert every >= {("simple", "1"), ("simple", "2"), ("floats", "1")}
    status, words = failed(client.get_inference_statistics, "nobody")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert words.startswith("requested model 'nobody' is not available")


def test_index_and_control(client: triton.InferenceServerClient) -> None:
    """The index has a row for each version; unloading shows there, and loading brings the model back."""

    def rows(name: str) -> list[tuple[str, str, str]]:
        models = client.get_model_repository_index().models
        return [(model.version, model.state, model.reason) for model in models if model.name == name]

    before = rows("simple")
    client.unload_model("simple")
    unloaded = rows("simple")
    index = client._client_stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True))
    client.load_model("simple")

    assert before == rows("simple") == [("1", "READY", ""), ("2", "READY", "")]
    assert {state for _, state, _ in unloaded} <= {"UNLOADING", "UNAVAILABLE"}
    assert "simple" not in {model.name for model in index.models}


@pytest.mark.parametrize(
    ("method", "request_", "status", "words"),
    [
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), "UNIMPLEMENTED", "'repository_name'"),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(repository_name="r"),
            "UNIMPLEMENTED",
            "'repository_name'",
        ),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(
                model_name="simple", parameters={"config": pb.ModelRepositoryParameter(bytes_param=b"{}")}
            ),
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'config', expected string_param",
        ),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(
                model_name="simple", parameters={"file:1/model.onnx": pb.ModelRepositoryParameter(string_param="x")}
            ),
            "INVALID_ARGUMENT",
            "invalid value type for load parameter 'file:1/model.onnx', expected bytes_param",
        ),
        (
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(
                model_name="simple", parameters={"colour": pb.ModelRepositoryParameter(string_param="x")}
            ),
            "INVALID_ARGUMENT",
            "unrecognized load parameter 'colour'",
        ),
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="x" * 300), "INVALID_ARGUMENT", "300 bytes"),
        (
            "RepositoryModelUnload",
            pb.RepositoryModelUnloadRequest(
                model_name="simple", parameters={"unload_dependents": pb.ModelRepositoryParameter(string_param="x")}
            ),
            "INVALID_ARGUMENT",
            "invalid value type for unload parameter 'unload_dependents', expected bool_param",
        ),
    ],
)
def test_wrong_control_requests(
    client: triton.InferenceServerClient, method: str, request_: Any, status: str, words: str
) -> None:
    """Parameters of load and unload requests have fixed names and types, and there is one repository."""
    with pytest.raises(grpc.RpcError) as failure:
        getattr(client._client_stub, method)(request_)

    assert failure.value.code().name == status
    assert words in (failure.value.details() or "")
    assert client.is_model_ready("simple")


def trace(response: Any) -> dict[str, list[str]]:
    return {name: list(setting.value) for name, setting in response.settings.items()}


def test_trace_settings_of_all_and_of_one_model(client: triton.InferenceServerClient) -> None:
    """A model has the settings of all but for those set for it alone; empty values take a setting back."""
    assert trace(client.get_trace_settings()) == trace(client.get_trace_settings("simple")) == TRACE

    client.update_trace_settings("simple", {"trace_rate": "12", "log_frequency": "34"})
    every = client.update_trace_settings(settings={"trace_rate": "56", "trace_level": ["TIMESTAMPS", "TENSORS"]})
    simple = trace(client.get_trace_settings("simple"))
    cleared = trace(client.update_trace_settings("simple", {"trace_rate": None}))

    assert trace(every) == {**TRACE, "trace_rate": ["56"], "trace_level": ["TIMESTAMPS", "TENSORS"]}
    assert simple == {**trace(every), "trace_rate": ["12"], "log_frequency": ["34"]}
    assert cleared == {**trace(every), "log_frequency": ["34"]}


@pytest.mark.parametrize(
    ("model", "settings", "status", "words"),
    [
        (
            "",
            {"trace_file": "t.json"},
            "UNIMPLEMENTED",
            "trace file location can not be updated through network protocol",
        ),
        ("", {"trace_rate": "0"}, "INVALID_ARGUMENT", "Unable to parse 'trace_rate'"),
        ("", {"trace_rate": "often"}, "INVALID_ARGUMENT", "got: often"),
        ("", {"trace_count": "-2"}, "INVALID_ARGUMENT", "from -1 to"),
        ("", {"trace_rate": ["1", "2"]}, "INVALID_ARGUMENT", "expect only 1 value for 'trace_rate'"),
        ("", {"trace_level": ["LOUD"]}, "INVALID_ARGUMENT", "Unable to parse 'trace_level'"),
        ("", {"trace_level": ["OFF", "TIMESTAMPS"]}, "INVALID_ARGUMENT", "OFF"),
        ("", {"colour": "red"}, "INVALID_ARGUMENT", "unknown trace setting 'colour'"),
        ("nobody", {"trace_rate": "1"}, "INVALID_ARGUMENT", "Request for unknown model : nobody"),
    ],
)
def test_wrong_trace_settings_change_nothing(
    client: triton.InferenceServerClient, model: str, settings: dict[str, Any], status: str, words: str
) -> None:
    """A setting that is unknown, cannot be set or has a wrong value is refused, with all that came along."""
    error = failed(client.update_trace_settings, model, {"log_frequency": "7", **settings})

    assert error[0] == f"StatusCode.{status}"
    assert words in error[1]
    assert trace(client.get_trace_settings()) == TRACE


def test_traced_requests_leave_their_times_in_the_log(
    client: triton.InferenceServerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """With TIMESTAMPS every second request is logged with its stage times, three at most, and no other model's."""
    client.update_trace_settings("slow", {"trace_level": ["OFF"]})
    client.update_trace_settings("floats", {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "3"})
    events(capsys, "trace", 0)

    for number in range(10):
        infer(client, id=str(number))
    infer(client, "slow", id="other")

    traces = events(capsys, "trace", 4)
    client.update_trace_settings("floats", {"trace_level": None, "trace_rate": None, "trace_count": None})
    client.update_trace_settings("slow", {"trace_level": None})
    assert [(event["model"], event["version"], event["request"]) for event in traces] == [
        ("floats", 1, "1"),
        ("floats", 1, "3"),
        ("floats", 1, "5"),
    ]
    for event in traces:
        stages = [event[f"{stage}_us"] for stage in ("decode", "queue", "infer", "encode")]
        assert 0 <= max(stages) <= event["total_us"] < 1e6


def log_values(response: Any) -> dict[str, Any]:
    return {
        name: getattr(setting, setting.WhichOneof("parameter_choice")) for name, setting in response.settings.items()
    }


def test_log_settings_take_effect_at_once(
    client: triton.InferenceServerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Switching off events of a level silences them, switching them on brings them back."""
    assert log_values(client.get_log_settings()) == LOG

    changed = client.update_log_settings({"log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"})
    client.unload_model("simple")
    client.load_model("simple")
    silent = events(capsys, "model loaded", 1)
    client.update_log_settings({"log_info": True})
    client.unload_model("simple")
    client.load_model("simple")

    assert log_values(changed) == {**LOG, "log_info": False, "log_verbose_level": 1, "log_format": "ISO8601"}
    assert silent == []
    assert events(capsys, "model loaded", 2)


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({"log_file": "x.log"}, "UNIMPLEMENTED", "log file location can not be updated through network protocol"),
        ({"log_info": "yes"}, "INVALID_ARGUMENT", "expect boolean for 'log_info'"),
        ({"log_verbose_level": "high"}, "INVALID_ARGUMENT", "expect int32 for 'log_verbose_level'"),
        ({"log_format": "loud"}, "INVALID_ARGUMENT", "invalid argument for log_format"),
        ({"colour": True}, "INVALID_ARGUMENT", "unknown log setting 'colour'"),
    ],
)
def test_wrong_log_settings_change_nothing(
    client: triton.InferenceServerClient, settings: dict[str, Any], status: str, words: str
) -> None:
    """A setting of another type, or one that cannot be set, is refused, with all that came along."""
    request = pb.LogSettingsRequest()
    for name, value in {"log_warning": False, **settings}.items():
        kind = "bool_param" if isinstance(value, bool) else "string_param"
        setattr(request.settings[name], kind, value)

    with pytest.raises(grpc.RpcError) as failure:
        client._client_stub.LogSettings(request)

    assert failure.value.code().name == status
    assert words in (failure.value.details() or "")
    assert log_values(client.get_log_settings()) == LOG
