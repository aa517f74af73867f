"""`lookwire-export`: an open_clip checkpoint becomes an encoder in a model repository."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lookwire_export import checkpoint
from lookwire_export.checkpoint import Checkpoint, ExportError
from lookwire_export.encoder import ExportedEncoder
from lookwire_export.gate import gate
from lookwire_export.graph import PRECISIONS
from lookwire_export.manifest import Figure
from lookwire_export.repository import publish

console = Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports, gates and publishes one encoder; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    name = options.name or options.model.lower()
    try:
        with console.status(f"loading {options.pretrained}"):
            reference = checkpoint.load(options.model, options.pretrained)
        with console.status("exporting the graphs"):
            encoder = ExportedEncoder.of(reference, name, options.precision)
        with console.status("comparing with open_clip"):
            figures = publish(reference, encoder, options.repo, gate)
    except ExportError as error:
        console.print(f"[red]not exported:[/red] {error}", highlight=False, soft_wrap=True)
        return 1
    console.print(_table(reference, figures))
    console.print(f"exported {options.repo / name}, {_megabytes(encoder):.1f} MB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lookwire-export", description=main.__doc__)
    parser.add_argument(
        "model", metavar="MODEL", help="open_clip's name of the architecture, such as ViT-B-32 (or ViT-B-32-quickgelu)"
    )
    parser.add_argument(
        "--pretrained", metavar="FILE", type=Path, required=True, help="safetensors or torch state dict"
    )
    parser.add_argument("--repo", metavar="DIR", type=Path, required=True, help="the model repository")
    parser.add_argument("--name", metavar="N", help="the encoder's name there (default: MODEL in small letters)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="how weights are stored; computation is fp32 (default: fp32)",
    )
    return parser


def _table(reference: Checkpoint, figures: Sequence[Figure]) -> Table:
    table = Table("figure", "value", "bound", title=f"agreement with {reference.architecture}")
    for figure in figures:
        table.add_row(figure.name, f"{figure.value:.9g}", figure.bound)
    return table


def _megabytes(encoder: ExportedEncoder) -> float:
    return (len(encoder.image_graph) + len(encoder.text_graph) + len(encoder.tokenizer)) / 1e6


if __name__ == "__main__":
    sys.exit(main())
