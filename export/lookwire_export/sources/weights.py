"""Reads files of weights, of either library, and puts them into a model without guessing.

Nothing in a file is ever executed: torch files are read with `weights_only`, and TorchScript archives are not read.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lookwire_export.reference import ExportError

WRAPPERS = ("model_state_dict", "state_dict")
"""Where training programs put the weights, beside the optimiser's state."""
PREFIX = "module."
"""What torch's DataParallel and DistributedDataParallel put before every name."""
OPENAI = ("input_resolution", "context_length", "vocab_size")
"""What the weights of OpenAI's archives have beside them, and no others do."""


def read(file: Path) -> dict[str, Any]:
    """Returns the weights of a safetensors or torch file by name, floating point as float32.

    The weights may be bare, or under one of WRAPPERS, and their names may begin with PREFIX; what lies beside them is left
    out. Raises ExportError for what is no file of weights, is damaged, or could only be read by executing it.
    """
    if not file.is_file():
        raise ExportError(f"there is no checkpoint at {file}: give a safetensors file or a torch state dict")
    weights = _unwrapped(_content(file), file)
    while all(name.startswith(PREFIX) for name in weights):
        weights = {name.removeprefix(PREFIX): weight for name, weight in weights.items()}
    return {name: weight.float() if weight.is_floating_point() else weight for name, weight in weights.items()}


def shards(index: Path) -> list[Path]:
    """Returns the files that a `*.index.json` names, in the order of their names."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{index} is no index of shards: it must map names to files under weight_map") from error


def digest(files: Sequence[Path]) -> str:
    """Returns the SHA-256 of the files one after the other, in hexadecimal."""
    sha256 = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                sha256.update(block)
    return sha256.hexdigest()


def require_fit(expected: Mapping[str, Any], given: Mapping[str, Any], file: Path, architecture: str) -> None:
    """Raises ExportError unless the names and shapes are the same; says which differ first, and how many."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    others = [name for name in expected if name in given and expected[name].shape != given[name].shape]
    faults = []
    if missing:
        faults.append(f"{len(missing)} of {len(expected)} weights are missing, the first is {missing[0]}")
    if unexpected:
        faults.append(f"{len(unexpected)} are unexpected, the first is {unexpected[0]}")
    if others:
        shapes = f"{list(given[others[0]].shape)} where {architecture} has {list(expected[others[0]].shape)}"
        faults.append(f"{len(others)} have another shape, the first is {others[0]}, {shapes}")
    if faults:
        raise ExportError(f"{file} holds no weights for {architecture}: {'; '.join(faults)}{_hint(expected, given)}")


def _hint(expected: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Says what to give instead, if the names are those of the other library."""
    if _is_transformers(given) and not _is_transformers(expected):
        return (
            ". These are names of transformers: give the directory with its config.json, preprocessor_config.json and"
            " tokenizer as MODEL, and this file by --pretrained"
        )
    if _is_transformers(expected) and any(name.startswith("visual.") for name in given):
        return ". These are names of open_clip: give open_clip's name of the architecture as MODEL"
    return ""


def _is_transformers(names: Mapping[str, Any]) -> bool:
    return any(name.startswith(("text_model.", "vision_model.")) for name in names)


def _content(file: Path) -> Any:
    with file.open("rb") as opened:
        head = opened.read(64)
    if not head:
        raise ExportError(f"{file} is empty (0 bytes), so it is damaged or was never written: fetch or save it again")
    if head.startswith(b"version https://git-lfs"):
        raise ExportError(f"{file} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    if head[8:9] == b"{":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ExportError(f"{file} is a damaged or truncated safetensors file: {error}") from error
    if _is_torchscript(file):
        raise ExportError(
            f"{file} is a TorchScript archive, which holds code: it was not executed, so its weights were not read. For OpenAI's"
            " own models use the tag (--pretrained openai). Of an archive that you trust save the weights alone:"
            " torch.save(torch.jit.load(file).state_dict(), other), and give that file"
        )
    return _pickled(file)


def _pickled(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # an error follows if it cannot be read
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(_not_weights(file, str(error))) from error
    except (RuntimeError, OSError, EOFError, KeyError, ValueError, IndexError, AttributeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(
            f"{file} is damaged, truncated, or neither a safetensors nor a torch file: {reason}"
        ) from error


def _not_weights(file: Path, reason: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"class ([\w.]+)", reason)
    if not found:
        return f"{file} is damaged, or no file of weights; it was not executed"
    name = found.group(1)
    if name.startswith(("open_clip.", "transformers.", "torch.nn.", "timm.", "clip.")):
        return (
            f"{file} is a whole pickled model ({name}), which only executing it could read; it was not executed."
            " Save its weights instead: torch.save(model.state_dict(), file)"
        )
    return (
        f"{file} is a pickle that holds more than weights ({name}); it was not executed."
        " Save the weights alone: torch.save(model.state_dict(), file)"
    )


def _is_torchscript(file: Path) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False  # torch says what is wrong with it


def _unwrapped(content: Any, file: Path) -> dict[str, Any]:
    """Returns the tensors that the content holds, itself or under one of WRAPPERS."""
    while isinstance(content, Mapping) and (wrapper := next((name for name in WRAPPERS if name in content), None)):
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ExportError(f"{file} holds a {type(content).__name__}, not weights by name: save model.state_dict()")
    weights = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not weights:
        keys = ", ".join(repr(key) for key in list(content)[:8]) or "nothing"
        raise ExportError(
            f"{file} holds no weights: found {keys}; expected a state dict, bare or under {' or '.join(WRAPPERS)}"
        )
    return weights
