"""What value each field of the schema takes, as the parser of text asks it."""

from functools import cache
from typing import Literal, NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

__all__ = ["PACKED", "Field", "Kind", "fields_of"]

PACKED = {
    ("BlobProto", "data"): "f",
    ("BlobProto", "diff"): "f",
    ("BlobProto", "double_data"): "d",
    ("BlobProto", "double_diff"): "d",
}
"""Fields that hold packed little-endian numbers as bytes: array's type code by message and field."""

Kind = Literal["message", "string", "bytes", "bool", "ceil_mode", "enum", "integer", "float", "packed"]


class Field(NamedTuple):
    """What a value must be, and where it goes."""

    name: str
    kind: Kind
    repeated: bool
    owner: str  # the message's name, for errors
    low: int  # integers: the smallest and the largest
    high: int
    code: str  # packed numbers: array's type code
    enum: EnumDescriptor | None


@cache
def fields_of(descriptor: Descriptor) -> dict[str, Field]:
    """Return the fields of a message by name, a fork's `ceil_mode` among those of PoolingParameter."""
    fields = {field.name: _field_of(field) for field in descriptor.fields}
    if descriptor.name == "PoolingParameter":
        fields["ceil_mode"] = fields["round_mode"]._replace(kind="ceil_mode")
    return fields


def _field_of(field: FieldDescriptor) -> Field:
    """Return how a field's values are read."""
    assert field.containing_type is not None  # None for extensions alone
    owner = field.containing_type.name
    code = PACKED.get((owner, field.name), "")
    low, high = _RANGES.get(field.type, (0, 0))
    return Field(
        name=field.name,
        kind="packed" if code else _KINDS[field.type],
        repeated=field.is_repeated,
        owner=owner,
        low=low,
        high=high,
        code=code,
        enum=field.enum_type,
    )


_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_KINDS: dict[int, Kind] = {
    **dict.fromkeys(_RANGES, "integer"),
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "float",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_MESSAGE: "message",
}
