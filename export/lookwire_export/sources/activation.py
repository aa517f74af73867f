"""QuickGELU or GELU: which a checkpoint was trained with. Its names and shapes fit both, and its vectors do not."""

import logging

import open_clip

from lookwire_export.reference import ExportError

WORDS = {True: "QuickGELU", False: "GELU"}
SUFFIX = "-quickgelu"
"""What open_clip's names of architectures end in, where there is one of each."""

logger = logging.getLogger(__name__)


def is_quick(architecture: str) -> bool:
    """Whether open_clip's architecture has QuickGELU."""
    return bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))


def trained_quick(architecture: str, tag: str) -> bool:
    """Whether open_clip lists the architecture's tag as trained with QuickGELU."""
    return bool((open_clip.get_pretrained_cfg(architecture, tag) or {}).get("quick_gelu", False))


def other(architecture: str) -> str | None:
    """Returns open_clip's architecture that differs in the activation alone, if there is one."""
    name = architecture.removesuffix(SUFFIX) if architecture.endswith(SUFFIX) else f"{architecture}{SUFFIX}"
    return name if name in open_clip.list_models() and is_quick(name) != is_quick(architecture) else None


def require(model: str, has: bool, trained: bool, source: str) -> None:
    """Raises ExportError unless the model has the activation that `source` was trained with, and names the right one."""
    if has == trained:
        return
    right = other(model)
    advice = f"use {right}" if right else "give local-dir:DIR, with the open_clip_config.json that it was trained with"
    raise ExportError(
        f"{source} was trained with {WORDS[trained]}, but {model} has {WORDS[has]}, which gives other vectors: {advice}"
    )


def require_of_tag(architecture: str, tag: str) -> None:
    """Raises ExportError if open_clip has the architecture with the activation that the tag was trained with, by another name.

    Where it has the one only, it loads the tag into that; so does the export, and logs it.
    """
    has, trained = is_quick(architecture), trained_quick(architecture, tag)
    if has == trained or other(architecture):
        require(architecture, has, trained, f"the tag {tag}")
        return
    logger.warning(
        "open_clip lists the tag %s as trained with %s, and has %s with %s only: exported with that, as open_clip loads it",
        tag,
        WORDS[trained],
        architecture,
        WORDS[has],
    )
