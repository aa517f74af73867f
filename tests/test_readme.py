"""What the README shows works."""

import re
from pathlib import Path

import pytest

from lookwire.local import LocalServer
from tests.conftest import MODEL_REPOSITORY, ROOT

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SAID = re.findall(r"^ *print\(.*\)  # (.*)", "".join(EXAMPLES), re.MULTILINE)


def test_python_examples_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python example runs, in order, against a new server, and prints what the comments beside its prints say."""
    with LocalServer(MODEL_REPOSITORY, tmp_path) as server:
        for example in EXAMPLES:
            exec(
                compile(example.replace("localhost:8001", server.address), "README.md", "exec"), {"__name__": "readme"}
            )
    lines = capsys.readouterr().out.splitlines()

    assert len(EXAMPLES) >= 7
    assert lines[0].startswith("d-17 ")
    for said in SAID:
        assert any(line.startswith(said) for line in lines), said


def test_make_targets_and_flags_exist() -> None:
    """Every `make` target and every flag of the server that the README names exists."""
    makefile = (ROOT / "Makefile").read_text()
    flags = {field.replace("_", "-") for field in re.findall(r"^    (\w+): ", settings(), re.MULTILINE)}

    for target in set(re.findall(r"`?make ([a-z-]+)(?![\w/])", README)) - {"their"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for line in re.findall(r"lookwire-server (--.*)", README):
        for flag in re.findall(r"--([a-z-]+)", line):
            assert flag in flags | {"help"}, flag


def settings() -> str:
    return (ROOT / "server/lookwire_server/settings.py").read_text()
