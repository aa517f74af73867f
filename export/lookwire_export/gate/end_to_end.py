"""What a real server, asked by the real client, makes of the probes."""

import numpy as np

from lookwire import Client, LookwireError
from lookwire.local import LocalServer
from lookwire_export.encoder import ExportedEncoder, Progress
from lookwire_export.gate.agreement import Array
from lookwire_export.gate.answers import Answers, in_batches
from lookwire_export.gate.probed import Probed
from lookwire_export.reference import ExportError

IMAGES, JPEGS, TEXTS = 8, 2, 32
"""So many are sent in one call."""
START_SECONDS, CALL_SECONDS = 600.0, 600.0


class Served:
    """The server's vectors of the probes, float32 [n, D], and in words what it refused; a refused row is not a number."""

    def __init__(self, encoder: ExportedEncoder, probed: Probed, progress: Progress) -> None:
        self.refused: list[str] = []
        progress("starting a server with the export")
        server = LocalServer(encoder.root, allow_ungated="true")
        try:
            server.start(START_SECONDS)
        except (RuntimeError, TimeoutError) as error:
            raise ExportError(f"no server starts with what was exported: {error}") from error
        try:
            with Client(server.address, timeout=CALL_SECONDS) as client:
                self.images = self._asked(client, encoder.name, "images", probed.images, IMAGES, progress)
                self.texts = self._asked(client, encoder.name, "texts", probed.texts, TEXTS, progress)
                self.scaled = None
                if probed.scaled:
                    self.scaled = self._asked(client, encoder.name, "large JPEGs", probed.scaled, JPEGS, progress)
        finally:
            server.stop()

    def _asked(self, client: Client, encoder: str, what: str, answers: Answers, size: int, progress: Progress) -> Array:
        rows: list[Array] = []
        for start, batch in in_batches(answers.contents, size):
            progress(f"{what} through the server: {start} of {len(answers.contents)}")
            texts, images = (batch, ()) if what == "texts" else ((), batch)
            try:
                embeddings = client.embed(texts, images, encoder=encoder, partial=True)
            except LookwireError as error:
                raise ExportError(f"the server does not embed {what} with what was exported: {error}") from error
            for index, refusal in embeddings.errors.items():
                self.refused.append(f"the server refuses {answers.kinds[start + index]}: {refusal}")
            rows.append(embeddings.vectors)
        return np.concatenate(rows)
