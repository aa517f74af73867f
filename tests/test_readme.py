"""What the README shows works."""

import re

import pytest

from lookwire import Client
from lookwire.local import LocalServer
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(server: LocalServer, client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python example runs, in order, against a server."""
    for example in EXAMPLES:
        exec(compile(example.replace("localhost:8001", server.address), "README.md", "exec"), {"__name__": "readme"})
    client.delete_collection("shop")

    assert len(EXAMPLES) >= 4
    assert capsys.readouterr().out.startswith("d-17 ")


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
