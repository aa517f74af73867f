"""Runs the batcher tests of Triton's own quality assurance, unchanged, against this server.

    python -m tests.compatibility.batcher_tests SERVER_CHECKOUT [NAME ...]

SERVER_CHECKOUT is a checkout of github.com/triton-inference-server/server with qa/L0_batcher and qa/common. NAME picks
the cases whose name contains it. The models are made here, in the names, shapes and batching that qa/L0_batcher/test.sh
gives them; each case has a server of its own, as there, with TRITONSERVER_DELAY_SCHEDULER set where test.sh sets it.
Three run at once, on 127.0.0.2, .3 and .4: the tests have their ports fixed and take the address from a variable.

Two things differ from test.sh. test_max_queue_delay_only_non_default gets the delay of 20 ms that test.sh means to set
(its pattern matches nothing there, so that both tests run without a delay). Of test_multi_batch_preserve_ordering the
batches are checked, not the order of the answers: verify_timestamps.py reads that from a trace file.
"""

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lookwire.local import LocalServer
from tests.compatibility import graphs
from tests.compatibility.outcomes import Outcome, Verdict, report, run

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
ADDRESS = "TRITONSERVER_IPADDR"
DELAY_SCHEDULER = "TRITONSERVER_DELAY_SCHEDULER"

NO_DELAY = (
    "test_static_batch_preferred",
    "test_static_batch_lt_any_preferred",
    "test_static_batch_not_preferred",
    "test_static_batch_gt_max_preferred",
    "test_multi_batch_not_preferred",
    "test_multi_batch_gt_max_preferred",
    "test_multi_batch_sum_gt_max_preferred",
    "test_multi_same_output0",
    "test_multi_same_output1",
    "test_multi_different_outputs",
    "test_multi_different_output_order",
)
DELAY = {
    "test_multi_batch_delayed_sum_gt_max_preferred": 2,
    "test_multi_batch_use_biggest_preferred": 6,
    "test_multi_batch_use_best_preferred": 3,
    "test_multi_batch_delayed_use_max_batch": 3,
}
DIFFERENT_SHAPE = {
    "test_multi_batch_not_preferred_different_shape": 0,
    "test_multi_batch_preferred_different_shape": 0,
    "test_multi_batch_different_shape_allow_ragged": 0,
    "test_multi_batch_different_shape": 0,
    "test_multi_batch_delayed_preferred_different_shape": 4,
}
PREFERRED_ONLY = {
    "test_preferred_batch_only_aligned": 4,
    "test_preferred_batch_only_unaligned": 5,
    "test_preferred_batch_only_use_biggest_preferred": 7,
    "test_preferred_batch_only_use_no_preferred_size": 3,
}

ADD_SUB = """
name: "onnx_float32_float32_float32"
platform: "onnxruntime_onnx"
max_batch_size: 8
version_policy: {{ specific {{ versions: [1] }}}}
input [
  {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ {dims} ] }},
  {{ name: "INPUT1" data_type: TYPE_FP32 dims: [ {dims} ] }}
]
output [
  {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ {dims} ] label_filename: "output0_labels.txt" }},
  {{ name: "OUTPUT1" data_type: TYPE_FP32 dims: [ {dims} ] }}
]
dynamic_batching {{ {batching} }}
"""
ZERO = """
name: "{name}"
{backend}
max_batch_size: {rows}
input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] {input} }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }} ]
dynamic_batching {{ {batching} }}
{rest}
"""
DELAYED = "preferred_batch_size: [ 2, 6 ], max_queue_delay_microseconds: 10000000"


@dataclass(frozen=True, slots=True)
class Case:
    """One test of a suite, with the repository that it runs on; `hold` is the value of DELAY_SCHEDULER, 0 for none."""

    name: str
    repository: str
    hold: int = 0
    program: str = "batcher_test.py"

    @property
    def label(self) -> str:
        return f"{self.name or self.program} on {self.repository}"


def cases() -> Iterator[Case]:
    """In the order of test.sh."""
    for repository in ("fixed", "variable"):
        yield from (Case(name, repository) for name in NO_DELAY)
        yield from (Case(name, repository, hold) for name, hold in DELAY.items())
    yield from (Case(name, "variable", hold) for name, hold in DIFFERENT_SHAPE.items())
    yield from (Case(name, "preferred_only", hold) for name, hold in PREFERRED_ONLY.items())
    yield Case("test_max_queue_delay_only_default", "delay_0")
    yield Case("test_max_queue_delay_only_non_default", "delay_20")
    yield Case("test_multi_batch_preserve_ordering", "any_order", 12)
    yield Case("test_multi_batch_preserve_ordering", "same_order", 12)
    yield Case("", "queue_timeout", program="queue_timeout_test.py")


def make_repositories(root: Path) -> None:
    """All repositories of test.sh, under the names that `cases` gives them."""
    add_sub(root / "fixed", "16", DELAYED)
    add_sub(root / "variable", "-1", DELAYED)
    add_sub(root / "preferred_only", "16", "preferred_batch_size: [ 4, 6 ]")
    ragged = functools.partial(zero, root / "variable", rows=8, input="allow_ragged_batch: true", batching=DELAYED)
    ragged()
    scatter = (
        """batch_output [ { target_name: "OUTPUT0" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "INPUT0" } ]"""
    )
    ragged("onnx_zero_1_float32", backend='platform: "onnxruntime_onnx"', rest=scatter)
    graphs.identity(root / "variable/onnx_zero_1_float32/1/model.onnx", ["elements"])
    for delay in (0, 20):
        batching = f"max_queue_delay_microseconds: {delay * 1000}"
        zero(root / f"delay_{delay}", rows=100, batching=batching, rest=parameters(execute_delay_ms=100))
    for repository, ordering in (("any_order", "false"), ("same_order", "true")):
        two = "instance_group [ { kind: KIND_AUTO count: 2 } ]\n"
        slow = parameters(execute_delay_ms=100, instance_wise_delay_multiplier=4)
        batching = f"preferred_batch_size: [ 4 ] preserve_ordering: {ordering}"
        zero(root / repository, rows=4, batching=batching, rest=two + slow)
    policy = "default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 1000000 max_queue_size: 8 }"
    one = "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
    slow = parameters(execute_delay_ms=8000)
    batching = f"preferred_batch_size: [ 1 ] {policy}"
    zero(root / "queue_timeout", "dynamic_batch", rows=1, batching=batching, rest=one + slow)


def add_sub(repository: Path, dims: str, batching: str) -> None:
    """The model that most of the tests ask: the sum and the difference of two inputs."""
    model = repository / "onnx_float32_float32_float32"
    graphs.add_sub(model / "1/model.onnx", ["batch"], ["elements" if dims == "-1" else int(dims)])
    (model / "config.pbtxt").write_text(ADD_SUB.format(dims=dims, batching=batching))
    (model / "output0_labels.txt").write_text("".join(f"label{index}\n" for index in range(16)))


def zero(
    repository: Path,
    name: str = "custom_zero_1_float32",
    *,
    rows: int,
    batching: str,
    backend: str = 'backend: "identity"',
    input: str = "",
    rest: str = "",
) -> None:
    """An identity model."""
    (repository / name / "1").mkdir(parents=True)
    config = ZERO.format(name=name, backend=backend, rows=rows, input=input, batching=batching, rest=rest)
    (repository / name / "config.pbtxt").write_text(config)


def parameters(**values: int) -> str:
    return "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n' for key, value in values.items()
    )


def run_case(case: Case, qa: Path, repositories: Path, logs: Path) -> Outcome:
    """Runs one test against a server of its own, in a worker process, whose environment both inherit."""
    os.environ.pop(DELAY_SCHEDULER, None)
    if case.hold:
        os.environ[DELAY_SCHEDULER] = str(case.hold)
    address = os.environ[ADDRESS]
    server = LocalServer(
        repositories / case.repository, grpc_address=address, grpc_port=8001, http_address=address, http_port=0
    )
    try:
        with server:
            return run(
                case.label,
                [qa / case.program, *([f"BatcherTest.{case.name}"] if case.name else [])],
                folder=logs,
                timeout=120,
                word="OK",
                environment={
                    "BACKENDS": "onnx",
                    "BATCHER_TYPE": "VARIABLE" if case.repository == "variable" else "FIXED",
                    "PYTHONPATH": str(qa.parent / "common"),
                    "USE_HTTP": "0",
                },
                log=logs / f"{case.label.replace(' ', '_')}.log",
            )
    except RuntimeError as error:
        return Outcome(case.label, Verdict.FAIL, note=str(error).strip().splitlines()[-1])


def take_address(addresses: "multiprocessing.SimpleQueue[str]") -> None:
    """Gives a worker process its address, which the tests read from the environment."""
    os.environ[ADDRESS] = addresses.get()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=Path, metavar="SERVER_CHECKOUT")
    parser.add_argument("names", nargs="*", metavar="NAME", help="cases whose name contains it; all unless given")
    arguments = parser.parse_args()
    chosen = [case for case in cases() if not arguments.names or any(name in case.label for name in arguments.names)]
    qa = (arguments.server / "qa/L0_batcher").resolve()
    logs = Path("build/compatibility/batcher").resolve()
    logs.mkdir(parents=True, exist_ok=True)
    processes = multiprocessing.get_context("spawn")
    addresses = processes.SimpleQueue()
    for address in ADDRESSES:
        addresses.put(address)
    with tempfile.TemporaryDirectory(prefix="lookwire-batcher-") as directory:
        make_repositories(Path(directory))
        job = functools.partial(run_case, qa=qa, repositories=Path(directory), logs=logs)
        with ProcessPoolExecutor(len(ADDRESSES), processes, take_address, (addresses,)) as pool:
            outcomes = list(pool.map(job, chosen))
    return report("Triton's batcher tests", outcomes)


if __name__ == "__main__":
    sys.exit(main())
