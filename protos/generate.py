"""Makes the Python stubs of lookwire.v1 from the protos, or checks that those in the tree are fresh (`--check`).

Run from the repository's root: python protos/generate.py [--check]
"""

import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).parent
STUBS = PROTOS.parent / "clients/python"


def generate(out: Path) -> None:
    """Writes the modules and type stubs of lookwire/v1 below `out`."""
    protos = sorted(PROTOS.glob("lookwire/v1/*.proto"))
    services = [proto for proto in protos if "\nservice " in proto.read_text()]
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    includes = [f"-I{path}" for path in (PROTOS, PROTOS / "third_party", well_known)]
    plugins = Path(sys.executable).parent
    messages = [f"--python_out={out}", f"--mypy_out=quiet:{out}", f"--plugin={plugins / 'protoc-gen-mypy'}"]
    stubs = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}", f"--plugin={plugins / 'protoc-gen-mypy_grpc'}"]
    for files, outputs in ((protos, messages), (services, stubs)):
        if protoc.main(["protoc", *includes, *outputs, *(str(file.relative_to(PROTOS)) for file in files)]) != 0:
            sys.exit("protoc failed, see above")
    (out / "lookwire/v1/__init__.py").write_text('"""Generated from protos/lookwire/v1 by `make proto`."""\n')


def stale() -> list[str]:
    """Names of stubs that differ from what the protos give, are missing, or have no proto."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        generate(out)
        fresh = {path.relative_to(out) for path in out.rglob("*.py*")}
        present = {path.relative_to(STUBS) for path in STUBS.glob("lookwire/v1/*.py*")}
        differ = {name for name in fresh & present if not filecmp.cmp(out / name, STUBS / name, shallow=False)}
        return sorted(str(name) for name in differ | (fresh ^ present))


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        if names := stale():
            sys.exit(f"stubs are not fresh, run `make proto`: {', '.join(names)}")
    else:
        for old in STUBS.glob("lookwire/v1/*.py*"):
            old.unlink()
        generate(STUBS)
