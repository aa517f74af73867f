"""Puts an encoder into a model repository so that a reader finds the old one, the new one, or none."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lookwire_export import manifest
from lookwire_export.encoder import ExportedEncoder, Progress, export
from lookwire_export.manifest import Figure
from lookwire_export.reference import ExportError, Reference

Gate = Callable[[Reference, ExportedEncoder, Progress], Sequence[Figure]]
"""Measures an encoder that stands, without a parity record, in a folder of its own; raises ExportError if it fails."""
REPLACED = ".replaced"
"""In a staging folder: its move has begun, and here are the models that it replaces."""
LIBRARIES = ("lookwire", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "timm", "torch")
"""What writes a graph, beside the reference's own library."""
BYTES = {"fp32": 4.4, "fp16": 2.2, "int8": 8.8, "bf16": 4.4}
"""What an export takes on disk for each weight, its workings included: an int8 export keeps the float32 graphs until its end."""


def publish(
    reference: Reference,
    name: str,
    precision: str,
    repo: Path,
    gate: Gate,
    *,
    keep_fp32: Sequence[str] = (),
    replace: bool = False,
    progress: Progress = lambda _: None,
) -> list[Figure]:
    """Exports into a hidden folder of the repository, gates it there, and moves it into place; returns the gate's figures.

    A folder that a stopped export of the same thing has left is continued. The towers move first and the encoder last:
    its manifest names the towers' hashes, so that a server never serves it with others.

    If the gate refuses, or anything else fails before the encoder is in its place, the models in the repository are as
    they were, and the folder is removed; an interrupt (KeyboardInterrupt) leaves the models so too, and keeps the folder.
    A process that is killed in the midst of the moves leaves some done and some not: the next export of the name, or
    `recover`, undoes them. Raises ExportError, and what the gate raises.
    """
    _require_name(name)
    staging = repo / f".export-{name}-{key(reference, precision, keep_fp32)}"
    with _claimed(repo, name):
        require_free(repo, name, replace=replace)
        for folder in _stagings(repo, name):
            if folder != staging:
                _remove(folder)
        staging.mkdir(exist_ok=True)
        try:
            _require_space(reference, precision, staging)
            encoder = export(reference, name, precision, staging, keep_fp32=keep_fp32, progress=progress)
            figures = list(gate(reference, encoder, progress))
            encoder.with_parity(manifest.parity(reference, figures))
            require_free(repo, name, replace=replace)
            _move(encoder, repo, replace=replace)
        except BaseException as error:
            _take_back(ExportedEncoder(name, staging, {}), repo)
            if isinstance(error, Exception):
                _remove(staging)
            raise
        _finish(encoder, repo)
    return figures


def recover(repo: Path, name: str) -> None:
    """Moves back, or removes, what a killed export of the name has left half moved; otherwise does nothing.

    Raises ExportError if no model can have the name, if an export of it is at work, or if the repository cannot be written.
    """
    _require_name(name)
    if repo.is_dir():
        with _claimed(repo, name):
            pass


def require_free(repo: Path, name: str, *, replace: bool) -> None:
    """Raises ExportError if the repository has a model of the encoder's, or of a tower's, name and is to keep it."""
    found = next((model for model in ExportedEncoder(name, repo, {}).models if os.path.lexists(repo / model)), None)
    if found and not replace:
        raise ExportError(f"{repo / found} exists: give another --name, or --replace to put this export in its place")


def key(reference: Reference, precision: str, keep_fp32: Sequence[str]) -> str:
    """Returns a hash of all that decides an export: weights, rules, precision, libraries.

    What the configuration makes of the weights (its activation, its heads) shows in the vectors of a text and of an image.
    """
    image = torch.linspace(-2, 2, 3 * reference.image.size**2).reshape(1, 3, reference.image.size, -1)
    vectors = (reference.encode_image(image), reference.encode_text(reference.tokenize(["a red dress, size 38"])))
    decisive: dict[str, Any] = {
        "checkpoint": reference.sha256,
        "vectors": [hashlib.sha256(vector.numpy().tobytes()).hexdigest() for vector in vectors],
        "image": asdict(reference.image),
        "text": asdict(reference.text),
        "scores": [reference.logit_scale, reference.logit_bias],
        "precision": [precision, sorted(keep_fp32)],
        "libraries": [reference.library, *(version(library) for library in LIBRARIES)],
    }
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise ExportError(f"{name!r} is no name for a model: use small letters, digits, - and _")


@contextmanager
def _claimed(repo: Path, name: str) -> Iterator[None]:
    """Keeps the name for this process, once what a killed export of it has left half moved is moved back."""
    try:
        repo.mkdir(parents=True, exist_ok=True)
        with _locked(repo, name):
            for removed in _folders(repo, name, r"\.removed"):
                shutil.rmtree(removed)
            for staging in _stagings(repo, name):
                _take_back(ExportedEncoder(name, staging, {}), repo)
            yield
    except OSError as error:
        raise ExportError(
            f"{repo} cannot be written: {error.strerror or error}; it is as it was before the export"
        ) from error


@contextmanager
def _locked(repo: Path, name: str) -> Iterator[None]:
    file = repo / f".export-{name}.lock"
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it removes it at the end: a lock on what has no name any more keeps nobody out.
            held = os.path.samestat(os.fstat(lock.fileno()), file.stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise ExportError(f"another export of {name} is at work in {repo}: wait for its end, or stop it")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _stagings(repo: Path, name: str) -> list[Path]:
    """Returns the folders in which exports of the name are made."""
    return _folders(repo, name, "")


def _folders(repo: Path, name: str, ending: str) -> list[Path]:
    pattern = re.compile(rf"\.export-{name}-[0-9a-f]{{16}}{ending}")
    return [folder for folder in repo.iterdir() if pattern.fullmatch(folder.name)]


def _remove(staging: Path) -> None:
    """Removes a staging folder under another name, so that what a stopped removal leaves is not continued."""
    removed = staging.with_name(f"{staging.name}.removed")
    staging.rename(removed)
    shutil.rmtree(removed)


def _require_space(reference: Reference, precision: str, staging: Path) -> None:
    weights = sum(weight.numel() for weight in reference.model.state_dict().values())
    there = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    needed, free = weights * BYTES.get(precision, 0) - there, shutil.disk_usage(staging).free
    if needed > free:
        raise ExportError(
            f"{staging.parent} has {free / 1e6:.0f} MB of free space, and the export takes about {needed / 1e6:.0f} MB: make"
            " room, or give another --repo"
        )


def _move(encoder: ExportedEncoder, repo: Path, *, replace: bool) -> None:
    """Moves the models into place in their order, and what stood there into the folder REPLACED.

    That folder says that a move has begun; each model's place says how far it went. Without `replace` nothing is moved
    away, and a model that exists by now fails the move.
    """
    replaced = encoder.root / REPLACED
    replaced.mkdir(exist_ok=True)
    for model in encoder.models:
        if replace and os.path.lexists(repo / model):
            (repo / model).rename(replaced / model)
        (encoder.root / model).rename(repo / model)


def _take_back(encoder: ExportedEncoder, repo: Path) -> None:
    """Undoes a move that has begun and not ended, and finishes one that has ended.

    The move has ended with the encoder's own model in place. May be stopped at any time, and begun again.
    """
    replaced = encoder.root / REPLACED
    if not replaced.is_dir():
        return
    if not os.path.lexists(encoder.root / encoder.name):
        _finish(encoder, repo)
        return
    try:
        for model in reversed(encoder.models):
            staged, place, old = encoder.root / model, repo / model, replaced / model
            if not os.path.lexists(staged):
                place.rename(staged)
            if os.path.lexists(old):
                if os.path.lexists(place):
                    raise FileExistsError(errno.EEXIST, f"{place} exists")
                old.rename(place)
        replaced.rmdir()
    except OSError as error:
        raise ExportError(
            f"an export of {encoder.name} was stopped while it moved its models, and they cannot be moved back:"
            f" {error.strerror}; what stood in {repo} before is in {replaced}: move it back by hand, and then remove"
            f" {encoder.root}"
        ) from error


def _finish(encoder: ExportedEncoder, repo: Path) -> None:
    """Removes what is left when all models are in place: the hidden files that the export wrote for itself, and its folder."""
    try:
        for model in encoder.models:
            for leftover in list((repo / model).rglob(".*")):
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink(missing_ok=True)
        _remove(encoder.root)
    except OSError as error:
        raise ExportError(
            f"{repo / encoder.name} is exported and in its place, but what its export has left cannot be removed: {error};"
            f" remove {encoder.root}* by hand"
        ) from error
