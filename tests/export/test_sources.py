import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import open_clip
import pytest
import torch
from open_clip.factory import _find_checkpoint_in_dir
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, SiglipModel

from lookwire_export import sources
from lookwire_export.reference import Reference
from lookwire_export.sources import open_clip_models, transforms, weights
from tests.export.conftest import CONFIG, TINY, TRANSFORM

PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (45, 70, 3), np.uint8))
TEXTS = ["a red dress", "", "Trousers, 2 for 30"]

Weights = Mapping[str, Any]


def prefixed(state: Weights) -> Weights:
    return {f"module.{name}": weight for name, weight in state.items()}


WRITERS = {
    "bare": lambda state, file: torch.save(dict(state), file),
    "model_state_dict": lambda state, file: torch.save({"model_state_dict": state, "epoch": 3, "optimizer": {}}, file),
    "state_dict": lambda state, file: torch.save(
        {"state_dict": state, "name": "run 7", "scaler": {"scale": 2.0}}, file
    ),
    "module.": lambda state, file: torch.save(prefixed(state), file),
    "both": lambda state, file: torch.save({"state_dict": prefixed(state)}, file),
    "safetensors": lambda state, file: save_file(dict(state), file),
    "old pickle": lambda state, file: torch.save(dict(state), file, _use_new_zipfile_serialization=False),
}


def vectors(reference: Reference) -> tuple[Any, Any]:
    pixels = reference.preprocess(PHOTO)[None]
    return reference.encode_image(pixels), reference.encode_text(reference.tokenize(TEXTS))


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("library", ["tiny", "clip", "siglip"])
def test_every_form_of_a_checkpoint_holds_the_same_weights(
    form: str, library: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Weights are found in every form that training programs write them, and nothing else with them."""
    state = request.getfixturevalue(library).model.state_dict()
    WRITERS[form](state, tmp_path / "tuned.pt")

    found = weights.read(tmp_path / "tuned.pt")

    assert set(found) == set(state)
    assert all(torch.equal(found[name], weight) for name, weight in state.items())


@pytest.mark.parametrize("library", ["tiny", "clip", "siglip"])
def test_fine_tune_gives_its_live_models_vectors(
    library: str, request: pytest.FixtureRequest, tmp_path: Path, tiny_transform: Path
) -> None:
    """A fine-tuned checkpoint in a training program's form gives the vectors of the live model, to the last bit."""
    live: Reference = request.getfixturevalue(library)
    WRITERS["both"](live.model.state_dict(), tmp_path / "tuned.pt")

    if library == "tiny":
        loaded = sources.load(TINY, str(tmp_path / "tuned.pt"), preprocess=str(tiny_transform))
    else:
        directory = request.getfixturevalue(f"{library}_directory")
        loaded = sources.load(str(directory), str(tmp_path / "tuned.pt"))

    for found, expected in zip(vectors(loaded), vectors(live), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_become_float32(tiny: Reference, tmp_path: Path, dtype: Any) -> None:
    """Weights that are stored in half precision are read as float32 of the same value."""
    halves = {name: weight.to(dtype) for name, weight in tiny.model.state_dict().items()}
    torch.save(halves, tmp_path / "half.pt")

    found = weights.read(tmp_path / "half.pt")

    assert {weight.dtype for weight in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], weight.float()) for name, weight in halves.items())


def test_file_takes_the_place_of_a_directorys_weights(
    siglip_directory: Path, siglip: Reference, tmp_path: Path
) -> None:
    """With --pretrained, a directory's own weights are not used."""
    other = {name: weight * 1.5 for name, weight in siglip.model.state_dict().items()}
    torch.save(other, tmp_path / "other.pt")

    loaded = sources.load(str(siglip_directory), str(tmp_path / "other.pt"))

    assert loaded.sha256 == weights.digest([tmp_path / "other.pt"]) != siglip.sha256
    assert not torch.allclose(vectors(loaded)[0], vectors(siglip)[0], rtol=0.1)


def test_weights_of_openais_archives(tiny: Reference, tiny_transform: Path, tmp_path: Path) -> None:
    """The weights that OpenAI's archives hold have three numbers beside them, which are left out."""
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    state = {name: weight.half() if weight.ndim else weight for name, weight in tiny.model.state_dict().items()}
    torch.save(state | {name: torch.tensor(number) for name, number in numbers.items()}, tmp_path / "openai.pt")

    loaded = sources.load(TINY, str(tmp_path / "openai.pt"), preprocess=str(tiny_transform))

    for found, expected in zip(vectors(loaded), vectors(tiny), strict=True):
        assert torch.allclose(found, expected, atol=0.02)


def test_directory_of_open_clip(tiny: Reference, tiny_file: Path, tmp_path: Path) -> None:
    """A local-dir: gives architecture, transform and weights."""
    config = {"model_cfg": CONFIG, "preprocess_cfg": TRANSFORM}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes(tiny_file.read_bytes())

    loaded = sources.load(f"local-dir:{tmp_path}", None)

    assert (loaded.image, loaded.sha256, loaded.architecture) == (tiny.image, tiny.sha256, tmp_path.name)
    for found, expected in zip(vectors(loaded), vectors(tiny), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("taken", "beside"),
    [
        ("open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
        ("open_clip_model.safetensors", "model.safetensors"),
        ("pytorch_model.pth", "other.safetensors"),
        ("tuned.safetensors", "optimizer.bin"),
        ("tuned.bin", None),
    ],
)
def test_directory_of_open_clip_gives_the_weights_that_open_clip_takes(
    tiny_file: Path, tmp_path: Path, taken: str, beside: str | None
) -> None:
    """Of the files in a directory that is taken which open_clip takes, and a lone one whatever its name."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": TRANSFORM}))
    (tmp_path / taken).write_bytes(tiny_file.read_bytes())
    if beside:
        (tmp_path / beside).write_bytes(b"not this")

    assert _find_checkpoint_in_dir(tmp_path) == str(tmp_path / taken)
    assert sources.load(f"local-dir:{tmp_path}", None).sha256 == weights.digest([tiny_file])


def test_directory_of_open_clip_with_a_tokenizer_of_transformers(siglip_directory: Path, tmp_path: Path) -> None:
    """Where the configuration names a tokenizer, the directory's own files are it, with open_clip's cleaning."""
    text = CONFIG["text_cfg"] | {  # type: ignore[operator]
        "context_length": 16,
        "vocab_size": 400,
        "hf_tokenizer_name": "org/not-there",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "pool_type": "last",
    }
    config = {"model_cfg": CONFIG | {"text_cfg": text, "custom_text": True}, "preprocess_cfg": TRANSFORM}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((siglip_directory / file).read_bytes())
    model = open_clip_models.build(config["model_cfg"], "tiny")  # type: ignore[arg-type]
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")

    loaded = sources.load(f"local-dir:{tmp_path}", None)

    assert (loaded.text.clean, loaded.text.pad_id, loaded.text.context_length) == ("canonicalize", 1, 16)
    assert torch.equal(loaded.tokenize(["A_red dress!"]), loaded.tokenize(["a red dress"]))
    assert isinstance(loaded.model, open_clip.CustomTextCLIP)


def test_a_tag_names_a_transform_for_other_architectures_too(tiny_file: Path) -> None:
    """A transform that all architectures with a tag share may be told by that tag."""
    loaded = sources.load(TINY, str(tiny_file), preprocess="webli")

    assert (loaded.image.mean, loaded.image.resize) == ((0.5, 0.5, 0.5), "squash")


def test_a_tag_names_a_transform_for_directories_too(clip_directory: Path, tiny_file: Path, tmp_path: Path) -> None:
    """A directory of either library takes --preprocess TAG; the images are then prepared as open_clip does for the tag."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    (tmp_path / "model.safetensors").write_bytes(tiny_file.read_bytes())

    for directory in (f"local-dir:{tmp_path}", str(clip_directory)):
        loaded = sources.load(directory, None, preprocess="webli")

        assert (loaded.image.mean, loaded.image.resize, loaded.image.crop) == ((0.5, 0.5, 0.5), "squash", "round")
        assert torch.equal(loaded.preprocess(PHOTO), transforms.preprocess(loaded.image)(PHOTO))


def test_a_file_of_open_clip_names_a_transform_for_transformers_too(clip_directory: Path, tmp_path: Path) -> None:
    """A preprocess_cfg that is given for a directory of transformers is followed in open_clip's words."""
    told = TRANSFORM | {"mean": [0.1, 0.2, 0.3], "resize_mode": "squash"}
    (tmp_path / "transform.json").write_text(json.dumps(told))

    loaded = sources.load(str(clip_directory), None, preprocess=str(tmp_path / "transform.json"))

    assert (loaded.image.mean, loaded.image.resize) == ((0.1, 0.2, 0.3), "squash")


def test_published_mean_and_std_alone_are_the_transform_of_their_time(tiny_file: Path, tmp_path: Path) -> None:
    """A directory that says mean and std only was written when open_clip resized in one way."""
    partial = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": partial}))
    (tmp_path / "model.safetensors").write_bytes(tiny_file.read_bytes())

    loaded = sources.load(f"local-dir:{tmp_path}", None)

    assert (loaded.image.mean, loaded.image.resize, loaded.image.interpolation) == (
        (0.1, 0.2, 0.3),
        "shortest",
        "bicubic",
    )


@pytest.mark.parametrize(("library", "kind"), [("clip", CLIPModel), ("siglip", SiglipModel)])
def test_directory_of_transformers_is_what_transformers_makes_of_it(
    library: str, kind: Any, request: pytest.FixtureRequest
) -> None:
    """The reference of a directory gives the vectors of `from_pretrained`, and its rules are the files' own."""
    loaded: Reference = request.getfixturevalue(library)
    model = kind.from_pretrained(request.getfixturevalue(f"{library}_directory")).eval()
    pixels, ids = loaded.preprocess(PHOTO)[None], loaded.tokenize(TEXTS)

    with torch.no_grad():
        images, texts = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=ids)
    assert torch.allclose(images.pooler_output, loaded.encode_image(pixels), atol=1e-5)
    assert torch.allclose(texts.pooler_output, loaded.encode_text(ids), atol=1e-5)
    assert (loaded.image.size, loaded.image.resize) == (32, "shortest" if library == "clip" else "squash")
    assert (loaded.text.clean, loaded.text.context_length) == ("none", 77 if library == "clip" else 16)
    assert loaded.activation == ("quick_gelu" if library == "clip" else "gelu_tanh")
    assert (loaded.logit_bias is None) == (library == "clip")


@pytest.mark.parametrize("recorded", [True, False])
def test_cached_repository_of_transformers_needs_no_network(
    clip: Reference, clip_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """What transformers fetched before is found in the cache, whether or not that records the lack of open_clip_config.json."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--org--fashion"
    shutil.copytree(clip_directory, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    if recorded:
        (cached / ".no_exist" / "abc").mkdir(parents=True)
        (cached / ".no_exist" / "abc" / "open_clip_config.json").touch()

    loaded = sources.load("hf-hub:org/fashion", None)

    assert (loaded.architecture, loaded.sha256) == ("org/fashion", clip.sha256)


def test_shards_are_one_checkpoint(clip: Reference, clip_directory: Path, tmp_path: Path) -> None:
    """Weights in several files, with an index, are read from all of them."""
    for file in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((clip_directory / file).read_bytes())
    state = clip.model.state_dict()
    names = list(state)
    halves = {"model-1.safetensors": names[: len(names) // 2], "model-2.safetensors": names[len(names) // 2 :]}
    for shard, inside in halves.items():
        save_file({name: state[name] for name in inside}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, inside in halves.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    loaded = sources.load(str(tmp_path), None)

    assert torch.equal(vectors(loaded)[0], vectors(clip)[0])


def test_digest_is_of_every_shard(clip: Reference, clip_directory: Path, tmp_path: Path) -> None:
    """Checkpoints that differ in one shard have different digests, though their index is the same."""
    (directory := tmp_path / "sharded").mkdir()
    for file in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (directory / file).write_bytes((clip_directory / file).read_bytes())
    state = dict(clip.model.state_dict())
    last = list(state)[-1]
    index = {"weight_map": {name: f"model-{1 + (name == last)}.safetensors" for name in state}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({name: weight for name, weight in state.items() if name != last}, directory / "model-1.safetensors")
    digests = []
    for factor in (1, 2):
        save_file({last: state[last] * factor}, directory / "model-2.safetensors")
        digests.append(sources.load(str(directory), None).sha256)

    assert digests[0] != digests[1]


def test_numbering_of_positions_is_no_weight(clip: Reference, clip_directory: Path, tmp_path: Path) -> None:
    """Older transformers stored position_ids, which newer ones make themselves."""
    state = {**clip.model.state_dict(), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(state, tmp_path / "old.bin")

    loaded = sources.load(str(clip_directory), str(tmp_path / "old.bin"))

    assert torch.equal(vectors(loaded)[1], vectors(clip)[1])
