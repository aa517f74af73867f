"""Who may import whom: the house stands as it was drawn."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SERVER = "server/lookwire_server"
PROTOBUF = ("google.protobuf", "google.rpc", "grpc", "lookwire.v1", "tritonclient")
# Folder or file -> the modules that nothing below it may import.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "clients/python/lookwire": ("lookwire_server", "lookwire_export", "onnxruntime", "faiss", "tritonclient", "torch"),
    "clients/demo": ("lookwire_server", "torch", "onnxruntime", "faiss"),
    "clients/evaluate": ("lookwire_server", "torch", "onnxruntime", "faiss"),
    "benchmarks": ("lookwire_server",),
    "export/lookwire_export": ("lookwire_server",),
    SERVER: ("torch", "open_clip", "lookwire_export"),
    f"{SERVER}/errors.py": ("lookwire_server", *PROTOBUF),
    f"{SERVER}/histogram.py": ("lookwire_server", *PROTOBUF),
    f"{SERVER}/metrics.py": (
        *(f"lookwire_server.{room}" for room in ("app", "encoding", "models", "rpc", "search", "settings")),
        *PROTOBUF,
    ),
    f"{SERVER}/models": (
        *(f"lookwire_server.{room}" for room in ("app", "encoding", "rpc", "search", "settings")),
        "grpc",
        "lookwire",
    ),
    f"{SERVER}/encoding": (*(f"lookwire_server.{room}" for room in ("app", "rpc", "search", "settings")), *PROTOBUF),
    f"{SERVER}/search": (
        *(f"lookwire_server.{room}" for room in ("app", "encoding", "models", "rpc", "settings")),
        *PROTOBUF,
    ),
    f"{SERVER}/rpc": ("lookwire_server.app",),
}
# The bare dispatcher, which searches through a server are compared with, is the server's own.
BARE_DISPATCHER = ROOT / "benchmarks/bare/vectors.py"
# Only these files of the models' room read protobuf: config.pbtxt is one.
CONFIG = {ROOT / SERVER / "models/config.py", ROOT / SERVER / "models/config_file.py"}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("place", FORBIDDEN)
def test_nothing_forbidden_is_imported(place: str) -> None:
    """A room imports only what the house's plan allows."""
    path = ROOT / place
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))

    found = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        if file != BARE_DISPATCHER
        for name in imported(file)
        for package in FORBIDDEN[place]
        if below(name, package)
    }

    assert files
    assert found == set()


def test_only_config_of_the_models_reads_protobuf() -> None:
    """In the models' room, protobuf stays with the configuration."""
    files = {
        file
        for file in (ROOT / SERVER / "models").rglob("*.py")
        for name in imported(file)
        if any(below(name, package) for package in ("google.protobuf", "tritonclient"))
    }

    assert files == CONFIG


def test_nothing_imports_app_but_main() -> None:
    """app puts everything together; only the entry point imports it."""
    files = {
        file.name
        for file in (ROOT / SERVER).rglob("*.py")
        if any(below(name, "lookwire_server.app") for name in imported(file))
    }

    assert files == {"__main__.py"}


def test_only_packages_stand_in_the_source_folders() -> None:
    """server/, export/ and clients/python/ hold their package and nothing else."""
    for folder, package in (
        ("server", "lookwire_server"),
        ("export", "lookwire_export"),
        ("clients/python", "lookwire"),
    ):
        assert {path.name for path in (ROOT / folder).iterdir() if path.name != "__pycache__"} == {package}


def test_export_without_its_extra_says_what_to_install() -> None:
    """The export's command is there in every installation; where torch is not, it names the extra and shows no traceback."""
    asked = subprocess.run(
        [sys.executable, "-m", "lookwire_export", "--help"], capture_output=True, text=True, check=False
    )

    assert asked.returncode == 1
    assert (
        asked.stderr
        == "lookwire-export: No module named 'torch'; install what it needs: pip install 'lookwire[export]'\n"
    )
