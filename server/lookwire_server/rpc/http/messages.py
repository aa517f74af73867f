"""Protobuf messages as JSON with the names of the proto; unlike protobuf's own JSON, 64-bit integers are numbers."""

import base64
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def to_json(message: Message) -> dict[str, Any]:
    """Every field of a message; those that may be absent only where they are set."""
    return {
        field.name: field_value(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def field_value(field: FieldDescriptor, content: Any) -> Any:
    """What a field holds: a map as an object, a repeated field as an array."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        values = field.message_type.fields_by_name["value"]
        return {str(key): value(values, content[key]) for key in sorted(content)}
    if field.is_repeated:
        return [value(field, element) for element in content]
    return value(field, content)


def value(field: FieldDescriptor, content: Any) -> Any:
    """One value: an enum by its name, bytes in base64."""
    if field.message_type is not None:
        return to_json(content)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(content)
        return known.name if known else content
    return base64.b64encode(content).decode() if isinstance(content, bytes) else content
