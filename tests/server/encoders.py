"""A repository of encoders on the bundled towers, each of which scores in a way of its own."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from tests.conftest import MODEL_REPOSITORY
from tests.models.repositories import graph

BUNDLED = "garments"


def write_encoders(root: Path) -> Path:
    """The bundled encoder, and these three, none of them with a parity record.

    `sigmoid` has the towers of the bundled one, and other numbers for its scores. `blind` has no text tower. `opposite` has a
    text tower that knows two vectors only, one the negative of the other: "a" has the first, "a a a a" the second.
    """
    shutil.copytree(MODEL_REPOSITORY, root)
    write_encoder(root, "sigmoid", score="sigmoid", logit_scale=20.0, logit_bias=-8.0)
    towers = json.loads((root / BUNDLED / "1/manifest.json").read_text())["towers"]
    write_encoder(root, "blind", towers={"image": towers["image"]}, text=None)
    tower = root / "opposite-text"
    shutil.copytree(root / f"{BUNDLED}-text", tower)
    config = (tower / "config.pbtxt").read_text()
    (tower / "config.pbtxt").write_text(config.replace(f"{BUNDLED}-text", "opposite-text"))
    onnx.save(opposite(), tower / "1/model.onnx")
    digest = hashlib.sha256((tower / "1/model.onnx").read_bytes()).hexdigest()
    text = {"model": "opposite-text", "version": 1, "sha256": digest, "data_sha256": None}
    write_encoder(root, "opposite", towers={"image": towers["image"], "text": text})
    return root


def write_encoder(root: Path, name: str, **changes: Any) -> None:
    """Writes a copy of the bundled encoder whose manifest has some values changed."""
    shutil.copytree(root / BUNDLED, root / name)
    config = root / name / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{BUNDLED}"', f'name: "{name}"'))
    path = root / name / "1/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name, "parity": None} | changes))


def opposite() -> onnx.ModelProto:
    """Gives a unit vector or its negative, by the sum of the ids.

    The ids are those of begin and end, 49406 and 49407, and 320 for each "a".
    """
    unit = np.eye(1, 64, dtype=np.float32)
    return graph(
        [
            ("CastLike", ["input_ids", "between"], ["floats"]),
            ("ReduceSum", ["floats", "axes"], ["sum"]),
            ("Sub", ["sum", "between"], ["difference"]),
            ("Sign", ["difference"], ["sign"]),
            ("Mul", ["sign", "unit"], ["embedding"]),
        ],
        {"input_ids": (TensorProto.INT32, ["batch", "length"])},
        {"embedding": (TensorProto.FLOAT, ["batch", 64])},
        {"axes": np.array([1]), "between": np.array(49406 + 49407 + 2 * 320 + 0.5, np.float32), "unit": unit},
    )
