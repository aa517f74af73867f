"""`lookwire-export`: a CLIP or SigLIP checkpoint becomes an encoder in a model repository."""

import argparse
import logging
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lookwire_export import repository, sources
    from lookwire_export.encoder import ExportedEncoder, Progress
    from lookwire_export.gate import Report, measure
    from lookwire_export.manifest import Figure
    from lookwire_export.precision import PRECISIONS
    from lookwire_export.reference import ExportError, Reference
except ModuleNotFoundError as error:
    # The command is installed with the client and the server too, which have none of what it needs.
    raise SystemExit(f"lookwire-export: {error}; install what it needs: pip install 'lookwire[export]'") from None

console = Console(stderr=True)


class Stages:
    """Shows what is being done, and how long each thing took."""

    def __init__(self) -> None:
        self._status = console.status("")
        self._stage = ""
        self._began = 0.0

    def __enter__(self) -> "Stages":
        self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        self._status.stop()

    def __call__(self, progress: str) -> None:
        """Shows the progress; what is before a colon is the stage, and a new stage ends the one before."""
        stage = progress.partition(": ")[0]
        if stage != self._stage:
            self._end()
            self._stage, self._began = stage, time.perf_counter()
        self._status.update(escape(progress))

    def _end(self) -> None:
        if self._stage:
            console.print(f"{time.perf_counter() - self._began:7.1f} s  {escape(self._stage)}", highlight=False)
        self._stage = ""


class Gate:
    """The gate, which remembers what it found."""

    def __init__(self) -> None:
        self.report: Report | None = None

    def __call__(self, reference: Reference, encoder: ExportedEncoder, progress: Progress) -> Sequence[Figure]:
        self.report = measure(reference, encoder, progress)
        return self.report.require()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports, gates and publishes one encoder; returns the process's exit status."""
    options = _parser().parse_args(arguments)
    name = options.name or _name(options.model)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # it warns of each constant that it leaves as it is
    gate = Gate()
    try:
        with _sigterm_interrupts(), Stages() as stages:
            repository.recover(options.repo, name)
            repository.require_free(options.repo, name, replace=options.replace)
            stages(f"load {options.model}")
            reference = sources.load(
                options.model, options.pretrained, preprocess=options.preprocess, tokenizer=options.tokenizer
            )
            reference = replace(reference, image=replace(reference.image, decode=options.decode))
            repository.publish(
                reference,
                name,
                options.precision,
                options.repo,
                gate,
                keep_fp32=options.keep_fp32,
                replace=options.replace,
                progress=stages,
            )
    except ExportError as error:
        _show(gate.report, options.report)
        console.print(f"[red]not exported:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return 130
    except Exception as error:  # noqa: BLE001 - told in a sentence, and written down whole
        _show(gate.report, options.report)
        console.print(f"[red]not exported:[/red] {escape(_unexpected(error))}", highlight=False, soft_wrap=True)
        return 1
    _show(gate.report, options.report)
    folders = [options.repo / model for model in (f"{name}-image", f"{name}-text", name)]
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    _say(f"exported {folders[-1]}, {size / 1e6:.1f} MB")
    _say(f"serve it: lookwire-server --model-repository {options.repo}")
    return 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Makes SIGTERM what Ctrl-C is, so that the gate's server, a process of its own, ends with this one."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _unexpected(error: Exception) -> str:
    """Writes the traceback of an error that was not foreseen into a file; returns a sentence about both."""
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    with tempfile.NamedTemporaryFile(
        "w", prefix="lookwire-export-", suffix=".log", encoding="utf-8", delete=False
    ) as log:
        traceback.print_exception(error, file=log)
    return f"an error that was not foreseen, {reason}; the whole of it is in {log.name}, for a report of the fault"


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _name(model: str) -> str:
    """Returns the last part of MODEL, as a name in a repository can be."""
    return re.sub(r"[^a-z0-9_-]+", "-", Path(model.rpartition(":")[2]).resolve().name.lower()).strip("-_")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lookwire-export", description=main.__doc__)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="an open_clip name (ViT-B-32-quickgelu), hf-hub:ORG/NAME, local-dir:PATH with an open_clip_config.json, or a"
        " directory of transformers (CLIPModel, SiglipModel)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="TAG|FILE",
        help="an open_clip tag, or weights: safetensors or a torch state dict; with hf-hub:, local-dir: and directories a"
        " FILE takes the place of their weights",
    )
    parser.add_argument("--repo", metavar="DIR", type=Path, required=True, help="the model repository")
    parser.add_argument("--name", metavar="N", help="the encoder's name there (default: from MODEL, in small letters)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="how the weights are stored, and in bf16 (by OpenVINO) and int8 computed with (default: fp32)",
    )
    parser.add_argument(
        "--decode",
        choices=("exact", "fast"),
        default="exact",
        help="how the server decodes JPEGs: as the checkpoint's own transform does, or, where that leaves twice the pixels that"
        " they are resized to, at a half, a quarter or an eighth of their edges (default: exact)",
    )
    parser.add_argument(
        "--preprocess",
        metavar="TAG|FILE",
        help="the image transform that the checkpoint was trained with, where that is not known: an open_clip tag, an"
        " open_clip preprocess_cfg or a preprocessor_config.json",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", type=Path, help="the files of a tokenizer of transformers, if they are elsewhere"
    )
    parser.add_argument(
        "--keep-fp32", metavar="LAYER", nargs="+", default=(), help="layers that an int8 export leaves in fp32"
    )
    parser.add_argument("--replace", action="store_true", help="replace an encoder of this name in the repository")
    parser.add_argument("--report", action="store_true", help="print also how each kind of probe agrees")
    return parser


def _show(report: Report | None, kinds: bool) -> None:
    """Prints the figures, and if wanted the smallest cosine of each kind of probe."""
    if report is None:
        return
    figures = Table("figure", "value", "bound")
    for figure in report.figures:
        figures.add_row(figure.name, _value(figure.value), figure.bound)
    console.print(figures)
    if not kinds:
        return
    probes = Table("", "kind of probe", "smallest cosine")
    for what, cosines in (("image", report.images), ("text", report.texts)):
        for kind, cosine in cosines.items():
            probes.add_row(what, kind, _value(cosine))
    console.print(probes)


def _value(value: float) -> str:
    """Returns a figure so that how far it is from 1 can be read."""
    return f"1 - {1 - value:.1e}" if 0.999 < value < 1 else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
