"""Settings: how flags and variables are read, and what is worked out from them."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lookwire.local import LocalServer
from lookwire_server.command_line import WrongCommandLine, parse
from lookwire_server.settings import Restriction, Settings, available_cores
from tests.conftest import MODEL_REPOSITORY

CORES = len(os.sched_getaffinity(0))


def settings(*flags: str) -> Settings:
    return parse(flags).settings


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("max 100000", CORES), ("50000 100000", 1), ("100001 100000", min(2, CORES)), ("99900000 100000", CORES)],
)
def test_cores_respect_a_containers_quota(tmp_path: Path, cpu_max: str, expected: int) -> None:
    """A container that may use one core of many gets threads for one."""
    path = tmp_path / "cpu.max"
    path.write_text(f"{cpu_max}\n")

    assert available_cores(path) == expected


def test_cores_without_control_groups(tmp_path: Path) -> None:
    """Where there is no quota file, every core of the affinity counts."""
    assert available_cores(tmp_path / "missing") == CORES


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--allow-client-shm"], True),
        (["--allow-client-shm", "true"], True),
        (["--allow-client-shm=1"], True),
        (["--allow-client-shm=false"], False),
        (["--allow-client-shm", "0"], False),
        ([], False),
    ],
)
def test_flags_that_are_true_or_false(flags: list[str], expected: bool) -> None:
    """A flag that is true or false takes a value in either form, and means true without one."""
    read = settings(*flags, "--grpc-port", "4711")

    assert (read.allow_client_shm, read.grpc_port) == (expected, 4711)


def test_flags_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated flags add up, semicolons separate values in a variable, and flags win."""
    monkeypatch.setenv("LOOKWIRE_MODEL_REPOSITORY", "a;b")
    monkeypatch.setenv("LOOKWIRE_GRPC_PORT", "1")
    monkeypatch.setenv("LOOKWIRE_ALLOW_HTTP", "false")

    assert settings("--grpc-port=2").model_repository == (Path("a"), Path("b"))
    assert settings("--grpc-port=2").grpc_port == 2
    assert settings().allow_http is False
    assert settings("--model-repository", "c", "--model-store=d").model_repository == (Path("c"), Path("d"))


def test_triton_command_line() -> None:
    """A command line of Triton's starts this server; what has no effect is listed, each flag once."""
    line = parse(
        shlex.split(
            """
        --model-repository /models --model-control-mode=explicit --load-model * --id triton --strict-readiness=false
        --exit-on-error false --exit-timeout-secs 5 --log-format=ISO8601 --rate-limit off --metrics-config a=1
        --metrics-config b=2 --allow-gpu-metrics --cache-config local,size=1048576 --backend-config=python,shm=1
        --backend-config onnxruntime,default-max-batch-size=16 --grpc-restricted-protocol health,trace:Key=v=1
        """
        )
    )

    assert line.without_effect == (
        "--rate-limit",
        "--metrics-config",
        "--allow-gpu-metrics",
        "--backend-config python,shm=1",
    )
    read = line.settings
    assert (read.model_control_mode, read.load_model, read.id) == ("explicit", ("*",), "triton")
    assert (read.strict_readiness, read.exit_on_error, read.exit_timeout_secs) == (False, False, 5.0)
    assert (read.log_format, read.cache_bytes, read.default_max_batch_size) == ("console", 1 << 20, 16)
    assert read.grpc_restricted_protocol == (Restriction(frozenset({"health", "trace"}), "key", "v=1"),)


def test_all_mistakes_are_told_at_once() -> None:
    """Unknown flags suggest the nearest, wrong values name flag and variable, and all are in one list."""
    with pytest.raises(WrongCommandLine) as failure:
        parse(
            shlex.split(
                """
            --gprc-port 1 stray --grpc-port 99999 --cache-config redis,host=x --zzz=1
            --grpc-restricted-protocol nothing:a=b --allow-http maybe --load-model x
            """
            )
        )

    problems = {problem.split()[0]: problem for problem in failure.value.problems}
    assert problems.keys() == {
        *("--gprc-port", "'stray'", "--grpc-port", "--cache-config", "--zzz"),
        *("--grpc-restricted-protocol", "--allow-http"),
    }
    assert problems["--gprc-port"] == "--gprc-port is unknown; did you mean --grpc-port?"
    assert "LOOKWIRE_GRPC_PORT" in problems["--grpc-port"]
    assert "'nothing' is no group" in problems["--grpc-restricted-protocol"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--load-model", "x"], "--load-model needs --model-control-mode explicit"),
        (["--allow-grpc=0", "--allow-http=0"], "nothing would be served"),
        (["--grpc-use-ssl"], "--grpc-server-cert"),
        (["--grpc-use-ssl-mutual", "--grpc-server-cert=c", "--grpc-server-key=k"], "--grpc-root-cert"),
        (["--grpc-restricted-protocol=trace:a=1", "--grpc-restricted-protocol=health,trace:b=1"], "'trace' twice"),
    ],
)
def test_settings_that_contradict_each_other(flags: list[str], words: str) -> None:
    """Settings that make no sense together are refused with a sentence that names them."""
    with pytest.raises(WrongCommandLine, match=words):
        parse(flags)


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names every flag, and the status is 0."""
    with pytest.raises(SystemExit) as end:
        parse(["--help"])
    text = capsys.readouterr().out

    assert end.value.code == 0
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert field.description


def test_check_without_a_repository_is_misuse() -> None:
    """`check` alone says how it is used, with status 2."""
    ended = subprocess.run([sys.executable, "-m", "lookwire_server", "check"], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "check REPOSITORY" in ended.stderr


def test_flags_without_effect_are_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A flag without effect is a line of the log; --log-info false silences what is no warning; no metrics, no port."""
    with LocalServer(
        MODEL_REPOSITORY, tmp_path, show_log=True, rate_limit="off", log_info=False, allow_metrics=False
    ) as server:
        addresses = server.address, server.metrics_address
    log = capfd.readouterr().err.splitlines()

    assert addresses[0]
    assert addresses[1] == ""
    assert len(log) == 1
    assert "--rate-limit has no effect here" in log[0]
