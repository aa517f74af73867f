"""Where a checkpoint comes from: open_clip's names, the hub, directories of either library, and files of weights."""

from pathlib import Path

from lookwire_export.reference import ExportError, Reference
from lookwire_export.sources import open_clip_models, transformers_models

__all__ = ["load"]

LOCAL_DIR = "local-dir:"
HF_HUB = "hf-hub:"


def load(
    model: str, pretrained: str | None, *, preprocess: str | None = None, tokenizer: Path | None = None
) -> Reference:
    """Returns the reference that the words of a command line name.

    `model` is an open_clip name (`pretrained` is then one of its tags, or a file of weights), `hf-hub:ORG/NAME`,
    `local-dir:PATH` with an open_clip_config.json, or a directory of transformers (`pretrained` may then be a file of weights to
    take in place of its own). `preprocess` tells the image transform, which is needed where it is not known: a tag of
    open_clip or a JSON file. `tokenizer` is a directory with a tokenizer of transformers to take in place of what the
    model names. Raises ExportError, which says what is wrong, and what to do.
    """
    if tokenizer is not None and not tokenizer.is_dir():
        raise ExportError(f"--tokenizer {tokenizer} is no directory")
    if model.startswith(HF_HUB):
        repository = model.removeprefix(HF_HUB)
        file = _file(pretrained, model)
        if open_clip_models.is_published(repository):
            return open_clip_models.load_published(repository, file, preprocess, tokenizer)
        directory = transformers_models.fetch(repository)
        return transformers_models.load_directory(directory, repository, file, preprocess, tokenizer)
    if model.startswith(LOCAL_DIR) or Path(model).is_dir():
        directory = Path(model.removeprefix(LOCAL_DIR))
        name, file = directory.resolve().name, _file(pretrained, model)
        if (directory / open_clip_models.CONFIG).is_file():
            return open_clip_models.load_directory(directory, name, file, preprocess, tokenizer)
        if (directory / "config.json").is_file():
            return transformers_models.load_directory(directory, name, file, preprocess, tokenizer)
        raise ExportError(
            f"there is no model in {directory}: expected a directory with {open_clip_models.CONFIG} (open_clip) or"
            " config.json (transformers)"
        )
    return open_clip_models.load(model, pretrained, preprocess, tokenizer)


def _file(pretrained: str | None, model: str) -> Path | None:
    """Returns the file of weights to take in place of the model's own, if one is given."""
    if pretrained is None:
        return None
    if not Path(pretrained).is_file():
        raise ExportError(
            f"there is no file {pretrained}: {model} has its own weights, and --pretrained may only be a FILE of others"
        )
    return Path(pretrained)
