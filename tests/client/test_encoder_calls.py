from pathlib import Path

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.code_pb2 import INVALID_ARGUMENT
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from lookwire import Client, Encoder, ImageRules, LabelGroup, LabelScore, ParityFigure, ParityRecord, StageTimes, errors
from lookwire.v1 import encoder_service_pb2 as pb
from lookwire.v1.stage_times_pb2 import StageTimes as StageTimesMessage
from lookwire.v1.vector_pb2 import VECTOR_FORMAT_F16, VECTOR_FORMAT_F32, Matrix
from tests.client.fake_server import FakeServer

ENCODER = pb.Encoder(
    name="small",
    fingerprint="ab" * 16,
    version=3,
    description="A small one.",
    dimension=2,
    modalities=[pb.MODALITY_TEXT, pb.MODALITY_IMAGE],
    image_size=64,
    context_length=32,
    precision="fp32",
    logit_scale=100.0,
    logit_bias=-0.5,
    score_rule=pb.SCORE_RULE_SIGMOID,
    image_rules=pb.ImageRules(
        resize=pb.ImageRules.RESIZE_SQUASH,
        interpolation=pb.ImageRules.INTERPOLATION_BICUBIC,
        crop=pb.ImageRules.CROP_FLOOR,
        convert_rgb=pb.ImageRules.CONVERT_RGB_BEFORE_RESIZE,
        decode=pb.ImageRules.DECODE_FAST,
    ),
    parity=pb.ParityRecord(
        reference="open_clip 3.2",
        passed=True,
        figures=[
            pb.ParityFigure(name="min_cosine", value=0.99999, at_least=0.999),
            pb.ParityFigure(name="max_difference", value=0.0, at_most=1e-5),
        ],
    ),
)
ROWS = np.array([[1.0, 0.0], [0.0, -1.0]], np.float32)


def matrix(rows: np.ndarray) -> Matrix:
    return Matrix(f32=rows.astype("<f4").tobytes(), rows=rows.shape[0], dimension=rows.shape[1])


def failed_input(index: int) -> pb.InputError:
    info = Any()
    info.Pack(ErrorInfo(reason="INVALID_IMAGE", domain="lookwire", metadata={"format": "none"}))
    return pb.InputError(index=index, status=Status(code=INVALID_ARGUMENT, message="no image", details=[info]))


def test_get_encoder(client: Client, server: FakeServer) -> None:
    """An encoder comes with every member, and its parity record with the bound that each figure has."""
    server.reply(pb.GetEncoderResponse(encoder=ENCODER))

    encoder = client.get_encoder("small")

    assert server.requests == [pb.GetEncoderRequest(name="small")]
    assert encoder == Encoder(
        name="small",
        fingerprint="ab" * 16,
        version=3,
        description="A small one.",
        dimension=2,
        modalities=frozenset({"text", "image"}),
        image_size=64,
        context_length=32,
        precision="fp32",
        logit_scale=100.0,
        logit_bias=-0.5,
        parity=ParityRecord(
            reference="open_clip 3.2",
            passed=True,
            figures=(
                ParityFigure("min_cosine", 0.99999, at_least=0.999, at_most=None),
                ParityFigure("max_difference", 0.0, at_least=None, at_most=1e-5),
            ),
        ),
        score_rule="sigmoid",
        image_rules=ImageRules("fast", "squash", "bicubic", "floor", "before_resize"),
    )


def test_list_encoders(client: Client, server: FakeServer) -> None:
    """Members that an encoder does not have are None."""
    server.reply(pb.ListEncodersResponse(encoders=[pb.Encoder(name="bare"), ENCODER]))

    bare, small = client.list_encoders()

    assert server.requests == [pb.ListEncodersRequest()]
    assert (bare.logit_bias, bare.parity, bare.image_rules) == (None, None, None)
    assert small.name == "small"


def test_embed(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """Texts go before images, a path is read, and each has its row."""
    (tmp_path / "a.png").write_bytes(b"from file")
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    times = StageTimesMessage(decode_us=1, tokenise_us=2, queue_us=3, infer_us=4, total_us=9)
    server.reply(pb.EmbedResponse(embeddings=matrix(rows), fingerprint="f" * 32, times=times))

    embeddings = client.embed(["red", ""], [b"in memory", tmp_path / "a.png"], encoder="small")

    inputs = [
        pb.Input(text="red"),
        pb.Input(text=""),
        pb.Input(image=b"in memory"),
        pb.Input(image=b"from file"),
    ]
    assert server.requests == [pb.EmbedRequest(encoder="small", inputs=inputs, vector_format=VECTOR_FORMAT_F32)]
    assert embeddings.vectors.dtype == np.float32
    np.testing.assert_array_equal(embeddings.vectors, rows)
    assert embeddings.fingerprint == "f" * 32
    assert embeddings.times == StageTimes(1, 2, 3, 4, 0, 0, 0, 9)
    assert embeddings.errors == {}


def test_embed_float16(client: Client, server: FakeServer) -> None:
    """A reply in float16 becomes the nearest float32 values."""
    rows = np.array([[0.1, -0.2, 0.3]], np.float16)
    server.reply(pb.EmbedResponse(embeddings=Matrix(f16=rows.astype("<f2").tobytes(), rows=1, dimension=3)))

    embeddings = client.embed(["red"], float16=True)

    assert server.requests == [pb.EmbedRequest(inputs=[pb.Input(text="red")], vector_format=VECTOR_FORMAT_F16)]
    assert embeddings.vectors.dtype == np.float32
    np.testing.assert_array_equal(embeddings.vectors, rows.astype(np.float32))


def test_embed_raises_the_first_failed_input(client: Client, server: FakeServer) -> None:
    """Without `partial` the failed input of least index is the call's error, and names that index."""
    failed = [failed_input(3), failed_input(1)]
    server.reply(pb.EmbedResponse(embeddings=matrix(np.zeros((4, 2))), errors=failed))

    with pytest.raises(errors.InvalidArgument, match=r"^inputs\[1\]: no image$") as caught:
        client.embed(images=[b"a", b"b", b"c", b"d"])

    assert caught.value.reason == "INVALID_IMAGE"
    assert caught.value.metadata == {"format": "none"}
    assert caught.value.violations == (errors.FieldViolation("inputs[1]", "no image"),)


def test_embed_partial(client: Client, server: FakeServer) -> None:
    """With `partial` a failed input has a row of NaN and its error by index; the others have their vectors."""
    rows = np.vstack([ROWS[0], np.zeros(2), ROWS[1]])
    server.reply(pb.EmbedResponse(embeddings=matrix(rows), errors=[failed_input(1)]))

    embeddings = client.embed(images=[b"a", b"b", b"c"], partial=True)

    np.testing.assert_array_equal(embeddings.vectors, [[1.0, 0.0], [np.nan, np.nan], [0.0, -1.0]])
    assert list(embeddings.errors) == [1]
    assert isinstance(embeddings.errors[1], errors.InvalidArgument)
    assert str(embeddings.errors[1]) == "no image"


def test_embed_refuses_what_cannot_be_sent(client: Client, server: FakeServer) -> None:
    """One string for a list, no input at all, and an image of another type never reach the server."""
    with pytest.raises(TypeError, match="not one string"):
        client.embed("red")
    with pytest.raises(TypeError, match="not one image"):
        client.embed(images=b"red")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"bytes or a pathlib\.Path, not str"):
        client.embed(images=["red.png"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="nothing to embed"):
        client.embed()

    assert server.requests == []


def test_score(client: Client, server: FakeServer, tmp_path: Path) -> None:
    """A string is a text, bytes and a path are an image, on both sides of a pair; the lists come as arrays."""
    (tmp_path / "a.png").write_bytes(b"from file")
    server.reply(
        pb.ScoreResponse(
            cosines=[0.5, -0.25],
            clip_scores=[50, 0],
            logits=[10, -5],
            probabilities=[0.75, 0.125],
            fingerprint="f" * 32,
            times=StageTimesMessage(infer_us=4, total_us=9),
        )
    )

    scores = client.score([("red", b"in memory"), (tmp_path / "a.png", "")], encoder="small")

    image, file = pb.Input(image=b"in memory"), pb.Input(image=b"from file")
    pairs = [pb.Pair(first=pb.Input(text="red"), second=image), pb.Pair(first=file, second=pb.Input(text=""))]
    assert server.requests == [pb.ScoreRequest(encoder="small", pairs=pairs)]
    assert scores.cosines.dtype == scores.logits.dtype == np.float32
    assert scores.cosines.tolist() == [0.5, -0.25]
    assert scores.clip_scores.tolist() == [50, 0]
    assert scores.logits.tolist() == [10, -5]
    assert scores.probabilities is not None
    assert scores.probabilities.tolist() == [0.75, 0.125]
    assert scores.fingerprint == "f" * 32
    assert scores.times == StageTimes(0, 0, 0, 4, 0, 0, 0, 9)
    assert scores.errors == {}


def test_score_partial(client: Client, server: FakeServer) -> None:
    """A pair that failed is NaN with `partial`, and else the call's error as the server words it."""
    reply = pb.ScoreResponse(cosines=[0.5, 0], clip_scores=[50, 0], logits=[10, 0], errors=[failed_input(1)])
    server.reply(reply, reply)
    pairs = [("red", b"a"), ("red", b"b")]

    scores = client.score(pairs, partial=True)
    with pytest.raises(errors.InvalidArgument, match=r"^no image$"):
        client.score(pairs)

    for values in (scores.cosines, scores.clip_scores, scores.logits):
        assert np.isnan(values).tolist() == [False, True]
    assert scores.probabilities is None
    assert list(scores.errors) == [1]


def test_classify(client: Client, server: FakeServer) -> None:
    """Groups of names, of names with prompts and with templates are sent as given; labels come by name, best first."""
    first = pb.LabelScores(labels=[1, 0], cosines=[0.5, 0.25], logits=[2, 1], probabilities=[0.75, 0.25])
    second = pb.LabelScores(labels=[0], cosines=[0.125], logits=[0.5], probabilities=[1])
    server.reply(pb.ClassifyResponse(classifications=[pb.Classification(groups=[first, second])], fingerprint="f" * 32))
    kinds = LabelGroup({"dress": ["a gown", "a frock"], "hat": []}, ["a photo of a {}"])

    result = client.classify([b"photo"], {"colour": ["red", "blue"], "kind": kinds}, top_k=2, encoder="small")

    groups = [
        pb.LabelGroup(name="colour", labels=[pb.Label(name="red"), pb.Label(name="blue")]),
        pb.LabelGroup(
            name="kind",
            labels=[pb.Label(name="dress", prompts=["a gown", "a frock"]), pb.Label(name="hat")],
            templates=["a photo of a {}"],
        ),
    ]
    inputs = [pb.Input(image=b"photo")]
    assert server.requests == [pb.ClassifyRequest(encoder="small", inputs=inputs, groups=groups, top_k=2)]
    assert result.fingerprint == "f" * 32
    assert result.groups == (
        {
            "colour": (LabelScore("blue", 0.5, 2.0, 0.75), LabelScore("red", 0.25, 1.0, 0.25)),
            "kind": (LabelScore("dress", 0.125, 0.5, 1.0),),
        },
    )


def test_classify_takes_prompts_as_a_dict(client: Client, server: FakeServer) -> None:
    """A dict of labels to prompts is a group, with the labels in its order."""
    server.reply(pb.ClassifyResponse(classifications=[pb.Classification()]))

    client.classify(["red"], {"mood": {"warm": ("a red one", "an orange one"), "cold": []}})

    labels = [pb.Label(name="warm", prompts=["a red one", "an orange one"]), pb.Label(name="cold")]
    groups = [pb.LabelGroup(name="mood", labels=labels)]
    assert server.requests == [pb.ClassifyRequest(inputs=[pb.Input(text="red")], groups=groups)]


def test_classify_partial(client: Client, server: FakeServer) -> None:
    """An input that failed has no labels with `partial`, and else is the call's error with its index."""
    scores = pb.LabelScores(labels=[0], cosines=[0.5], logits=[2], probabilities=[1])
    good = pb.Classification(groups=[scores])
    reply = pb.ClassifyResponse(classifications=[good, pb.Classification()], errors=[failed_input(1)])
    server.reply(reply, reply)

    result = client.classify([b"a", b"b"], {"colour": ["red"]}, partial=True)
    with pytest.raises(errors.InvalidArgument, match=r"^inputs\[1\]: no image$"):
        client.classify([b"a", b"b"], {"colour": ["red"]})

    assert result.groups == ({"colour": (LabelScore("red", 0.5, 2.0, 1.0),)}, {})
    assert list(result.errors) == [1]


def test_score_and_classify_refuse_what_cannot_be_sent(client: Client, server: FakeServer) -> None:
    """One string for a list, nothing to do, and an image of another type never reach the server."""
    with pytest.raises(ValueError, match="nothing to score"):
        client.score([])
    with pytest.raises(TypeError, match=r"bytes or a pathlib\.Path, not int"):
        client.score([("red", 7)])  # type: ignore[list-item]
    for pair, words in (
        ("red", "is a text"),
        (b"photo", "is an image"),
        (Path("a.png"), "is an image"),
        (("red", "blue", "green"), "is a list of 3"),
        (7, "is a value of type int"),
    ):
        with pytest.raises(TypeError, match=rf"^pairs\[1\] {words}, not a pair of inputs$"):
            client.score([("red", "blue"), pair])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^pairs\[0\] is a text, not a pair of inputs$"):
        client.score(("re", b"photo"))  # type: ignore[arg-type]
    for pairs in ("red", b"red", Path("a.png")):
        with pytest.raises(TypeError, match=r"^pairs are a list of pairs of inputs, not one input$"):
            client.score(pairs)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list of texts and images"):
        client.classify("red", {"colour": ["red"]})
    with pytest.raises(TypeError, match="a list of texts and images"):
        client.classify(Path("a.png"), {"colour": ["red"]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to classify"):
        client.classify([], {"colour": ["red"]})
    with pytest.raises(ValueError, match="top_k is at least 0"):
        client.classify(["red"], {"colour": ["red"]}, top_k=-1)
    with pytest.raises(TypeError, match="group 'colour': labels are a list of strings, not one string"):
        client.classify(["red"], {"colour": "red"})
    with pytest.raises(TypeError, match="group 'colour': templates are a list of strings"):
        client.classify(["red"], {"colour": LabelGroup(["red"], "a {}")})
    with pytest.raises(TypeError, match="group 'colour': prompts of 'red' are a list of strings"):
        client.classify(["red"], {"colour": LabelGroup({"red": "a red one"})})
    with pytest.raises(TypeError, match=r"^groups are a dict of names to labels.*, not a value of type list$"):
        client.classify(["red"], ["red", "blue"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^the name of a group is a string, not a value of type int$"):
        client.classify(["red"], {1: ["red"]})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"^group 'm': labels are .*, but the one at index 1 is a value of type int$"):
        client.classify(["red"], {"m": ["a", 2]})  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^group 'm': labels are a list of strings, not a value of type int$"):
        client.classify(["red"], {"m": 1})  # type: ignore[dict-item]
    with pytest.raises(
        TypeError, match=r"^group 'm': prompts of 'a' are a list of strings, not a value of type NoneType$"
    ):
        client.classify(["red"], {"m": {"a": None}})  # type: ignore[dict-item]
    for unordered in (
        {"red", "blue"},
        frozenset(["red"]),
        {"red": {"a red one"}},
        LabelGroup(["red"], {"a {}"}),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"are a list of strings, not a set, whose order varies$"):
            client.classify(["red"], {"m": unordered})  # type: ignore[dict-item]

    assert server.requests == []
