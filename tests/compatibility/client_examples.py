"""Runs the Python examples of Triton's client, unchanged, against this server.

    python -m tests.compatibility.client_examples CLIENT_CHECKOUT SERVER_CHECKOUT

CLIENT_CHECKOUT is a checkout of github.com/triton-inference-server/client (src/python/examples), SERVER_CHECKOUT one of
github.com/triton-inference-server/server (docs/examples/model_repository: the eight models the examples ask for). The
server takes ports 8000, 8001 and 8002, which the examples have as defaults and one has fixed.

The example repository ships no weights for densenet_onnx: it gets a stand-in that classifies by mean colour, so what
the image examples check here is the protocol. A program passes with exit status 0 and, if it ever prints PASS, with
that in its output.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lookwire.local import LocalServer
from tests.compatibility import graphs
from tests.compatibility.outcomes import Outcome, Verdict, report, run

IDENTITY_CONFIG = """
backend: "identity"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""
IMAGE = ("-m", "densenet_onnx", "-c", "3", "-s", "INCEPTION")

# Each with the arguments of each run; IMAGE_FILE stands for the path of an image.
RUNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "grpc_client.py": ((),),
    "grpc_explicit_byte_content_client.py": ((),),
    "grpc_explicit_int8_content_client.py": ((),),
    "grpc_explicit_int_content_client.py": ((),),
    "grpc_image_client.py": ((*IMAGE, "IMAGE_FILE"), (*IMAGE, "--streaming", "IMAGE_FILE")),
    "image_client.py": (
        (*IMAGE, "-i", "grpc", "-u", "localhost:8001", "IMAGE_FILE"),
        (*IMAGE, "-i", "grpc", "-u", "localhost:8001", "--async", "IMAGE_FILE"),
    ),
    "reuse_infer_objects_client.py": (("-i", "grpc", "-u", "localhost:8001"), ("-i", "http")),
    "simple_grpc_aio_infer_client.py": ((), ("-C", "gzip")),
    "simple_grpc_async_infer_client.py": ((),),
    "simple_grpc_custom_args_client.py": ((),),
    "simple_grpc_health_metadata.py": ((),),
    "simple_grpc_infer_client.py": ((), ("-C", "gzip"), ("-C", "deflate")),
    "simple_grpc_keepalive_client.py": ((),),
    "simple_grpc_shm_client.py": ((),),
    "simple_grpc_shm_string_client.py": ((),),
    "simple_grpc_string_infer_client.py": ((),),
    "simple_http_aio_infer_client.py": ((),),
    "simple_http_async_infer_client.py": ((),),
    "simple_http_health_metadata.py": ((),),
    "simple_http_infer_client.py": (
        (),
        ("--request-compression-algorithm", "gzip", "--response-compression-algorithm", "deflate"),
    ),
    "simple_http_shm_client.py": ((),),
    "simple_http_shm_string_client.py": ((),),
    "simple_http_string_infer_client.py": ((),),
    "simple_grpc_model_control.py": ((),),  # unloads `simple`: after all that use it
}
# On a repository of seven models, which the example counts; one of them is for the growth test.
RUNS_OF_SEVEN: dict[str, tuple[tuple[str, ...], ...]] = {
    "memory_growth_test.py": (("-i", "grpc", "-r", "200"), ("-i", "http", "-r", "200")),
    "simple_http_model_control.py": ((),),
}
NOT_RUN = {
    "ensemble_image_client.py": "needs an ensemble with a preprocessing model that the example repository lacks",
    "simple_grpc_aio_sequence_stream_infer_client.py": "sequence batching is not served",
    "simple_grpc_custom_repeat.py": "decoupled models are not served",
    "simple_grpc_cudashm_client.py": "needs a GPU on this machine",
    "simple_grpc_sequence_stream_infer_client.py": "sequence batching is not served",
    "simple_grpc_sequence_sync_infer_client.py": "sequence batching is not served",
    "simple_http_cudashm_client.py": "needs a GPU on this machine",
    "simple_http_sequence_sync_infer_client.py": "sequence batching is not served",
}
LOADABLE = ("densenet_onnx", "simple", "simple_identity", "simple_int8", "simple_string")


@dataclass(frozen=True, slots=True)
class Examples:
    """The examples' folder and where their runs leave their logs."""

    folder: Path
    logs: Path
    image: Path

    def run_all(self, runs: dict[str, tuple[tuple[str, ...], ...]]) -> Iterator[Outcome]:
        for script, variants in runs.items():
            source = (self.folder / script).read_text()
            for arguments in variants:
                name = " ".join((script, *(word for word in arguments if word != "IMAGE_FILE")))
                words = [str(self.image) if word == "IMAGE_FILE" else word for word in arguments]
                yield run(
                    name,
                    [script, *words],
                    folder=self.folder,
                    timeout=60,
                    word="PASS" if 'print("PASS' in source else "",
                    log=self.logs / f"{name.replace(' ', '_').replace(':', '_')}.log",
                )


def copy_models(source: Path, target: Path, leave_out: tuple[str, ...] = ()) -> None:
    """The example repository, with weights for densenet_onnx."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*leave_out))
    graphs.classifier(target / "densenet_onnx/1/model.onnx", classes=1000)


def serve(models: Path, load: tuple[str, ...]) -> LocalServer:
    """Loads what the examples use and nothing else: the rest has no weights, or wants sequence batching."""
    return LocalServer(
        models,
        grpc_port=8001,
        http_port=8000,
        metrics_port=8002,
        id="triton",
        model_control_mode="explicit",
        load_model=load,
        exit_on_error="false",
        allow_client_shm="true",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("client", type=Path, metavar="CLIENT_CHECKOUT")
    parser.add_argument("server", type=Path, metavar="SERVER_CHECKOUT")
    arguments = parser.parse_args()
    logs = Path("build/compatibility/examples").resolve()
    logs.mkdir(parents=True, exist_ok=True)
    source = arguments.server / "docs/examples/model_repository"
    folder = (arguments.client / "src/python/examples").resolve()
    known = RUNS.keys() | RUNS_OF_SEVEN.keys() | NOT_RUN.keys()
    outcomes = [
        Outcome(path.name, Verdict.FAIL, note="unknown: decide whether it is run")
        for path in sorted(folder.glob("*.py"))
        if path.name not in known
    ]
    with tempfile.TemporaryDirectory(prefix="lookwire-examples-") as directory:
        work = Path(directory)
        Image.effect_mandelbrot((320, 240), (-2, -1.2, 1, 1.2), 50).convert("RGB").save(work / "image.png")
        examples = Examples(folder, logs, work / "image.png")
        copy_models(source, work / "eight")
        with serve(work / "eight", LOADABLE):
            outcomes += examples.run_all(RUNS)
        copy_models(source, work / "seven", ("inception_onnx", "simple_dyna_sequence"))
        (work / "seven/custom_identity_int32/1").mkdir(parents=True)
        (work / "seven/custom_identity_int32/config.pbtxt").write_text(IDENTITY_CONFIG)
        with serve(work / "seven", (*LOADABLE, "custom_identity_int32")):
            outcomes += examples.run_all(RUNS_OF_SEVEN)
    outcomes += [Outcome(script, Verdict.NOT_RUN, note=reason) for script, reason in NOT_RUN.items()]
    return report("Triton's client examples", outcomes)


if __name__ == "__main__":
    sys.exit(main())
