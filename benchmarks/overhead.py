"""What serving costs: an identity model, statistics and metrics and all, against a bare echo of the same bytes.

Both sides are grpc.aio on uvloop in one process each and answer the same request; the echo parses nothing, looks up
nothing, queues nothing and counts nothing. h2load (Debian: nghttp2-client) makes the load and takes its share of the
machine's cores from either side alike. It drives two connections, as two client processes would, and shares the
requests in flight between them: gRPC clients put many calls on one connection. Rounds of the two sides alternate.

`python -m benchmarks.overhead` is the echo: it says on which port it listens, and ends with its standard input.
"""

import asyncio
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2

from benchmarks.report import Figure, Report
from lookwire.local import LocalServer

MODEL = "identity"
CONFIG = """
backend: "identity"
max_batch_size: 64
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] } ]
dynamic_batching { }
"""
METHOD = "inference.GRPCInferenceService", "ModelInfer"
CONCURRENCIES = (8, 64)
CONNECTIONS = 2
ROUNDS = 7
REQUESTS = 10_000
WARM_UP = 2_000
BAR = 0.55


@dataclass(frozen=True, slots=True)
class Load:
    """The file with the framed request that h2load sends."""

    body: Path

    def drive(self, address: str, concurrency: int, requests: int) -> float:
        """Sends `requests`, `concurrency` always in flight; returns answers a second. Raises RuntimeError unless every
        one was answered with data: an answer without is an error, which gRPC sends with HTTP's status 200.
        """
        headers = [word for header in ("content-type: application/grpc", "te: trailers") for word in ("-H", header)]
        command = ["h2load", f"-n{requests}", f"-c{CONNECTIONS}", f"-m{concurrency // CONNECTIONS}", "-t1"]
        url = f"http://{address}/{'/'.join(METHOD)}"
        told = subprocess.run(
            [*command, *headers, "-d", self.body, url], capture_output=True, text=True, check=True
        ).stdout
        done = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", told)
        rate = re.search(r"finished in .*?, ([\d.]+) req/s", told)
        data = re.search(r"\((\d+)\) data", told)
        if not (done and rate and data):
            raise RuntimeError(f"h2load's report has another form than expected:\n{told}")
        # Every answer is at least as long as its tensor of 16 int32.
        if [int(count) for count in done.groups()] != [requests, 0, 0, 0] or int(data[1]) < requests * 64:
            raise RuntimeError(f"not all of {requests} requests to {address} were answered:\n{told}")
        return float(rate[1])


def run(report: Report) -> None:
    """Adds the figures of one run to the report."""
    if not shutil.which("h2load"):
        sys.exit("h2load was not found: install Debian's nghttp2-client")
    with tempfile.TemporaryDirectory(prefix="lookwire-overhead-") as directory:
        body = Path(directory, "request")
        body.write_bytes(framed_request())
        model = Path(directory, "models", MODEL)
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CONFIG)
        echo = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overhead"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            with LocalServer(model.parent) as server:
                assert echo.stdout
                measure(report, Load(body), server, echo.stdout.readline().strip())
        finally:
            echo.communicate(timeout=20)


def measure(report: Report, load: Load, server: LocalServer, echo: str) -> None:
    """Alternates rounds of the two sides at each concurrency, then compares the server's counts with what was sent."""
    sent = 0
    for concurrency in CONCURRENCIES:
        load.drive(echo, concurrency, WARM_UP)
        load.drive(server.address, concurrency, WARM_UP)
        rounds = [
            (load.drive(server.address, concurrency, REQUESTS), load.drive(echo, concurrency, REQUESTS))
            for _ in range(ROUNDS)
        ]
        sent += WARM_UP + ROUNDS * REQUESTS
        of_rounds = f"median of {ROUNDS} rounds of {REQUESTS} requests, {CONNECTIONS} connections"
        ratio = statistics.median(ours / bare for ours, bare in rounds)
        report.add(Figure(f"identity / echo, {concurrency} in flight", ratio, "ratio", of_rounds, at_least=BAR))
        for name, side in zip(("identity", "echo"), zip(*rounds, strict=True), strict=True):
            report.add(Figure(f"{name}, {concurrency} in flight", statistics.median(side), "1/s", of_rounds))
    for name, count in counts(server).items():
        report.add(Figure(f"{name} less requests sent", abs(count - sent), "requests", f"{sent} sent", at_most=0))


def counts(server: LocalServer) -> dict[str, int]:
    """Successful requests by ModelStatistics and by /metrics, and how many waited or went through the model."""
    with InferenceServerClient(server.address) as triton:
        statistic = triton.get_inference_statistics(MODEL).model_stats[0]
    page = urllib.request.urlopen(f"http://{server.metrics_address}/metrics").read().decode()
    found = {"ModelStatistics success": int(statistic.inference_stats.success.count)}
    found["ModelStatistics queue"] = int(statistic.inference_stats.queue.count)
    found["ModelStatistics inference_count"] = int(statistic.inference_count)
    for family in ("nv_inference_request_success", "nv_inference_count"):
        series = re.search(rf'^{family}{{model="{MODEL}",version="1"}} (\S+)', page, re.MULTILINE)
        if series is None:
            raise LookupError(f"/metrics has no {family} of {MODEL}")
        found[family] = int(float(series[1]))
    return found


def framed_request() -> bytes:
    """A ModelInferRequest of one row as gRPC puts it on the wire: not compressed, length, message."""
    tensor = InferInput("INPUT0", [1, 16], "INT32")
    tensor.set_data_from_numpy(np.arange(16, dtype=np.int32).reshape(1, 16))
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(tensor._get_content())
    message: bytes = request.SerializeToString()
    return bytes(1) + len(message).to_bytes(4, "big") + message


async def echo() -> None:
    """Serves until standard input ends."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    service, method = METHOD
    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(echo())
