"""The encoders among the models of the repository."""

from lookwire_server.encoding.encoder import Encoder
from lookwire_server.errors import FailedPrecondition, InvalidArgument, NotFound
from lookwire_server.models.repository import Repository


class Encoders:
    """Finds encoders by name."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def list(self) -> list[Encoder]:
        """The newest version of each encoder, by name."""
        newest = {model.config.name: model for model in self._repository.models() if isinstance(model, Encoder)}
        return list(newest.values())

    def get(self, name: str, field: str = "encoder") -> Encoder:
        """The encoder of that name; the empty name means the only one there is."""
        encoders = {encoder.name: encoder for encoder in self.list()}
        served = ", ".join(encoders) or "none"
        if not name:
            if len(encoders) != 1:
                raise InvalidArgument(f"name an encoder; this server serves: {served}", field=field, served=served)
            return next(iter(encoders.values()))
        if name not in encoders:
            raise NotFound(
                f"no encoder '{name}'; this server serves: {served}", field=field, encoder=name, served=served
            )
        return encoders[name]

    def of_fingerprint(self, name: str, fingerprint: str, field: str = "") -> Encoder:
        """The encoder of that name, if it still makes the vectors that it made when the fingerprint was taken.

        Raises FailedPrecondition, with the path `field` of what was to be encoded, if it is not served or has changed.
        """
        encoder = next((encoder for encoder in self.list() if encoder.name == name), None)
        if encoder is None:
            raise FailedPrecondition(
                f"the collection was made with encoder '{name}', which is not served now. Load that model, or give vectors or "
                "item ids, which need no encoder",
                field=field,
                encoder=name,
                collection_fingerprint=fingerprint,
            )
        if encoder.fingerprint != fingerprint:
            raise FailedPrecondition(
                f"the collection was made with encoder '{name}' of fingerprint {fingerprint}, which has {encoder.fingerprint} "
                "now: their vectors cannot be compared. Make a new collection, or serve the encoder that it was made with",
                field=field,
                encoder=name,
                collection_fingerprint=fingerprint,
                encoder_fingerprint=encoder.fingerprint,
            )
        return encoder
