"""The session that stacks rows: what each request of a batch gets back."""

from collections.abc import Mapping

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from lookwire_server.errors import InvalidArgument, LookwireError
from lookwire_server.models.config import ModelConfig, from_message
from lookwire_server.models.model import Request, Tensor
from lookwire_server.models.session import StackedSession

RAGGED = """
name: "m" backend: "test" max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true optional: true },
  { name: "w" data_type: TYPE_FP32 dims: [-1] allow_ragged_batch: true optional: true },
  { name: "z" data_type: TYPE_FP32 dims: [2] }
]
output [
  { name: "like_w" data_type: TYPE_FP32 dims: [-1] },
  { name: "y" data_type: TYPE_FP32 dims: [2] },
  { name: "like_x" data_type: TYPE_FP32 dims: [-1] }
]
%s
"""
SCATTER = 'batch_output [{ target_name: %s kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "%s" }]'
PADDED = """
name: "m" backend: "test" max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [-1] optional: true },
  { name: "z" data_type: TYPE_FP32 dims: [2] }
]
output [{ name: "y" data_type: TYPE_FP32 dims: [-1] }]
parameters { key: "pad_value" value { string_value: "0" } }
"""


def config(text: str) -> ModelConfig:
    return from_message(text_format.Parse(text, model_config_pb2.ModelConfig()))


def floats(*values: float) -> Tensor:
    return np.array([values], np.float32)


def answered(session: StackedSession, *requests: Request) -> list[Mapping[str, Tensor]]:
    """The outputs of each request of one batch, none of which fails."""
    answers = session.execute(requests).answers
    return [answer for answer in answers if not isinstance(answer, LookwireError)]


def test_outputs_of_ragged_inputs_have_rows() -> None:
    """An output that the config does not scatter is handed out by rows, though an input is ragged."""
    session = StackedSession(config(RAGGED % ""), lambda inputs: {"y": inputs["z"]})
    first = Request({"x": floats(0, 0, 0), "z": floats(1, 1)})
    second = Request({"x": np.zeros((2, 1), np.float32), "z": np.array([[2, 2], [3, 3]], np.float32)})

    answers = answered(session, first, second)

    assert [answer["y"].tolist() for answer in answers] == [[[1, 1]], [[2, 2], [3, 3]]]


def test_scattered_outputs_have_the_shapes_of_their_sources() -> None:
    """Each output that batch_output names gets the shapes of its own source, the others rows."""
    scatter = SCATTER % ('"like_x"', "x") + SCATTER % ('"like_w"', "w")
    session = StackedSession(
        config(RAGGED % scatter),
        lambda inputs: {"like_w": -inputs["w"], "y": inputs["z"], "like_x": 2 * inputs["x"]},
    )
    first = Request({"x": floats(1, 2, 3), "w": floats(1), "z": floats(1, 1)})
    second = Request({"x": floats(4), "w": floats(2, 3), "z": floats(2, 2)})

    one, two = answered(session, first, second)

    assert [one["like_w"].tolist(), one["y"].tolist(), one["like_x"].tolist()] == [[[-1]], [[1, 1]], [[2, 4, 6]]]
    assert [two["like_w"].tolist(), two["y"].tolist(), two["like_x"].tolist()] == [[[-2, -3]], [[2, 2]], [[8]]]


def test_scattered_output_without_its_source() -> None:
    """Where an optional source is not sent, its output is handed out by rows."""
    session = StackedSession(config(RAGGED % SCATTER % ('"like_x"', "x")), lambda inputs: {"like_x": inputs["z"]})

    answers = answered(session, Request({"z": floats(1, 1)}), Request({"z": floats(2, 2)}))

    assert [answer["like_x"].tolist() for answer in answers] == [[[1, 1]], [[2, 2]]]


def test_scattered_output_of_another_size() -> None:
    """A model that gives more or fewer elements than the source had fails."""
    session = StackedSession(config(RAGGED % SCATTER % ('"like_x"', "x")), lambda inputs: {"like_x": inputs["x"][1:]})

    with pytest.raises(RuntimeError, match="output 'like_x' has 2 elements for a ragged batch of 3"):
        session.execute([Request({"x": floats(1, 2, 3), "z": floats(1, 1)})])


@pytest.mark.parametrize(
    ("scatter", "words"),
    [
        (SCATTER % ('"y"', "nothing"), "source_input 'nothing' is not an input with allow_ragged_batch"),
        (SCATTER % ('"y"', "z"), "source_input 'z' is not an input with allow_ragged_batch"),
        (SCATTER % ('"y"', 'x" source_input: "w'), r"must have one source_input, got \['x', 'w'\]"),
        (SCATTER % ('["y", "nothing"]', "x"), "target_name 'nothing' is not an output"),
        (SCATTER % ('["y", "y"]', "x"), "target_name 'y' is named twice"),
    ],
)
def test_scatter_that_is_wrong(scatter: str, words: str) -> None:
    """A batch_output must name outputs, each once, and one ragged input."""
    with pytest.raises(InvalidArgument, match=words):
        config(RAGGED % scatter)


def test_padded_input_that_is_not_sent() -> None:
    """A batch without its optional padded input is answered, with nothing cut."""
    session = StackedSession(config(PADDED), lambda inputs: {"y": inputs["z"]})

    (answer,) = answered(session, Request({"z": floats(1, 2)}))

    assert answer["y"].tolist() == [[1, 2]]
