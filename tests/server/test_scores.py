"""Score: how well the two inputs of each pair match, through the front door."""

import re

import grpc
import numpy as np
import pytest

from lookwire import Client, errors
from lookwire.local import LocalServer
from lookwire.v1 import encoder_service_pb2 as pb
from lookwire.v1 import encoder_service_pb2_grpc
from tests.server.images import jpeg
from tests.server.test_encoding import counters

PHOTO, OTHER = jpeg(0), jpeg(100)


def test_pairs_of_all_kinds(client: Client) -> None:
    """Image and text, two images and two texts have the cosines of Embed's vectors, and the encoder's logits."""
    pairs: list[tuple[str | bytes, str | bytes]] = [
        (PHOTO, "a red plain dress"),
        (PHOTO, OTHER),
        ("a red dress", "a blue hat"),
        (PHOTO, PHOTO),
    ]
    vectors = client.embed(["a red plain dress", "a red dress", "a blue hat"], [PHOTO, OTHER]).vectors
    first, second = vectors[[3, 3, 1, 3]], vectors[[0, 4, 2, 3]]
    cosines = np.sum(first * second, axis=1, dtype=np.float64)

    scores = client.score(pairs)

    encoder = client.get_encoder()
    assert (encoder.score_rule, encoder.logit_bias) == ("softmax", None)
    assert scores.fingerprint == encoder.fingerprint
    np.testing.assert_allclose(scores.cosines, cosines, atol=1e-5)
    np.testing.assert_allclose(scores.clip_scores, 100 * np.maximum(cosines, 0), atol=1e-3)
    np.testing.assert_allclose(scores.logits, encoder.logit_scale * scores.cosines.astype(np.float64), atol=1e-5)
    assert scores.probabilities is None
    assert scores.times.decode_us > 0
    assert scores.times.infer_us > 0


def test_cosine_is_at_most_one(client: Client) -> None:
    """A text with itself has the cosine 1 and never more, however its vector was rounded."""
    scores = client.score([(f"garment {number}",) * 2 for number in range(200)])

    assert scores.cosines.max() == 1
    assert scores.cosines.min() > 1 - 1e-6
    assert scores.clip_scores.max() == 100


def test_negative_cosine(encoders_client: Client) -> None:
    """The CLIP score of a pair that points away from each other is 0; cosine and logit keep their sign."""
    scores = encoders_client.score([("a", "a a a a")], encoder="opposite")

    assert scores.cosines.tolist() == [-1]
    assert scores.clip_scores.tolist() == [0]
    assert scores.logits[0] == pytest.approx(-encoders_client.get_encoder("opposite").logit_scale)


def test_probability_of_a_sigmoid_encoder(encoders_client: Client) -> None:
    """Where the rule is the sigmoid, each pair has its own probability: sigmoid(scale x cosine + bias)."""
    scores = encoders_client.score([("a red dress", "a red dress"), ("a red dress", "a blue hat")], encoder="sigmoid")

    logits = 20.0 * scores.cosines.astype(np.float64) - 8.0
    assert encoders_client.get_encoder("sigmoid").score_rule == "sigmoid"
    assert scores.probabilities is not None
    np.testing.assert_allclose(scores.logits, logits, atol=1e-5)
    np.testing.assert_allclose(scores.probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_equal_inputs_are_embedded_once(server: LocalServer, client: Client) -> None:
    """An image that is compared with each of 40 texts, and one of them twice, is one row of the image tower's work."""
    texts = [f"a garment of number {number}" for number in range(40)]
    images, rows = counters(server, "garments-image")[0], counters(server, "garments-text")[0]

    scores = client.score([(PHOTO, text) for text in [*texts, texts[0]]])

    assert counters(server, "garments-image")[0] - images == 1
    assert counters(server, "garments-text")[0] - rows == 40
    assert scores.cosines[0] == scores.cosines[40]


def test_broken_pair_among_good_ones(encoders_client: Client) -> None:
    """A pair with a broken input says which; it has no scores, and the others have theirs."""
    pairs: list[tuple[str | bytes, str | bytes]] = [(PHOTO, "red"), ("red", b"no image"), (PHOTO, OTHER)]

    scores = encoders_client.score(pairs, encoder="sigmoid", partial=True)
    with pytest.raises(errors.InvalidArgument, match=r"^pairs\[1\]\.second: not an image"):
        encoders_client.score(pairs, encoder="sigmoid")

    assert list(scores.errors) == [1]
    assert scores.errors[1].reason == "INVALID_IMAGE"
    assert scores.probabilities is not None
    for values in (scores.cosines, scores.clip_scores, scores.logits, scores.probabilities):
        assert np.isnan(values).tolist() == [False, True, False]
    good = encoders_client.score(pairs[::2], encoder="sigmoid")
    np.testing.assert_allclose(scores.cosines[::2], good.cosines, atol=1e-5)


def test_broken_pair_is_zero_on_the_wire(encoders_client: Client) -> None:
    """In the message, the lists are as long as the pairs, with 0 for a pair that failed, the sigmoid's included."""
    stub = encoder_service_pb2_grpc.EncoderServiceStub(encoders_client._channel)
    broken = pb.Pair(first=pb.Input(image=b"no image"), second=pb.Input(text="red"))

    reply = stub.Score(pb.ScoreRequest(encoder="sigmoid", pairs=[broken]))

    assert [*reply.cosines, *reply.clip_scores, *reply.logits, *reply.probabilities] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], r"^pairs: expected 1 to 1024 pairs, got 0"),
        ([pb.Pair()] * 1025, r"^pairs: expected 1 to 1024 pairs, got 1025"),
        ([pb.Pair(first=pb.Input(text="red"))], r"^pairs\[0\]\.second: set text or image"),
    ],
)
def test_wrong_request(client: Client, pairs: list[pb.Pair], words: str) -> None:
    """A request that is wrong as a whole is refused, with the field that is wrong."""
    stub = encoder_service_pb2_grpc.EncoderServiceStub(client._channel)

    with pytest.raises(grpc.RpcError) as failure:
        stub.Score(pb.ScoreRequest(pairs=pairs))

    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(words, failure.value.details() or "")


def test_encoder_that_lacks_a_tower(encoders_client: Client) -> None:
    """A text for an encoder of images only fails its pair; two images do not need the text tower."""
    scores = encoders_client.score([(PHOTO, OTHER), (PHOTO, "red")], encoder="blind", partial=True)

    assert list(scores.errors) == [1]
    assert "no text tower" in str(scores.errors[1])
    assert 0 < scores.cosines[0] < 1


def test_unknown_encoder(client: Client) -> None:
    """An encoder that is not served is NOT_FOUND."""
    with pytest.raises(errors.NotFound, match="no encoder 'nobody'"):
        client.score([("red", "blue")], encoder="nobody")
