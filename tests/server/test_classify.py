"""Classify: which labels fit an input, through the front door."""

import asyncio
import io
import os
import random
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from lookwire import AsyncClient, Client, LabelGroup, errors
from lookwire.local import LocalServer
from lookwire.types import Labels
from lookwire.v1 import encoder_service_pb2 as pb
from lookwire.v1 import encoder_service_pb2_grpc
from lookwire_export.garments import ALL, COLOURS, KINDS, PATTERNS, draw
from lookwire_server.encoding.encoder import Embedded, Times
from lookwire_server.encoding.scores import Doubles, Floats, ScoreRule
from lookwire_server.errors import InvalidArgument
from lookwire_server.rpc import scores
from lookwire_server.rpc.labels import from_messages
from tests.conftest import MODEL_REPOSITORY
from tests.server.images import jpeg
from tests.server.test_encoding import counters

Groups = Mapping[str, Labels | LabelGroup]

COLOUR_TEMPLATES = ["a {} garment", "a plain {} dress", "{}"]
TEXTS = ["a red dress", "a checked green hat", ""]


def label_vectors(client: Client, encoder: str, prompts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """The normalised mean of the vectors of each label's prompts, of those that Embed gives."""
    means = [client.embed(of_label, encoder=encoder).vectors.mean(axis=0, dtype=np.float64) for of_label in prompts]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


@pytest.mark.parametrize("encoder", ["garments", "sigmoid"])
def test_scores_are_those_of_the_vectors(encoders_client: Client, encoder: str) -> None:
    """Cosines are with the normalised mean of a label's prompts; logits and probabilities follow by the encoder's rule."""
    client, photo = encoders_client, jpeg(7)
    own = {"warm": ["a red dress", "an orange hat"], "cold": ["a blue coat"], "grey": []}
    groups: Groups = {
        "colour": LabelGroup(COLOURS, COLOUR_TEMPLATES),
        "kind": KINDS,
        "mood": LabelGroup(own, ["very {}"]),
    }
    prompts = {
        "colour": [[template.format(colour) for template in COLOUR_TEMPLATES] for colour in COLOURS],
        "kind": [[kind] for kind in KINDS],
        "mood": [["a red dress", "an orange hat"], ["a blue coat"], ["very grey"]],
    }
    inputs = client.embed(TEXTS, [photo], encoder=encoder).vectors.astype(np.float64)
    description = client.get_encoder(encoder)

    result = client.classify([*TEXTS, photo], groups, encoder=encoder)

    assert result.fingerprint == description.fingerprint
    assert result.errors == {}
    assert len(result.groups) == len(inputs)
    for row, classified in zip(inputs, result.groups, strict=True):
        assert list(classified) == ["colour", "kind", "mood"]
        for group, names in (("colour", COLOURS), ("kind", KINDS), ("mood", list(own))):
            scores = classified[group]
            order = [names.index(score.label) for score in scores]
            cosines = label_vectors(client, encoder, prompts[group]) @ row
            logits = np.array([score.logit for score in scores])
            probabilities = [score.probability for score in scores]
            assert sorted(order) == list(range(len(names)))
            assert probabilities == sorted(probabilities, reverse=True)
            np.testing.assert_allclose([score.cosine for score in scores], cosines[order], atol=1e-5)
            expected = description.logit_scale * np.array([score.cosine for score in scores])
            np.testing.assert_allclose(logits, expected + (description.logit_bias or 0.0), atol=1e-5)
            if encoder == "sigmoid":
                np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), rtol=1e-5)
            else:
                np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)
                assert sum(probabilities) == pytest.approx(1, abs=1e-6)


def test_top_k_is_the_beginning_of_all(client: Client) -> None:
    """top_k cuts each group's list and changes no probability; more than there are labels is all of them."""
    groups = {"colour": COLOURS, "pattern": PATTERNS}
    whole = client.classify(TEXTS, groups).groups

    first = client.classify(TEXTS, groups, top_k=5).groups

    for cut, all_labels in zip(first, whole, strict=True):
        assert len(cut["colour"]) == 5
        assert len(cut["pattern"]) == len(PATTERNS) == 4
        assert cut["colour"] == all_labels["colour"][:5]
        assert cut["pattern"] == all_labels["pattern"]


def test_equal_labels_stay_in_their_order(client: Client) -> None:
    """Labels of one prompt have one score, and come in the order in which they were given."""
    group = LabelGroup({"z": ["a hat"], "b": ["a coat"], "y": ["a hat"], "a": ["a hat"], "c": ["a hat"]})

    (classified,) = client.classify(["a black hat"], {"words": group}).groups

    assert [score.label for score in classified["words"]] == ["z", "y", "a", "c", "b"]
    assert len({score.probability for score in classified["words"][:4]}) == 1


def test_a_group_does_not_depend_on_others(client: Client) -> None:
    """A group's scores are the same alone, with other groups, and for an input among many."""
    images = [jpeg(number) for number in range(20)]
    together = client.classify(images, {"kind": KINDS, "colour": COLOURS}).groups

    alone = client.classify(images[13:14], {"colour": COLOURS}).groups[0]["colour"]

    assert [score.label for score in alone] == [score.label for score in together[13]["colour"]]
    np.testing.assert_allclose(
        [score.probability for score in alone], [score.probability for score in together[13]["colour"]], atol=1e-5
    )


def test_garments_are_recognised(client: Client) -> None:
    """Drawings that training never saw have the right kind, colour and pattern, nine of ten at least."""
    garments = random.Random(4).sample(ALL, 60)
    groups = {
        "kind": LabelGroup(KINDS, ["a {}", "a plain {}", "a striped {}"]),
        "colour": LabelGroup(COLOURS, ["a {} dress", "a plain {} hat", "a {} shirt"]),
        "pattern": LabelGroup(PATTERNS, ["a {} dress", "a {} hat"]),
    }
    drawings = []
    for garment in garments:
        buffer = io.BytesIO()
        draw(garment, 3_000_000).save(buffer, "PNG", compress_level=1)
        drawings.append(buffer.getvalue())

    result = client.classify(drawings, groups, top_k=1)

    for group in groups:
        right = [
            classified[group][0].label == getattr(garment, group)
            for classified, garment in zip(result.groups, garments, strict=True)
        ]
        assert sum(right) >= 54, group


def test_broken_image_among_good_ones(client: Client) -> None:
    """An input that cannot be embedded has an error by its index, and no labels; the others have theirs."""
    inputs: list[str | bytes | Path] = [jpeg(1), b"no image", "a red hat"]

    result = client.classify(inputs, {"colour": COLOURS}, top_k=1, partial=True)
    with pytest.raises(errors.InvalidArgument, match=r"^inputs\[1\]: not an image"):
        client.classify(inputs, {"colour": COLOURS})

    assert list(result.errors) == [1]
    assert result.errors[1].reason == "INVALID_IMAGE"
    assert [len(classified) for classified in result.groups] == [1, 0, 1]
    assert result.groups[2]["colour"][0].label == "red"


def test_labels_are_embedded_once(encoders_server: LocalServer, encoders_client: Client) -> None:
    """Prompts that were seen cost the text tower nothing, in any group and order, and for an encoder of equal vectors too."""
    client = encoders_client
    group = LabelGroup([f"the label {number}" for number in range(30)], ["a {}", "one {}"])
    rows = counters(encoders_server, "garments-text")[0]

    first = client.classify([jpeg(2)], {"one": group}, encoder="garments")
    again = client.classify([jpeg(2)], {"two": group}, encoder="garments")
    client.classify([jpeg(2)], {"two": group}, encoder="sigmoid")
    more = LabelGroup([*reversed(list(group.labels)), "one label more"], ["one {}"])
    client.classify([jpeg(2)], {"three": more}, encoder="garments")

    assert counters(encoders_server, "garments-text")[0] - rows == 61
    assert again.groups[0]["two"] == first.groups[0]["one"]
    assert first.times.tokenise_us > 0
    assert again.times.tokenise_us == 0


def test_equal_groups_at_once_are_embedded_once(server: LocalServer) -> None:
    """Calls with equal labels that come together share the work."""
    group = LabelGroup([f"something of kind {number}" for number in range(400)], ["a {}", "one {}"])
    rows = counters(server, "garments-text")[0]

    async def together() -> set[float]:
        async with AsyncClient(server.address) as client:
            calls = await asyncio.gather(
                *(client.classify([jpeg(3)], {"kind": group}, encoder="garments") for _ in range(4))
            )
            return {call.groups[0]["kind"][0].probability for call in calls}

    assert len(asyncio.run(together())) == 1
    assert counters(server, "garments-text")[0] - rows == 800


def test_a_reload_fails_no_call(tmp_path: Path) -> None:
    """A call that is under way when its encoder is loaded anew is answered: its labels and inputs are of one version."""
    shutil.copytree(MODEL_REPOSITORY, tmp_path / "models")
    group = LabelGroup([f"{number} of them, " + "and more " * 60 for number in range(3000)])
    with (
        LocalServer(tmp_path / "models", model_control_mode="explicit", load_model="garments") as server,
        Client(server.address) as client,
        InferenceServerClient(server.address) as triton,
        ThreadPoolExecutor(1) as pool,
    ):
        client.embed(["red"])
        before = counters(server, "garments-text")[0]
        call = pool.submit(client.classify, [jpeg(4)], {"kind": group}, top_k=1)
        while counters(server, "garments-text")[0] == before:
            time.sleep(0.01)
        os.utime(tmp_path / "models" / "garments" / "1" / "manifest.json")
        triton.load_model("garments")
        loaded_early = not call.done()
        result = call.result(60)

    assert loaded_early
    assert len(result.groups[0]["kind"]) == 1


def test_a_prompt_that_is_too_long_is_named_and_nothing_is_embedded(server: LocalServer, client: Client) -> None:
    """A prompt that is too long is told by its label or template and its place, before any other is embedded."""
    groups: Groups = {"kind": KINDS, "long": {"short": ["red"], "long": ["red", "a" * 70_000]}}
    rows = counters(server, "garments-text")[0]

    with pytest.raises(errors.InvalidArgument, match="label 'long': the text has 70000 bytes") as failure:
        client.classify(["red"], groups)
    assert failure.value.violations[0].field == "groups[1].labels[1].prompts[1]"
    with pytest.raises(
        errors.InvalidArgument, match="template 1 with label 'red': the text has 70003 bytes"
    ) as failure:
        client.classify(["red"], {"colour": LabelGroup(["red"], ["a {}", "{}" + "a" * 70_000])})
    assert failure.value.violations[0].field == "groups[0].templates[1]"

    assert counters(server, "garments-text")[0] == rows


def test_templates_that_no_label_uses_make_no_difference() -> None:
    """Labels with prompts of their own are one set, whose vectors are made once, whatever templates are sent along."""
    alone, along = (from_messages([group_of(label("a", "red"), templates=each)]) for each in ([], ["a {}"]))

    assert alone == along


def test_millions_of_labels_are_refused_at_once() -> None:
    """Lists that are too long cost no time on the event loop: their members are not looked at."""
    groups = [group_of(name=name) for name in "gh"]
    groups[0].labels.extend([label("a")] * 1_000_000)
    groups[1].labels.add(name="a", prompts=["red"])
    groups[1].templates.extend(["{}"] * 1_000_000)

    for group in groups:
        started = time.monotonic()
        with pytest.raises(InvalidArgument, match="have 1000000"):
            from_messages([group])
        assert time.monotonic() - started < 0.5


class Watched(ScoreRule):
    """A rule that counts the blocks that are scored, and holds each until it is let go on."""

    blocks: ClassVar[list[int]] = []
    let_go: ClassVar = threading.Event()

    def logits(self, cosines: Floats) -> Doubles:
        self.blocks.append(len(cosines))
        assert self.let_go.wait(60)
        return super().logits(cosines)


async def test_scoring_ends_when_the_caller_leaves() -> None:
    """Of a call that is cancelled while its scores are computed, no more than the block under way is computed."""
    inputs, labels = np.eye(512, 64, dtype=np.float32), np.eye(4096, 64, dtype=np.float32)
    rule = Watched("softmax", 1.0, 0.0)
    call = asyncio.create_task(scores.classifications(Embedded(inputs, {}, Times()), [labels], 1, rule))
    while not rule.blocks:
        await asyncio.sleep(0.001)

    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    rule.let_go.set()
    await asyncio.get_running_loop().shutdown_default_executor()

    assert rule.blocks == [16]


def test_long_prompts_are_tokenised_in_little_memory(server: LocalServer, client: Client) -> None:
    """4,000 prompts of 1,000 characters, which the encoder cuts to a few tokens, take no more than they and their vectors."""
    group = LabelGroup([f"label {number}" for number in range(4000)], ["{} " + "a b c d e " * 100])
    process = Path(f"/proc/{server.process.pid}")

    def kilobytes(measure: str) -> int:
        lines = (process / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(measure))

    before = kilobytes("VmRSS")
    (process / "clear_refs").write_text("5")  # the peak begins anew
    client.classify(["red"], {"kind": group}, top_k=1)

    assert kilobytes("VmHWM") - before < 150 * 1024


def test_prompts_that_cancel_out(encoders_client: Client) -> None:
    """A label whose prompts have a mean of zero has no vector: the error names it."""
    group = LabelGroup({"one": ["a"], "both": ["a", "a a a a"]})

    with pytest.raises(errors.InvalidArgument, match="label 'both' cancel each other out") as failure:
        encoders_client.classify(["a"], {"kind": KINDS[:1], "odd": group}, encoder="opposite")

    assert failure.value.violations[0].field == "groups[1].labels[1]"


def test_encoder_without_a_text_tower(encoders_client: Client) -> None:
    """An encoder of images only cannot embed labels, and says so."""
    with pytest.raises(errors.InvalidArgument, match=r"^encoder: encoder 'blind' has no text tower"):
        encoders_client.classify([jpeg()], {"colour": COLOURS}, encoder="blind")


def test_deadline_ends_the_work_on_labels(server: LocalServer) -> None:
    """When the only caller that waits for labels is gone, so is their work: the next call begins anew."""
    group = LabelGroup([f"an unheard-of thing {number}" for number in range(2000)], ["a {}", "one {}"])
    with Client(server.address) as client:
        with pytest.raises(errors.DeadlineExceeded):
            client.classify(["red"], {"thing": group}, timeout=0.05)
        rows = counters(server, "garments-text")[0]

        result = client.classify(["red"], {"thing": group}, top_k=1)

    assert len(result.groups[0]["thing"]) == 1
    assert counters(server, "garments-text")[0] - rows >= 4000


def label(name: str, *prompts: str) -> pb.Label:
    return pb.Label(name=name, prompts=prompts)


def group_of(*labels: pb.Label, name: str = "g", templates: Sequence[str] = ()) -> pb.LabelGroup:
    return pb.LabelGroup(name=name, labels=labels, templates=templates)


MANY = [label(f"label {number}") for number in range(1025)]


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        pytest.param([], "groups: give at least one", id="no group"),
        pytest.param([group_of(name="empty")], "groups[0].labels: give at least one label", id="no label"),
        pytest.param([group_of(label("a"), name="")], "groups[0].name: the name is empty", id="group without name"),
        pytest.param(
            [group_of(label("a")), group_of(label("b"))],
            "groups[1].name: 'g' is the name of groups[0] too",
            id="groups",
        ),
        pytest.param([group_of(label("a"), label(""))], "groups[0].labels[1].name: the name is empty", id="no name"),
        pytest.param(
            [group_of(label("a"), label("b"), label("a"))],
            "groups[0].labels[2].name: 'a' is the name of groups[0].labels[0] too",
            id="labels",
        ),
        pytest.param(
            [group_of(label("a"), templates=["a {}", "a photo"])],
            "groups[0].templates[1]: a template has {} exactly once, where the name of a label goes; 'a photo' has it 0",
            id="template without a place",
        ),
        pytest.param(
            [group_of(label("a"), templates=["{} or {}"])], "groups[0].templates[0]: a template has {}", id="two places"
        ),
        pytest.param(
            [group_of(*MANY, templates=["a {}", "one {}"]), group_of(*MANY, name="h", templates=["{}", "my {}"])],
            "groups: all groups together have 4100 prompts, templates filled in; at most 4096",
            id="many prompts",
        ),
        # What is too long is refused before its members are looked at, which are wrong as well.
        pytest.param([group_of(name="")] * 257, "groups: expected 1 to 256 groups, got 257", id="many groups"),
        pytest.param(
            [group_of(*[label("")] * 2049, name=name) for name in "gh"],
            "groups: all groups together have 4098 labels; at most 4096",
            id="many labels",
        ),
        pytest.param(
            [group_of(label("a", "b"), name=name, templates=[""] * 2049) for name in "gh"],
            "groups: all groups together have 4098 templates; at most 4096",
            id="many templates that no label uses",
        ),
        pytest.param(
            [group_of(label("", *["red"] * 4096), label("", "blue"))],
            "groups: all groups together have 4097 prompts, templates filled in; at most 4096",
            id="many prompts of one label",
        ),
        pytest.param(
            [group_of(*MANY, templates=["{}" + "a" * 5000])],
            "characters of prompts, templates filled in; at most 4194304",
            id="long prompts",
        ),
    ],
)
def test_wrong_groups(client: Client, groups: list[pb.LabelGroup], words: str) -> None:
    """Groups that are wrong are refused, with the path of the field, what was expected, and what was there."""
    assert words in refusal(client, pb.ClassifyRequest(inputs=[pb.Input(text="red")], groups=groups))


def test_wrong_inputs(client: Client) -> None:
    """No input, too many, one without content, and too many scores to return are refused."""
    groups = [group_of(*MANY)]
    red = pb.Input(text="red")

    assert "inputs: expected 1 to 1024 inputs, got 0" in refusal(client, pb.ClassifyRequest(groups=groups))
    assert "got 1025" in refusal(client, pb.ClassifyRequest(inputs=[red] * 1025, groups=groups))
    assert "inputs[1]: set text or image" in refusal(
        client, pb.ClassifyRequest(inputs=[red, pb.Input()], groups=groups)
    )
    assert "top_k: 1024 inputs have 1049600 scores" in refusal(
        client, pb.ClassifyRequest(inputs=[red] * 1024, groups=groups)
    )
    many = [group_of(label("red"), name=f"g{number}") for number in range(65)]
    assert "groups: 1024 inputs with 65 groups each have 66560 lists of scores; at most 65536" in refusal(
        client, pb.ClassifyRequest(inputs=[red] * 1024, groups=many, top_k=1)
    )


def refusal(client: Client, request: pb.ClassifyRequest) -> str:
    """The message of the INVALID_ARGUMENT that a request gets."""
    stub = encoder_service_pb2_grpc.EncoderServiceStub(client._channel)
    with pytest.raises(grpc.RpcError) as failure:
        stub.Classify(request)
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return failure.value.details() or ""
