"""The `encoder` backend: it reads the manifest, pins the towers, and proves that they are the manifest's."""

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path

import structlog

from lookwire_server.encoding.encoder import Encoder, ImageTower, TextCache, TextTower
from lookwire_server.encoding.images import ImageDecoder
from lookwire_server.encoding.manifest import FILE, Manifest, Tower, read
from lookwire_server.encoding.texts import TextTokenizer
from lookwire_server.errors import FailedPrecondition, InvalidArgument, NotFound
from lookwire_server.models.backends import onnxruntime
from lookwire_server.models.config import ModelConfig
from lookwire_server.models.model import Model
from lookwire_server.models.repository import Repository

# The precision of a manifest whose towers have OpenVINO as their execution accelerator.
BF16 = "bf16"
# Where the export puts weights that a graph is too large to hold.
DATA_FILE = "model.onnx.data"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EncoderBackend:
    """Loads encoders, which share `cache`. With `allow_ungated`, one without a passing parity record is served with a warning."""

    decoder: ImageDecoder
    max_text_bytes: int
    allow_ungated: bool
    cache: TextCache

    async def load(self, config: ModelConfig, version: int, directory: Path, repository: Repository) -> Model:
        manifest = await asyncio.to_thread(read, directory)
        self._check_parity(manifest, directory)
        image = text = None
        if manifest.image and manifest.towers.image:
            model = await self._tower(manifest.towers.image, "pixels", manifest, config.name, repository)
            image = ImageTower(model, manifest.image, self.decoder)
        if manifest.text and manifest.towers.text:
            model = await self._tower(manifest.towers.text, "input_ids", manifest, config.name, repository)
            tokenizer = await asyncio.to_thread(TextTokenizer, directory, manifest.text)
            text = TextTower(model, manifest.text, tokenizer)
        return Encoder(
            config,
            version,
            manifest,
            image,
            text,
            self.max_text_bytes,
            self.cache,
            repository.metrics,
        )

    def _check_parity(self, manifest: Manifest, directory: Path) -> None:
        if manifest.parity is not None and manifest.parity.passed:
            return
        if not self.allow_ungated:
            raise FailedPrecondition(
                f"{directory / FILE} has no passing parity record: its vectors were never shown to be the reference's. "
                "Export the encoder again with lookwire-export, or start with --allow-ungated true"
            )
        log.warning("encoder without a passing parity record", encoder=manifest.name)

    def _check_precision(self, tower: ModelConfig, manifest: Manifest, repository: Repository) -> None:
        """A tower in another precision than the one that was compared with the reference gives other vectors."""
        if tower.accelerated == (manifest.precision == BF16):
            return
        config = repository.directory(tower.name) / "config.pbtxt"
        if not self.allow_ungated:
            problem, remedy = ("asks for", "take it out") if tower.accelerated else ("does not ask for", "put it in")
            raise FailedPrecondition(
                f"{config} {problem} the execution accelerator 'openvino' (bf16), but encoder '{manifest.name}' passed its "
                f"comparison with the reference in {manifest.precision}: {remedy}, export the encoder again with "
                "lookwire-export --precision, or start with --allow-ungated true"
            )
        log.warning("tower in another precision than the encoder's", encoder=manifest.name, config=str(config))

    async def _tower(self, tower: Tower, input: str, manifest: Manifest, encoder: str, repository: Repository) -> Model:
        """The tower's model, if it is the pinned file with the graph that an encoder needs."""
        versions = await repository.need(tower.model, by=encoder)
        if tower.version not in versions:
            raise NotFound(
                f"encoder '{manifest.name}' is pinned to version {tower.version} of model '{tower.model}'; loaded: "
                f"{sorted(versions)}"
            )
        model = versions[tower.version]
        repository.keep(model, by=encoder)
        directory = repository.directory(tower.model) / str(tower.version)
        for file, pinned in ((onnxruntime.FILE, tower.sha256), (DATA_FILE, tower.data_sha256)):
            if pinned is not None:
                await asyncio.to_thread(check_digest, directory / file, pinned, manifest.name)
        self._check_precision(model.config, manifest, repository)
        inputs = [spec.name for spec in model.config.inputs]
        outputs = {spec.name: spec.dims for spec in model.config.outputs}
        if inputs != [input] or outputs.get("embedding") != (manifest.dimension,):
            raise InvalidArgument(
                f"tower '{tower.model}' must take '{input}' and give 'embedding' of dims [{manifest.dimension}]; "
                f"it takes {inputs} and gives {outputs}"
            )
        return model


def check_digest(path: Path, pinned: str, encoder: str) -> None:
    """Raises FailedPrecondition unless the file is there and its SHA-256, in hexadecimal, is the pinned one."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise FailedPrecondition(f"encoder '{encoder}' is pinned to {path}, which does not exist") from None
    if digest != pinned:
        raise FailedPrecondition(
            f"encoder '{encoder}' is pinned to another file than {path}: SHA-256 is {digest[:12]}..., the manifest "
            f"says {pinned[:12]}...; export both together"
        )
