from random import Random

import numpy as np
import pytest
import torch

from lookwire_export import train
from lookwire_export.captions import COLOUR_WORDS, KIND_WORDS, varied
from lookwire_export.garments import ALL, COLOURS, HELD_OUT, KINDS, PATTERNS
from lookwire_export.recall import EVALUATION_SEED
from lookwire_export.reference import Reference
from lookwire_export.sources.open_clip_models import create
from lookwire_export.train import SEEN, Batches, Settings, encode_short, loss_of

SETTINGS = Settings(steps=25, batch=12, drawings=2)


@pytest.fixture
def batches(tiny: Reference) -> Batches:
    drawn = np.random.default_rng(0).integers(0, 256, (len(SEEN), SETTINGS.drawings, 32, 32, 3), np.uint8)
    return Batches(drawn, tiny, SETTINGS)


def test_training_never_sees_what_is_held_out() -> None:
    """The combinations of training are all but the held-out ones, and its seeds stay below the evaluation's."""
    assert set(ALL) - set(HELD_OUT) == set(SEEN)
    assert Settings().drawings <= EVALUATION_SEED


def test_batch_marks_which_caption_is_true_of_which_image(batches: Batches) -> None:
    """Full captions are true of their own image only, partial ones of at least their own."""
    pixels, ids, matches = next(batches)

    assert tuple(pixels.shape) == (12, 3, 32, 32)
    assert tuple(ids.shape) == (24, train.TOKENS)
    assert torch.equal(torch.eye(12, dtype=torch.bool), matches[:, :12])
    assert bool(matches[:, 12:].diagonal().all())


def test_no_caption_is_cut(tiny: Reference) -> None:
    """The longest caption that training can make fits into the tokens that it uses."""
    rng = Random(0)
    drawn = [varied(rng, rng.choice(KINDS), rng.choice(COLOURS), rng.choice(PATTERNS)) for _ in range(3000)]

    lengths = tiny.tokenize(drawn).argmax(dim=-1) + 1

    assert int(lengths.max()) <= train.TOKENS


def test_short_text_is_encoded_as_open_clip_does(tiny: Reference) -> None:
    """Training's cut text tower gives open_clip's embedding."""
    ids = tiny.tokenize(["a red dress", "plain blue trousers"])

    with torch.no_grad():
        short, reference = encode_short(tiny.model, ids[:, :8]), tiny.model.encode_text(ids, normalize=True)

    assert float((short - reference).abs().max()) < 1e-5


def test_training_lowers_the_loss(tiny: Reference, batches: Batches) -> None:
    """A few steps on one batch lower its loss by a third."""
    torch.manual_seed(0)
    model = create(tiny.architecture).model
    batch = next(batches)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = loss_of(model, *batch).item()

    for _ in range(SETTINGS.steps):
        optimizer.zero_grad()
        loss = loss_of(model, *batch)
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.67 * first


def test_varied_captions_name_what_they_are_given() -> None:
    """A caption contains a word for each factor given, and no word of a factor left out."""
    rng = Random(5)

    for _ in range(200):
        caption = varied(rng, None, "red", None)
        assert "red" in caption
        assert not any(word in caption for words in KIND_WORDS.values() for word in words)
        both = varied(rng, "hat", "grey", None)
        assert any(word in both for word in KIND_WORDS["hat"])
        assert any(word in both for word in COLOUR_WORDS["grey"])
