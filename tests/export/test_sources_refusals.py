"""What cannot be loaded: the message says what was wrong, what was expected, and what to do."""

import argparse
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from lookwire_export import sources
from lookwire_export.reference import ExportError, Reference
from lookwire_export.sources import open_clip_models, transforms, weights
from tests.export.conftest import CONFIG, TINY, TRANSFORM


def refusal(model: Path | str, pretrained: Path | str | None, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        sources.load(str(model), None if pretrained is None else str(pretrained), **options)
    return str(caught.value)


def copied(directory: Path, target: Path, *, without: str = "") -> Path:
    target.mkdir()
    for file in directory.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def edited(directory: Path, target: Path, file: str, **changes: Any) -> Path:
    copied(directory, target)
    content = json.loads((target / file).read_text()) | changes
    (target / file).write_text(json.dumps(content))
    return target


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub is out of reach, and its cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


# Names.


def test_misspelt_architecture(tiny_file: Path) -> None:
    """A misspelt name is answered with those that it may have meant."""
    message = refusal("ViT-B32", tiny_file)

    assert "no architecture 'ViT-B32'" in message
    assert "did you mean" in message
    assert "ViT-B-32" in message


def test_unknown_tag_lists_the_tags() -> None:
    """A tag that the architecture does not have is answered with those that it has."""
    message = refusal("ViT-B-32-quickgelu", "opnai")

    assert "--pretrained opnai is neither a file" in message
    assert "metaclip_400m" in message


def test_architecture_alone() -> None:
    """An architecture without weights asks for them."""
    assert "name its weights by --pretrained; its tags: openai" in refusal("ViT-L-14-336-quickgelu", None)


@pytest.mark.parametrize(
    ("model", "reason"), [("coca_ViT-B-32", "pooled at a fixed place"), ("coca_roberta-ViT-B-32", "generates captions")]
)
def test_coca_is_refused_before_anything_is_fetched(model: str, reason: str) -> None:
    """A family that is not supported is refused by name, with the reason."""
    message = refusal(model, "laion2b_s13b_b90k")

    assert f"{model} is a CoCa, which is not supported" in message
    assert reason in message


def test_naflex_is_refused(siglip_directory: Path, tmp_path: Path) -> None:
    """NaFlex is refused by name in both libraries."""
    of_transformers = edited(siglip_directory, tmp_path / "a", "config.json", model_type="siglip2")
    vision = {"timm_model_name": "naflexvit_base_patch16_siglip"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG | {"vision_cfg": vision}}))

    assert "is a NaFlex SigLIP 2" in refusal(of_transformers, None)
    assert "is a NaFlex, which is not supported" in refusal(f"local-dir:{tmp_path}", None)


def test_other_models_of_transformers_are_refused(clip_directory: Path, tmp_path: Path) -> None:
    """A directory with another model says which are supported."""
    other = edited(clip_directory, tmp_path / "a", "config.json", model_type="align")

    assert "has model_type 'align'; supported: clip, siglip" in refusal(other, None)


def test_activation_of_a_tag(tmp_path: Path) -> None:
    """A tag that was trained with QuickGELU is refused for the architecture with GELU, and the right one is named."""
    assert "the tag openai was trained with QuickGELU, but ViT-B-32 has GELU" in (
        message := refusal("ViT-B-32", "openai")
    )
    assert "use ViT-B-32-quickgelu" in message
    torch.save({"a": torch.zeros(1)}, tmp_path / "tuned.pt")
    assert "use ViT-B-32-quickgelu" in refusal("ViT-B-32", tmp_path / "tuned.pt", preprocess="openai")


@pytest.mark.parametrize("library", ["open_clip", "directory", "transformers"])
def test_activation_of_a_told_configuration(
    library: str, tiny_file: Path, clip_directory: Path, tmp_path: Path
) -> None:
    """A configuration that tells the transform tells the activation too: another than the model's is refused."""
    gelu = CONFIG | {"quick_gelu": False}
    (tmp_path / "told.json").write_text(json.dumps({"model_cfg": gelu, "preprocess_cfg": TRANSFORM}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": TRANSFORM}))
    model = {"open_clip": TINY, "directory": f"local-dir:{tmp_path}", "transformers": str(clip_directory)}[library]

    file = clip_directory / "model.safetensors" if library == "transformers" else tiny_file

    message = refusal(model, file, preprocess=str(tmp_path / "told.json"))

    assert f"told.json was trained with GELU, but {Path(model).name} has QuickGELU" in message
    assert "give local-dir:DIR, with the open_clip_config.json" in message
    (tmp_path / "told.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": TRANSFORM}))
    assert "use ViT-B-32-quickgelu" in refusal("ViT-B-32", tiny_file, preprocess=str(tmp_path / "told.json"))


def test_activation_of_openais_archives(tmp_path: Path) -> None:
    """Weights of OpenAI's archives, which their three numbers betray, are refused for an architecture with GELU."""
    state = open_clip_models.build(CONFIG | {"quick_gelu": False}, "gelu").state_dict()
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG | {"quick_gelu": False}, "preprocess_cfg": TRANSFORM})
    )
    torch.save(state | {"input_resolution": torch.tensor(32)}, tmp_path / "open_clip_pytorch_model.bin")

    message = refusal(f"local-dir:{tmp_path}", None)

    assert "of an archive of OpenAI's, was trained with QuickGELU, but" in message
    assert "has GELU" in message


@pytest.mark.usefixtures("offline")
def test_every_tag_is_known_or_refused_by_name() -> None:
    """Of all that open_clip publishes, each is either wanted from the hub, or refused with a reason and what can be loaded."""
    for architecture, tag in open_clip.list_pretrained():
        message = refusal(architecture, tag)

        if "was trained with" in message:
            message = refusal(message.rpartition(": use ")[2], tag)
        assert "cannot be reached" in message or "is a CoCa" in message


@pytest.mark.usefixtures("offline")
def test_only_activation_that_open_clip_has(caplog: pytest.LogCaptureFixture) -> None:
    """A tag that open_clip's only architecture for it does not fit is loaded as open_clip does, and that is logged."""
    assert "cannot be reached" in refusal("roberta-ViT-B-32", "laion2b_s12b_b32k")

    assert "trained with GELU, and has roberta-ViT-B-32 with QuickGELU only" in caplog.text


# Transforms.


def test_transform_of_a_file_must_be_told(tmp_path: Path) -> None:
    """A file of weights does not say its transform: the architecture's tags are listed, and the one that fits is named."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "tuned.pt")

    message = refusal("ViT-B-32-quickgelu", tmp_path / "tuned.pt")

    assert "does not say how images are prepared for it: tell it by --preprocess" in message
    assert "openai, laion400m_e31" in message
    assert "write --preprocess openai" in message


def test_tags_that_differ_are_not_chosen_from(tmp_path: Path) -> None:
    """Where the tags have different transforms, none is proposed."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "tuned.pt")
    architecture = next(
        name
        for name in open_clip.list_models()
        if len(
            {
                str([transforms.of_tag(name, tag)[key] for key in transforms.NEEDED])
                for tag in open_clip.list_pretrained_tags_by_model(name)
            }
        )
        > 1
    )

    message = refusal(architecture, tmp_path / "tuned.pt")

    assert "tell it by --preprocess" in message
    assert "write --preprocess" not in message


def test_partial_transform(tiny_file: Path, tmp_path: Path) -> None:
    """A transform that leaves something open is not completed by guessing, whether told or in a directory."""
    partial = {"mean": TRANSFORM["mean"], "std": TRANSFORM["std"]}
    (tmp_path / "partial.json").write_text(json.dumps(partial))
    config = {"model_cfg": CONFIG, "preprocess_cfg": partial | {"resize_mode": "squash"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(tiny_file.read_bytes())

    told = refusal(TINY, tiny_file, preprocess=str(tmp_path / "partial.json"))
    of_directory = refusal(f"local-dir:{tmp_path}", None)

    assert "partial.json lacks interpolation, resize_mode" in told
    assert 'open_clip itself would take {"interpolation": "bicubic", "resize_mode": "shortest"}' in told
    assert f"{tmp_path.name} does not say how images are prepared: it lacks interpolation" in of_directory


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resize_mode": "longest"}, "resizes by 'longest'; supported: shortest, squash"),
        ({"interpolation": "nearest"}, "resizes by 'nearest'; supported: bicubic, bilinear"),
        ({"mean": [0.5]}, "has mean [0.5]; expected three numbers"),
    ],
)
def test_transform_that_a_manifest_cannot_say(
    tiny_file: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """A transform beyond what the server does is refused by name."""
    (tmp_path / "transform.json").write_text(json.dumps(TRANSFORM | changes))

    assert words in refusal(TINY, tiny_file, preprocess=str(tmp_path / "transform.json"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do_resize": False}, "has do_resize false"),
        ({"do_normalize": False}, "has do_normalize false"),
        ({"resample": 1}, "resizes by Pillow's filter 1"),
        ({"rescale_factor": 1 / 127.5}, "has rescale_factor 0.00784"),
        ({"size": {"shortest_edge": 36}}, "resizes to {'shortest_edge': 36}; supported"),
        (
            {"crop_size": {"height": 24, "width": 24}},
            "crops to {'height': 24, 'width': 24}, but its image tower takes 32",
        ),
        ({"do_center_crop": False}, "without cropping"),
        ({"resample": "bicubic"}, "resizes by Pillow's filter 'bicubic'"),
        ({"image_mean": [0.5, 0.5]}, "has image_mean (0.5, 0.5); expected three numbers"),
        ({"image_std": 0.5}, "has image_std 0.5; expected three numbers"),
        ({"size": "large"}, "preprocessor_config.json that transformers cannot take"),
        ({"rescale_factor": "1/255"}, "preprocessor_config.json that transformers cannot take"),
        ({"image_processor_type": "ViTImageProcessor"}, "prepares images by ViTImageProcessor"),
    ],
)
def test_processor_that_a_manifest_cannot_say(
    clip_directory: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """A processor of transformers that does something else is refused by name."""
    directory = edited(clip_directory, tmp_path / "a", "preprocessor_config.json", **changes)

    assert words in refusal(directory, None)


@pytest.mark.parametrize(
    ("tower", "changes", "words"),
    [
        ("text_config", {"hidden_size": "x"}, "cannot build a by its config.json"),
        ("text_config", {"hidden_act": "nope"}, "nope"),
        ("text_config", {"num_attention_heads": 0}, "cannot build a by its config.json"),
        ("vision_config", {"image_size": [32, 32]}, "image_size"),
        ("vision_config", {"patch_size": 0}, "cannot build a by its config.json"),
    ],
)
def test_configuration_of_transformers_that_cannot_be_built(
    clip_directory: Path, tmp_path: Path, tower: str, changes: dict[str, Any], words: str
) -> None:
    """A config.json with a value of the wrong kind is answered with a sentence that says which."""
    whole = json.loads((clip_directory / "config.json").read_text())[tower]
    directory = edited(clip_directory, tmp_path / "a", "config.json", **{tower: whole | changes})

    assert words in refusal(directory, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_cfg": CONFIG, "preprocess_cfg": [1]}, "is no configuration of open_clip"),
        ({"model_cfg": CONFIG | {"embed_dim": "x"}, "preprocess_cfg": TRANSFORM}, "cannot build"),
        ({"model_cfg": CONFIG | {"text_cfg": {"width": None}}, "preprocess_cfg": TRANSFORM}, "cannot build"),
        (
            {"model_cfg": CONFIG | {"text_cfg": {"tokenizer_kwargs": {"nope": 1}}}, "preprocess_cfg": TRANSFORM},
            "does not take the tokenizer_kwargs {'nope': 1}",
        ),
    ],
)
def test_configuration_of_open_clip_that_cannot_be_built(
    tiny_file: Path, tmp_path: Path, content: dict[str, Any], words: str
) -> None:
    """An open_clip_config.json with a value of the wrong kind is answered with a sentence."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))

    assert words in refusal(f"local-dir:{tmp_path}", tiny_file)


@pytest.mark.parametrize("name", ["org/name@main", "a/b/c", "", "org/na me"])
def test_name_that_the_hub_cannot_have(name: str) -> None:
    """A name that no repository can have, one with a revision too, says what is expected."""
    assert f"{name!r} cannot be a repository of the hub: expected ORG/NAME" in refusal(f"hf-hub:{name}", None)


def test_tag_that_tells_no_transform(clip_directory: Path) -> None:
    """A --preprocess for a directory that is no file and no tag, or a tag of several transforms, is refused."""
    assert "--preprocess opnai is neither a JSON file nor a tag of open_clip" in refusal(
        clip_directory, None, preprocess="opnai"
    )
    assert "v1 is a tag under which open_clip's models have different transforms" in refusal(
        clip_directory, None, preprocess="v1"
    )


def test_directory_without_a_processor(clip_directory: Path, tmp_path: Path) -> None:
    """A directory that does not say its transform asks for it, and takes it by --preprocess."""
    bare = copied(clip_directory, tmp_path / "a", without="preprocessor_config.json")

    assert "has no preprocessor_config.json" in refusal(bare, None)
    told = sources.load(str(bare), None, preprocess=str(clip_directory / "preprocessor_config.json"))
    assert told.image.size == 32


def test_directory_without_a_tokenizer(clip_directory: Path, tmp_path: Path) -> None:
    """A directory without a tokenizer says which files it wants, and takes them from --tokenizer."""
    bare = copied(clip_directory, tmp_path / "a", without="tokenizer.json")

    assert "holds no tokenizer" in refusal(bare, None)
    assert sources.load(str(bare), None, tokenizer=clip_directory).text.context_length == 77


def test_tokenizer_of_another_model(siglip_directory: Path, clip_directory: Path) -> None:
    """A tokenizer with more words than the model is another model's."""
    assert "it is another model's" in refusal(siglip_directory, None, tokenizer=clip_directory)


def test_tokenizer_that_would_be_ignored(tiny_file: Path, tiny_transform: Path, clip_directory: Path) -> None:
    """A --tokenizer for an architecture with open_clip's own is refused."""
    message = refusal(TINY, tiny_file, preprocess=str(tiny_transform), tokenizer=clip_directory)

    assert "has open_clip's own tokenizer: leave --tokenizer out" in message


# Weights.


def test_missing_file(clip_directory: Path, tmp_path: Path) -> None:
    """A file that is not there is named; a tag makes no sense where the model has its own weights."""
    assert "none.pt is neither a file" in refusal(TINY, tmp_path / "none.pt")
    assert "there is no file openai" in refusal(clip_directory, "openai")


def test_checkpoint_of_another_architecture(
    tiny: Reference, tiny_file: Path, tiny_transform: Path, tmp_path: Path
) -> None:
    """Missing and unexpected weights are counted and the first of each is named; so are shapes."""
    state = dict(tiny.model.state_dict())
    shapes = state | {"positional_embedding": torch.zeros(32, 16), "visual.proj": torch.zeros(32, 8)}
    names = {name: weight for name, weight in state.items() if not name.startswith("visual.ln_pre")} | {
        "visual.blocks.0.weight": torch.zeros(2)
    }
    torch.save(shapes, tmp_path / "shapes.pt")
    torch.save(names, tmp_path / "names.pt")

    of_shapes = refusal(TINY, tmp_path / "shapes.pt", preprocess=str(tiny_transform))
    of_names = refusal(TINY, tmp_path / "names.pt", preprocess=str(tiny_transform))

    assert f"shapes.pt holds no weights for {TINY}: 2 have another shape" in of_shapes
    assert "positional_embedding, [32, 16] where" in of_shapes
    assert "has [77, 16]" in of_shapes
    assert f"2 of {len(state)} weights are missing, the first is visual.ln_pre.weight" in of_names
    assert "1 are unexpected, the first is visual.blocks.0.weight" in of_names


def test_position_embedding_of_another_image_size(tiny: Reference, tiny_transform: Path, tmp_path: Path) -> None:
    """A checkpoint that was trained at another image size is refused; open_clip would interpolate it silently."""
    state = dict(tiny.model.state_dict())
    state["visual.positional_embedding"] = torch.zeros(10, 32)
    torch.save(state, tmp_path / "larger.pt")

    message = refusal(TINY, tmp_path / "larger.pt", preprocess=str(tiny_transform))

    assert "visual.positional_embedding, [10, 32]" in message
    assert "has [5, 32]" in message


def test_checkpoint_of_the_other_library(
    tiny_file: Path, tiny_transform: Path, clip: Reference, clip_directory: Path, tmp_path: Path
) -> None:
    """Weights of transformers under a name of open_clip ask for the directory, and the other way round for the name."""
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")

    assert "give the directory with its config.json" in refusal(
        TINY, tmp_path / "clip.pt", preprocess=str(tiny_transform)
    )
    assert "give open_clip's name of the architecture as MODEL" in refusal(clip_directory, tiny_file)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_file(tiny: Reference, tiny_file: Path, tmp_path: Path, suffix: str, share: float) -> None:
    """A file that ends early is damaged, and the message says so."""
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "pt":
        torch.save(tiny.model.state_dict(), whole)
    else:
        whole.write_bytes(tiny_file.read_bytes())
    content = whole.read_bytes()
    (tmp_path / "part").write_bytes(content[: int(share * len(content))])

    with pytest.raises(ExportError, match="damaged"):
        weights.read(tmp_path / "part")


def test_empty_file(tmp_path: Path) -> None:
    """A file without a byte is said to be empty, whatever its name promises."""
    (tmp_path / "model.safetensors").touch()

    with pytest.raises(ExportError, match=r"model\.safetensors is empty \(0 bytes\)"):
        weights.read(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"\x80\x02}q\x00.", b"PK\x03\x04nothing", b"{}", b"\x00" * 100]
)
def test_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    """Whatever is no file of weights is answered with a sentence."""
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ExportError, match=r"damaged|holds no weights"):
        weights.read(tmp_path / "file")


def test_pointer_of_git_lfs(tmp_path: Path) -> None:
    """A file that was cloned without its content is recognised."""
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    with pytest.raises(ExportError, match="Git LFS pointer"):
        weights.read(tmp_path / "model.safetensors")


class Bomb:
    """A pickle that writes a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.target, "executed"))


@pytest.mark.parametrize("how", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_pickle_is_not_executed(tmp_path: Path, how: Any) -> None:
    """A pickle that would run code is refused, and has not run it."""
    how({"state_dict": Bomb(tmp_path / "trace")}, tmp_path / "bomb.pt")

    with pytest.raises(ExportError, match="was not executed"):
        weights.read(tmp_path / "bomb.pt")
    assert not (tmp_path / "trace").exists()


# With a type, which mypy needs where torch is not installed.
exported: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.jit.export


class ScriptBomb(torch.nn.Module):  # type: ignore[misc, unused-ignore]
    """A TorchScript module whose archive prints when torch.jit loads it."""

    @exported
    def __getstate__(self) -> bool:
        return self.training

    @exported
    def __setstate__(self, state: bool) -> None:
        print("executed")  # noqa: T201
        self.training = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_is_not_executed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A TorchScript archive, whose code runs when it is loaded, is refused; how to save its weights is said."""
    torch.jit.save(torch.jit.script(ScriptBomb()), tmp_path / "archive.pt")

    with pytest.raises(ExportError, match=r"TorchScript archive.*was not executed.*torch.jit.load\(file\).state_dict"):
        weights.read(tmp_path / "archive.pt")
    assert "executed" not in capfd.readouterr().out


def test_whole_model(tiny: Reference, tmp_path: Path) -> None:
    """A pickled model is refused, with the way to save its weights."""
    torch.save(tiny.model, tmp_path / "model.pt")

    with pytest.raises(
        ExportError, match=r"a whole pickled model \(open_clip.*torch.save\(model.state_dict\(\), file\)"
    ):
        weights.read(tmp_path / "model.pt")


def test_settings_beside_the_weights(tmp_path: Path) -> None:
    """Weights beside something that only executing could read ask to be saved alone."""
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)}, tmp_path / "run.pt")

    with pytest.raises(ExportError, match=r"more than weights \(argparse.Namespace\); it was not executed"):
        weights.read(tmp_path / "run.pt")


def test_no_weights_at_all(tmp_path: Path) -> None:
    """A torch file without weights says what it found."""
    torch.save({"epoch": 3, "net": {"a": torch.zeros(1)}}, tmp_path / "a.pt")
    torch.save(torch.zeros(3), tmp_path / "b.pt")

    with pytest.raises(
        ExportError, match=r"found 'epoch', 'net'; expected a state dict, bare or under model_state_dict"
    ):
        weights.read(tmp_path / "a.pt")
    with pytest.raises(ExportError, match="holds a Tensor, not weights by name"):
        weights.read(tmp_path / "b.pt")


def test_missing_shard(clip_directory: Path, tmp_path: Path) -> None:
    """An index that names a file that is not there says which."""
    bare = copied(clip_directory, tmp_path / "a", without="model.safetensors")
    (bare / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))

    assert "there is no checkpoint at" in (message := refusal(bare, None))
    assert "model-1.safetensors" in message


def test_directory_without_weights(clip_directory: Path, tmp_path: Path) -> None:
    """A directory without weights says which files it takes."""
    bare = copied(clip_directory, tmp_path / "a", without="model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": TRANSFORM}))

    assert "holds no weights: put one of model.safetensors" in refusal(bare, None)
    assert "holds no weights: put one of open_clip_model.safetensors" in refusal(f"local-dir:{tmp_path}", None)


def test_directory_with_weights_of_several_names(tiny_file: Path, tmp_path: Path) -> None:
    """Of several files that may be the weights none is guessed."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": TRANSFORM}))
    for epoch in (1, 2):
        (tmp_path / f"epoch_{epoch}.safetensors").write_bytes(tiny_file.read_bytes())

    assert "give one by --pretrained; epoch_1.safetensors, epoch_2.safetensors" in refusal(
        f"local-dir:{tmp_path}", None
    )


def test_directory_of_nothing(tmp_path: Path) -> None:
    """A directory without any configuration says which it wants."""
    assert "expected a directory with open_clip_config.json" in refusal(tmp_path, None)


def test_configuration_that_is_none(tmp_path: Path, clip_directory: Path) -> None:
    """A configuration that cannot be read or built is named."""
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert "is no configuration of open_clip with a model_cfg" in refusal(f"local-dir:{tmp_path}", None)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    config = {"model_cfg": CONFIG | {"novelty": 1}, "preprocess_cfg": TRANSFORM}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert "cannot build" in (message := refusal(f"local-dir:{tmp_path}", None))
    assert "novelty" in message
    broken = copied(clip_directory, tmp_path / "a")
    (broken / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(broken, None)


# Without network.


@pytest.mark.usefixtures("offline")
def test_tag_without_network() -> None:
    """A tag that is not in the cache names repository and file, how to get it, and what to write then."""
    message = refusal("ViT-B-32-quickgelu", "openai")

    assert "cannot be reached (HF_HUB_OFFLINE is set)" in message
    assert (
        "open_clip_model.safetensors or open_clip_pytorch_model.bin of timm/vit_base_patch32_clip_224.openai" in message
    )
    assert "`hf download timm/vit_base_patch32_clip_224.openai open_clip_model.safetensors --local-dir DIR`" in message
    assert "ViT-B-32-quickgelu --pretrained DIR/FILE --preprocess openai" in message


@pytest.mark.usefixtures("offline")
def test_file_that_a_tag_publishes_is_advised() -> None:
    """Without network the file to fetch is the tag's own, not the safetensors that may lie beside it."""
    message = refusal("ViTamin-S", "datacomp1b")

    assert "no pytorch_model.safetensors or pytorch_model.bin of jienengchen/ViTamin-S" in message
    assert "`hf download jienengchen/ViTamin-S pytorch_model.bin --local-dir DIR`" in message


@pytest.mark.usefixtures("offline")
def test_hub_repository_without_network() -> None:
    """A repository that is not in the cache names it, and the directory to give instead."""
    message = refusal("hf-hub:Marqo/marqo-fashionSigLIP", None)

    assert "Marqo/marqo-fashionSigLIP" in message
    assert "--local-dir DIR`; then give DIR as MODEL" in message


@pytest.mark.usefixtures("offline")
def test_tokenizer_without_network(tmp_path: Path) -> None:
    """A tokenizer that is not in the cache names its repository and files, and --tokenizer."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "tuned.pt")

    message = refusal("ViT-B-16-SigLIP", tmp_path / "tuned.pt", preprocess="webli")

    assert "tokenizer.json" in message
    assert "timm/ViT-B-16-SigLIP" in message
    assert "give --tokenizer DIR" in message


@pytest.mark.usefixtures("offline")
def test_text_tower_without_network(tmp_path: Path) -> None:
    """A text tower from Hugging Face names its config.json."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "tuned.pt")

    message = refusal("xlm-roberta-base-ViT-B-32", tmp_path / "tuned.pt", preprocess="laion5b_s13b_b90k")

    assert "xlm-roberta-base" in message
    assert "--tokenizer DIR" in message


def test_hub_out_of_reach_fails_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address that refuses connections is given up within seconds, with the same words."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    began = time.monotonic()

    message = refusal("ViT-B-32-quickgelu", "openai")

    assert "the hub cannot be reached" in message
    assert time.monotonic() - began < 30
