"""The export gate: what is not the reference is not published.

First the graphs against PyTorch on the same tensors, then the whole encoder against open_clip from bytes and strings,
through the front door: a real server that serves the freshly written repository, asked by the real client.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image

from lookwire import Client
from lookwire.local import LocalServer
from lookwire_export import probes
from lookwire_export.checkpoint import Checkpoint, ExportError
from lookwire_export.encoder import LENGTHS, ExportedEncoder
from lookwire_export.manifest import Figure

GRAPH_COSINE = 0.99999
ROUNDED_COSINE = 0.999
"""The graph's bound if storing the weights in half precision changed them."""
END_TO_END_COSINE = 0.9999
BATCH_DIFFERENCE = 1e-5

Array = NDArray[Any]


class GateError(ExportError):
    """The encoder does not agree with its reference."""


def gate(checkpoint: Checkpoint, encoder: ExportedEncoder, repository: Path) -> list[Figure]:
    """Returns the figures of an encoder that passes; raises GateError, which names those that fail, otherwise."""
    images, texts = probes.images(), probes.texts()
    figures = _held(graph_figures(checkpoint, encoder, images, texts))
    return figures + _held(end_to_end_figures(checkpoint, encoder.name, repository, images, texts))


def graph_figures(
    checkpoint: Checkpoint, encoder: ExportedEncoder, images: Sequence[bytes], texts: Sequence[str]
) -> list[Figure]:
    """Compares the graphs with PyTorch on the same tensors, and each row alone with itself in batches and paddings."""
    image_graph, text_graph = _session(encoder.image_graph), _session(encoder.text_graph)
    pixels = _raw_pixels(checkpoint, images)
    ids = checkpoint.tokenizer(list(texts))
    image_rows = _run(image_graph, "pixels", pixels)
    text_rows = _run(text_graph, "input_ids", ids.int().numpy())
    alone = np.concatenate([_run(image_graph, "pixels", row[None]) for row in pixels])
    short = [row[None, : int(row.argmax()) + 1].int().numpy() for row in ids]
    text_alone = np.concatenate([_run(text_graph, "input_ids", row) for row in short])
    differences = [np.abs(image_rows - alone).max(), np.abs(text_rows - text_alone).max()]
    for size in (2, 3, 17):
        batches = _in_batches(pixels, size)
        differences.append(np.abs(np.concatenate([_run(image_graph, "pixels", b) for b in batches]) - alone).max())
    context_length = checkpoint.model.context_length
    for size, length in zip((2, 3, 17, 5, 11), LENGTHS, strict=True):
        fitting = [i for i, row in enumerate(short) if row.shape[1] <= min(length, context_length)]
        batches = _in_batches(ids[fitting, :length].int().numpy(), size)
        rows = np.concatenate([_run(text_graph, "input_ids", b) for b in batches])
        differences.append(np.abs(rows - text_alone[fitting]).max())
    rounded = encoder.manifest["precision"] == "fp16" and not checkpoint.is_half
    bound = ROUNDED_COSINE if rounded else GRAPH_COSINE
    with torch.no_grad():
        image_reference = checkpoint.model.encode_image(_normalised(checkpoint, pixels)).numpy()
        text_reference = checkpoint.model.encode_text(ids).numpy()
    return [
        Figure("image_graph_min_cosine", _min_cosine(image_rows, image_reference), at_least=bound),
        Figure("text_graph_min_cosine", _min_cosine(text_rows, text_reference), at_least=bound),
        Figure("batch_max_difference", float(max(differences)), at_most=BATCH_DIFFERENCE),
    ]


def end_to_end_figures(
    checkpoint: Checkpoint, name: str, repository: Path, images: Sequence[bytes], texts: Sequence[str]
) -> list[Figure]:
    """Compares what a server answers with open_clip's own preprocessing, tokenizer and model."""
    with LocalServer(repository, allow_ungated="true") as server, Client(server.address, timeout=300) as client:
        image_rows = np.concatenate([client.embed(images=b, encoder=name).vectors for b in _in_batches(images, 16)])
        text_rows = np.concatenate([client.embed(texts=b, encoder=name).vectors for b in _in_batches(texts, 64)])
    image_reference, text_reference = embed_images(checkpoint, images), embed_texts(checkpoint, texts)
    return [
        Figure("image_end_to_end_min_cosine", _min_cosine(image_rows, image_reference), at_least=END_TO_END_COSINE),
        Figure("text_end_to_end_min_cosine", _min_cosine(text_rows, text_reference), at_least=END_TO_END_COSINE),
    ]


def embed_images(checkpoint: Checkpoint, images: Iterable[bytes]) -> Array:
    """Returns open_clip's image embeddings of encoded images, float32 [n, D], of length 1."""
    with torch.no_grad():
        pixels = torch.stack([checkpoint.preprocess(Image.open(io.BytesIO(image))) for image in images])
        return np.asarray(checkpoint.model.encode_image(pixels, normalize=True))


def embed_texts(checkpoint: Checkpoint, texts: Sequence[str]) -> Array:
    """Returns open_clip's text embeddings, float32 [n, D], of length 1."""
    with torch.no_grad():
        return np.asarray(checkpoint.model.encode_text(checkpoint.tokenizer(list(texts)), normalize=True))


def _held(figures: list[Figure]) -> list[Figure]:
    failed = [f"{figure.name} is {figure.value:.8g}, must be {figure.bound}" for figure in figures if not figure.holds]
    if failed:
        raise GateError(f"the export does not agree with its reference: {'; '.join(failed)}")
    return figures


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _run(session: Any, name: str, rows: Array) -> Array:
    return np.asarray(session.run(["embedding"], {name: rows})[0])


def _in_batches(rows: Any, size: int) -> list[Any]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _raw_pixels(checkpoint: Checkpoint, images: Sequence[bytes]) -> Array:
    """Returns the images as the graph takes them, uint8 [n, S, S, 3]: open_clip's transform without its last steps."""
    size = checkpoint.model.visual.image_size
    noise = np.random.default_rng(0).integers(0, 256, (8, *size, 3), dtype=np.uint8)
    plain = np.stack([np.full((*size, 3), value, np.uint8) for value in (0, 255)])
    scaled = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB").resize(size)) for image in images]
    return np.concatenate([noise, plain, np.stack(scaled)])


def _normalised(checkpoint: Checkpoint, pixels: Array) -> Any:
    """Returns what open_clip's model takes for raw pixels: (p / 255 - mean) / std, float32 [n, 3, S, S]."""
    visual = checkpoint.model.visual
    mean, std = (torch.tensor(values) for values in (visual.image_mean, visual.image_std))
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2)


def _min_cosine(a: Array, b: Array) -> float:
    """Returns the smallest cosine between rows of equal index, computed in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
