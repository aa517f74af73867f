"""Label groups of a request to the label sets of the encoding room."""

from collections.abc import Iterable, Sequence

from lookwire.v1 import encoder_service_pb2 as pb
from lookwire_server.encoding.labels import Label, LabelSet
from lookwire_server.errors import InvalidArgument

MAX_GROUPS = 256
# Of all groups of a request together; as many labels, and as many templates.
MAX_PROMPTS = 4096
MAX_PROMPT_CHARACTERS = 4 << 20
DEFAULT_TEMPLATES = ("{}",)


def from_messages(groups: Sequence[pb.LabelGroup]) -> list[LabelSet]:
    """The label set of each group; InvalidArgument names what is wrong by its path."""
    check_lengths(groups)
    check_names([group.name for group in groups], "groups")
    sets = [from_message(group, f"groups[{index}]") for index, group in enumerate(groups)]
    characters = sum(labels.prompt_characters for labels in sets)
    check_bound("characters of prompts, templates filled in", characters, MAX_PROMPT_CHARACTERS)
    return sets


def check_lengths(groups: Sequence[pb.LabelGroup]) -> None:
    """Raises InvalidArgument unless all lists are short enough to be walked; looks at no more than their lengths for that."""
    if not groups:
        raise InvalidArgument("give at least one group of labels", field="groups")
    if len(groups) > MAX_GROUPS:
        raise InvalidArgument(
            f"expected 1 to {MAX_GROUPS} groups, got {len(groups)}",
            field="groups",
            number=len(groups),
            limit=MAX_GROUPS,
        )
    check_bound("labels", sum(len(group.labels) for group in groups), MAX_PROMPTS)
    check_bound("templates", sum(len(group.templates) for group in groups), MAX_PROMPTS)
    prompts = sum(len(label.prompts) or len(group.templates) or 1 for group in groups for label in group.labels)
    check_bound("prompts, templates filled in", prompts, MAX_PROMPTS)


def from_message(group: pb.LabelGroup, path: str) -> LabelSet:
    """The labels and templates of one group."""
    if not group.labels:
        raise InvalidArgument("give at least one label", field=f"{path}.labels")
    check_names([label.name for label in group.labels], f"{path}.labels")
    for index, template in enumerate(group.templates):
        if (count := template.count("{}")) != 1:
            raise InvalidArgument(
                f"a template has {{}} exactly once, where the name of a label goes; '{template}' has it {count} times",
                field=f"{path}.templates[{index}]",
            )
    labels = tuple(Label(label.name, tuple(label.prompts)) for label in group.labels)
    # Only templates that some label uses are part of the set: others would tell equal sets apart.
    used = any(not label.prompts for label in labels)
    return LabelSet(labels, (tuple(group.templates) or DEFAULT_TEMPLATES) if used else ())


def check_names(names: Iterable[str], path: str) -> None:
    """Raises InvalidArgument unless each name is one, and there once."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if not name:
            raise InvalidArgument("the name is empty", field=f"{path}[{index}].name")
        if first.setdefault(name, index) != index:
            raise InvalidArgument(
                f"'{name}' is the name of {path}[{first[name]}] too; each needs a name of its own",
                field=f"{path}[{index}].name",
            )


def check_bound(what: str, number: int, limit: int) -> None:
    """Raises InvalidArgument if all groups together have more than the limit."""
    if number > limit:
        raise InvalidArgument(
            f"all groups together have {number} {what}; at most {limit} are taken. Spread the groups over several requests",
            field="groups",
            number=number,
            limit=limit,
        )
