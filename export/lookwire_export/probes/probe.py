from typing import Generic, NamedTuple, TypeVar

Content = TypeVar("Content", bytes, str)


class Probe(NamedTuple, Generic[Content]):
    """An encoded image or a text, and in words what is special about it."""

    kind: str
    content: Content
