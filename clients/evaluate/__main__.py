"""Measures how well the bundled encoder finds garments, through a server: `python -m clients.evaluate`.

Drawings from seeds that training never used are searched by caption, and by another drawing of the same garment, among
one drawing of each of the 480 garments. The exit status is 1 if a figure does not reach its bar.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clients.evaluate.figures import measure
from lookwire import Client, LookwireError
from lookwire.local import LocalServer

MODELS = Path("model_repo")


def main() -> None:
    """Prints the figures; exit status 1 if one does not hold, or with a sentence if they cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m clients.evaluate", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=3, help="number of galleries to take the mean of (default: %(default)s)"
    )
    seeds = parser.parse_args().seeds
    if seeds < 1:
        parser.error("--seeds is at least 1")

    console = Console(highlight=False)
    try:
        with LocalServer(MODELS) as server, Client(server.address) as client, Progress(console=console) as progress:
            encoder = client.get_encoder()
            task = progress.add_task("Embedding drawings", total=seeds + 1)
            figures = measure(client, seeds, lambda: progress.advance(task))
    except (OSError, RuntimeError, ModuleNotFoundError, LookwireError) as error:
        sys.exit(f"evaluate: {error}")

    table = Table(title=f"{encoder.name}, {encoder.precision}: mean of {seeds} galleries", title_justify="left")
    table.add_column("figure")
    for heading in ("value", "bar", "holds"):
        table.add_column(heading, justify="right")
    for figure in figures:
        bar, holds = ("", "") if figure.bar is None else (f"{figure.bar:.2f}", "yes" if figure.holds else "[red]no[/]")
        table.add_row(figure.name, f"{figure.value:.3f}", bar, holds)
    console.print(table)
    sys.exit(0 if all(figure.holds for figure in figures) else 1)


if __name__ == "__main__":
    main()
