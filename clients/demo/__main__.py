"""Serves the bundled encoder, imports a sample catalogue and searches it: `python -m clients.demo`.

With DEMO_EXIT=1 in the environment it ends after the searches, else it serves until Ctrl-C.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from clients.demo.catalogue import FIELDS, draw_catalogue, read_items
from clients.demo.contact_sheet import write_page
from clients.demo.searches import searches, show
from lookwire import Client, LookwireError
from lookwire.local import LocalServer
from lookwire_export.garments import ALL

MODELS = Path("model_repo")
COLLECTION = "catalogue"
console = Console(highlight=False)


def main() -> None:
    """Runs the demo; exit status 1 with a sentence if something keeps it from running."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C, server included
    arguments = _arguments()
    try:
        demo(arguments.out, arguments.port)
    except KeyboardInterrupt:
        console.print("\nStopped.")
    except (OSError, RuntimeError, ModuleNotFoundError, LookwireError) as error:
        sys.exit(f"demo: {error}")


def demo(out: Path, port: int) -> None:
    """Draws, serves, imports, searches, shows; all files go below `out`."""
    catalogue, data = out / "catalogue", _empty_data(out)
    with Progress(console=console) as progress:
        products = progress.track(draw_catalogue(catalogue), len(ALL), description="Drawing the pictures")
        count = sum(1 for _ in products)
    console.print(f"{count} products in [b]{catalogue / 'catalogue.jsonl'}[/], their pictures beside it.\n")

    server = LocalServer(MODELS, data, grpc_port=_free_port(port), metrics_port=_free_port(port + 1))
    with server, Client(server.address) as client:
        encoder = client.get_encoder()
        console.print(f"Serving the encoder [b]{encoder.name}[/]: {encoder.dimension} dimensions, {encoder.precision}.")

        client.create_collection(COLLECTION, FIELDS)
        with Progress(console=console) as progress:
            task = progress.add_task("Embedding and storing", total=count)
            client.upsert(
                COLLECTION, read_items(catalogue), progress=lambda done: progress.update(task, completed=done)
            )
        console.print(f"{client.count_items(COLLECTION)} items are stored and can be found.\n")

        done = []
        for search in searches(client, COLLECTION, out):
            show(search, console)
            done.append(search)
        write_page(out / "results.html", done, catalogue)
        console.print(f"The same with pictures: [b]{out / 'results.html'}[/]\n")

        if os.environ.get("DEMO_EXIT") != "1":
            _stay(server)


def _stay(server: LocalServer) -> None:
    """Says how to use the server, and waits for its end."""
    console.print(
        f"gRPC listens on [b]{server.address}[/], metrics are at [b]http://{server.metrics_address}/metrics[/]."
    )
    console.print("From Python, in another terminal:\n")
    example = f"""\
    from lookwire import Client

    with Client("{server.address}") as client:
        for hit in client.search("{COLLECTION}", text="a green checked coat").hits:
            print(hit.score, hit.payload["title"])
"""
    console.print(example, style="cyan", markup=False)
    console.print("Ctrl-C stops the server.")
    status = server.process.wait()
    raise RuntimeError(f"the server stopped by itself with status {status}")


def _empty_data(out: Path) -> Path:
    """Returns the path for the collections, where a former run's are removed."""
    data = out / "data"
    if data.exists() and not (out / "catalogue").exists():
        raise FileExistsError(f"{data} is not the demo's, which would remove it: choose another folder with --out")
    shutil.rmtree(data, ignore_errors=True)
    return data


def _free_port(wanted: int) -> int:
    """Returns the port, or 0 (any) with a word about it if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            console.print(f"Port {wanted} is taken, so a free one takes its place.")
            return 0
    return wanted


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m clients.demo", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="folder for all files (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=8001, help="port of gRPC; metrics take the next (default: %(default)s)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
