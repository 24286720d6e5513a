"""Caffe's text files, read strictly: every fault is named with its file, line and column."""

# Why not protobuf's own text_format:
# - Its only lenient mode drops every unknown field, which changes shapes silently (forks write `ceil_mode: false`),
#   and it forgets where a layer stood. To tell fields of forks apart and to keep the lines, a second pass over the
#   tokens would have to know which message each brace opens: that pass is most of this file.
# - Caffe reads by the C++ parser. Of the 72 spellings that the tests hold against that one, text_format reads 12
#   otherwise: it takes 1_0, +1, 1ff, unknown escapes, NUL bytes and every space of Unicode, and refuses `- 1` and
#   surrogate pairs. It overlooks missing required fields, and blob data, bytes in our schema, are numbers in text.
# - It takes twice the time (resnet50, 2,070 lines: 9 ms against 4.7) and quotes a damaged token of 10 MB in full.

import difflib
import os
import re
import sys
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from sparknet.caffe.prototxt.fork_layers import BVLC_TYPES, FIELDS, about_type
from sparknet.caffe.prototxt.forks import ENGINES, HARMLESS, REFUSED
from sparknet.caffe.prototxt.tokens import Tokens, unescape
from sparknet.caffe.schema import PACKED
from sparknet.caffe.schema.net_format_pb2 import PoolingParameter
from sparknet.caffe.schema.strings import readable
from sparknet.errors import NetError

__all__ = ["Parsed", "names_file", "parse_text", "read_content", "read_text"]

M = TypeVar("M", bound=Message)

_LAYERS = ("LayerParameter", "V1LayerParameter", "V0LayerParameter")
_DEPTH = 100  # nested blocks and lists inside a field that is passed over
_DIGITS = 1000  # characters of a number; the longest exact float64 has fewer
_LARGEST_ENUM = 2**31 - 1
_LISTED = 12  # names that an error message lists
_SHOWN = 60  # characters of a name that are looked up among the known ones

_CLOSERS = {"{": "}", "<": ">", "[": "]"}
# By the grammar of the text format: a leading 0 means octal, but not before a fraction; C's suffix f is allowed.
# Python's int() and float() would take more: 1_0, +1, 0b1, spaces.
_INTEGER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_FLOAT = re.compile(r"(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?[fF]?")
_SPOKEN_FLOATS = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
"""Bytes that no text has."""
_BOOLS = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}


_OTHER_FILES = {
    **{("SolverParameter", name): "this looks like a net; give the solver" for name in ("name", "layer", "layers")},
    **{
        ("NetParameter", name): "this looks like a solver; give the net" for name in ("net", "base_lr", "test_iter")
    },
}
"""Fields that tell which other kind of file was given, by message and name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed(Generic[M]):
    """A message and where its parts stand in the text."""

    message: M
    """What the text says, all required fields present."""
    source: str
    """The file's name as errors show it; "<text>" for text that came from no file."""
    lines: dict[tuple[str, int], int]
    """Line, from 1, at which an element of a repeated top-level message starts: ("layer", 3) -> 41."""


class _Block(NamedTuple):
    """An open block."""

    fields: Mapping[str, FieldDescriptor]
    name: str  # the message's name
    symbol: str  # what opened it; empty for the file itself
    start: int  # the offset of its name
    message: Message  # what is read so far


def parse_text(text: str, message: type[M], *, source: str = "<text>") -> Parsed[M]:
    """Read a message from protobuf's text format.

    The whole format is accepted except extensions, which Caffe's files have none of. A repeated assignment of a
    field that is not a list is an error, as it is for Caffe. Blob data, bytes in our schema, are numbers in text.
    Strings that are no UTF-8 become readable (`schema.strings`).
    Fields of forks that change no number are passed over (`forks.HARMLESS`); `ceil_mode` of a fork's
    PoolingParameter becomes `round_mode`.

    Args:
        text: the file's content.
        message: the type to read, `NetParameter` say.
        source: the file's name, for errors.

    Raises:
        NetError: anything that the format or the schema does not allow, as `file:line:column: ...`.
    """
    parser = _Parser(Tokens(text, source))
    made = message()
    parser.fill(made, "", 0)
    lines = parser.tokens.lines_of(list(parser.starts.values()))
    return Parsed(message=made, source=source, lines=dict(zip(parser.starts, lines, strict=True)))


def read_text(path_or_text: str | os.PathLike[str], message: type[M]) -> Parsed[M]:
    """Read a message from a file, or from text; `read_content` says which of the two it is.

    Raises:
        NetError: the file cannot be read or is no text, or its text is at fault (see `parse_text`).
    """
    text, source = read_content(path_or_text)
    return parse_text(text, message, source=source)


def read_content(path_or_text: str | os.PathLike[str]) -> tuple[str, str]:
    """The text of a file, or text as it is (`names_file`), and its name for errors: the path, or "<text>".

    Raises:
        NetError: the file cannot be read or is no text.
    """
    name = os.fspath(path_or_text)
    if not name:
        raise NetError("the prototxt is given as ''; it must be a path or text: give the path of a prototxt")
    return (_content(name), name) if names_file(path_or_text) else (name, "<text>")


def names_file(path_or_text: str | os.PathLike[str]) -> bool:
    """Whether it is a file's path, or text.

    Every path object is a path. A str with a line break is text; another one is the path of a file that there is,
    else text if it has a `{`, else a path.
    """
    if not isinstance(path_or_text, str):
        return True
    if "\n" in path_or_text:
        return False
    # A directory may have braces in its name, and a net may stand in one line: the disk decides.
    return "{" not in path_or_text or _exists(path_or_text)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # text may be longer than any path
        return False


def _content(name: str) -> str:
    """Return what the file holds."""
    try:
        content = Path(name).read_bytes()
    except FileNotFoundError as error:
        raise NetError(
            f"{name}: no such file: give the path of a prototxt; text itself is told from a path by a line break"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise NetError(f"{name!r}: {reason}: give the path of a prototxt that can be read") from error
    if (control := _CONTROL.search(content)) is not None:
        raise NetError(
            f"{name}: byte {control.start()} is 0x{control[0][0]:02x}, so this is no text in UTF-8: "
            f"a .caffemodel or .solverstate is binary and a prototxt is text: give the prototxt"
        )
    # Of a comment no byte matters, and in a string the escape sequence of a byte is that byte.
    return readable(content)


class _Parser:
    """Fills messages from tokens, as the schema says."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.starts: dict[tuple[str, int], int] = {}  # offsets of the elements of the file's lists of messages
        self._blocks: list[_Block] = []
        self._readers: dict[int, Callable[[FieldDescriptor], Any]] = {
            FieldDescriptor.TYPE_STRING: self._string,
            FieldDescriptor.TYPE_BYTES: self._bytes,
            FieldDescriptor.TYPE_BOOL: self._bool,
            FieldDescriptor.TYPE_ENUM: self._enum,
            FieldDescriptor.TYPE_FLOAT: self._float,
            FieldDescriptor.TYPE_DOUBLE: self._float,
            **dict.fromkeys(_RANGES, self._integer),
        }

    def fill(self, message: Message, symbol: str, start: int) -> None:
        """Read fields into `message` until the block, opened by `symbol` at the offset `start`, closes.

        Recursion goes no deeper than the schema nests messages: only fields that it knows are entered.
        """
        descriptor = message.DESCRIPTOR
        block = _Block(
            cast("Mapping[str, FieldDescriptor]", descriptor.fields_by_name),
            descriptor.name,
            symbol,
            start,
            message,
        )
        self._blocks.append(block)
        packed: dict[str, array[float]] = {}
        while not self._closed(block):
            self._field(message, block, packed)
        # Numbers of a blob stand one by one in text, among other fields: kept apart until the block ends.
        for name, numbers in packed.items():
            if sys.byteorder == "big":
                numbers.byteswap()
            getattr(message, name).append(numbers.tobytes())
        # protobuf's Python parser overlooks it; Caffe's ends the program. Asked first, for it is cheap and nearly
        # always true.
        if not message.IsInitialized():
            missing = [f.name for f in descriptor.fields if f.is_required and not message.HasField(f.name)]
            raise self.tokens.fault(
                f"this {block.name} lacks {' and '.join(missing)}; Caffe requires a value: set it", start
            )
        self._blocks.pop()

    def _closed(self, block: _Block) -> bool:
        """Step over the end of the block if it is the current token."""
        tokens = self.tokens
        if tokens.kind == "end":
            if block.symbol:
                raise tokens.fault(
                    f"the {block.name} block opened here is never closed: add {_CLOSERS[block.symbol]!r}",
                    block.start,
                )
            return True
        if tokens.kind != "symbol" or tokens.text not in "}>":
            return False
        if not block.symbol:
            raise tokens.fault(f"found {tokens.text!r} where no block is open: remove it")
        if tokens.text != _CLOSERS[block.symbol]:
            raise tokens.fault(
                f"found {tokens.text!r}, but the {block.name} block of line {tokens.line_of(block.start)} "
                f"was opened by {block.symbol!r}: close it with {_CLOSERS[block.symbol]!r}"
            )
        tokens.advance()
        return True

    def _field(self, message: Message, block: _Block, packed: dict[str, "array[float]"]) -> None:
        """Read a field's name and its value or values, and the separator that may follow."""
        tokens = self.tokens
        if tokens.kind != "name":
            raise self._no_name(block)
        field, start = block.fields.get(tokens.text), tokens.start
        if field is None:
            self._foreign(message, block)
        else:
            self._check_once(message, field)
            tokens.advance()
            self._values(message, field, start, packed)
        if not tokens.take(","):
            tokens.take(";")

    def _check_once(self, message: Message, field: FieldDescriptor) -> None:
        """Refuse a second value, as Caffe's own reader does."""
        if not field.is_repeated and message.HasField(field.name):
            raise self.tokens.fault(
                f"{field.name} is given a second time in this {message.DESCRIPTOR.name}; "
                f"it takes one value: remove one"
            )

    def _values(
        self, message: Message, field: FieldDescriptor, start: int, packed: dict[str, "array[float]"]
    ) -> None:
        """Read what follows a field's name: one value, or a list of them in brackets."""
        tokens = self.tokens
        self._colon(field)
        opened = tokens.start
        if not tokens.take("["):
            self._value(message, field, start, packed)
            return
        if not field.is_repeated:
            raise tokens.fault(f"{_name(field)} is given a list; it takes one value: remove the brackets", opened)
        if tokens.take("]"):
            return
        while True:
            self._value(message, field, tokens.start, packed)
            if tokens.take("]"):
                return
            if not tokens.take(","):
                raise tokens.fault(
                    f"found {tokens.shown()} in the list of {field.name} that begins in line "
                    f"{tokens.line_of(opened)}; values are separated by a comma and followed by ']': add it"
                )

    def _colon(self, field: FieldDescriptor) -> None:
        """Step over the colon, which only a block may do without."""
        tokens = self.tokens
        if not tokens.take(":") and field.type != FieldDescriptor.TYPE_MESSAGE:
            raise tokens.fault(
                f"{_name(field)} is followed by {tokens.shown()}; "
                f"a colon stands between name and value: write {field.name}: ..."
            )

    def _value(
        self, message: Message, field: FieldDescriptor, start: int, packed: dict[str, "array[float]"]
    ) -> None:
        """Read one value or block into its field; `start` is where a block begins for the reader."""
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            self._block(message, field, start)
            return
        code = PACKED.get(_name(field)) if field.type == FieldDescriptor.TYPE_BYTES else None
        value = self._float(field) if code else self._readers[field.type](field)
        if code:
            packed.setdefault(field.name, array(code)).append(value)
        elif field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)

    def _block(self, message: Message, field: FieldDescriptor, start: int) -> None:
        """Read one block into its field."""
        tokens = self.tokens
        symbol = tokens.text
        if not (tokens.take("{") or tokens.take("<")):
            raise self._wrong(field, "a block, written { ... }")
        inner: Any = getattr(message, field.name)
        # Only offsets, here: lines are counted once for all of them, in one pass over the text.
        if field.is_repeated:
            if len(self._blocks) == 1:
                self.starts[field.name, len(inner)] = start
            inner = inner.add()
        else:
            inner.SetInParent()
        self.fill(inner, symbol, start)

    def _string(self, field: FieldDescriptor) -> str:
        return readable(self._bytes(field))

    def _bytes(self, field: FieldDescriptor) -> bytes:
        tokens = self.tokens
        if tokens.kind != "string":
            raise self._wrong(field, f'text in quotes, as in {field.name}: "..."')
        parts: list[bytes] = []
        while tokens.kind == "string":  # adjacent strings are one
            parts.append(unescape(tokens))
            tokens.advance()
        return b"".join(parts)

    def _bool(self, field: FieldDescriptor) -> bool:
        tokens = self.tokens
        value = _BOOLS.get(tokens.text) if tokens.kind == "name" else _whole(tokens)
        if value is None or value > 1:
            raise self._wrong(field, "true or false")
        tokens.advance()
        return bool(value)

    def _enum(self, field: FieldDescriptor) -> int:
        assert field.enum_type is not None
        tokens = self.tokens
        start, names = tokens.start, field.enum_type.values_by_name
        if tokens.kind == "name":
            if tokens.text in names:
                number = names[tokens.text].number
            elif field.name == "engine" and tokens.text in ENGINES:
                number = names["DEFAULT"].number
            else:
                if _name(field) == "V1LayerParameter.type" and (about := about_type(tokens.text)):
                    raise tokens.fault(f"type {tokens.shown()} is {about}")
                raise self._wrong(field, f"one of {_some(names)}{_nearest(tokens.text, names)}")
        else:
            negative = tokens.take("-")
            number = _whole(tokens)
            # No enum has negative numbers, and protobuf raises where it looks up one of more than 32 bits.
            if number is None or (negative and number) or number > _LARGEST_ENUM:
                number = -1
            if number not in field.enum_type.values_by_number:
                raise self._wrong(field, f"one of {_some(names)}, without quotes", start)
        tokens.advance()
        return number

    def _integer(self, field: FieldDescriptor) -> int:
        tokens = self.tokens
        low, high = _RANGES[field.type]
        start, negative = tokens.start, tokens.take("-")
        number = _whole(tokens)
        if number is None:
            raise self._wrong(field, f"a whole number from {low} to {high}", start)
        number = -number if negative else number
        if not low <= number <= high:
            raise self._wrong(field, f"from {low} to {high}", start)
        tokens.advance()
        return number

    def _float(self, field: FieldDescriptor) -> float:
        tokens = self.tokens
        start, negative = tokens.start, tokens.take("-")
        text = tokens.text
        number = None
        if tokens.kind == "name":
            number = _SPOKEN_FLOATS.get(text.lower())
        elif tokens.kind == "number" and len(text) <= _DIGITS and _FLOAT.fullmatch(text):
            number = float(text.rstrip("fF"))
        if number is None:
            raise self._wrong(field, "a decimal number, as in 0.01 or 1e-2", start)
        tokens.advance()
        return -number if negative else number

    def _foreign(self, message: Message, block: _Block) -> None:
        """Pass over a field that Caffe 1.0 does not have, if it changes no number."""
        tokens = self.tokens
        name, start = tokens.text, tokens.start
        if isinstance(message, PoolingParameter) and name == "ceil_mode":
            self._ceil_mode(message, block.fields["round_mode"])
            return
        refusal = REFUSED.get(block.name, {}).get(name)
        if refusal is None and name not in HARMLESS.get(block.name, ()):
            raise self._unknown(block)
        tokens.advance()
        if refusal is not None:
            tokens.take(":")
            if tokens.text not in refusal.neutral:
                raise tokens.fault(
                    _about(self._kind_of_layer())
                    or f"{block.name} has no field {name!r} in Caffe 1.0; in a fork {refusal.effect}",
                    start,
                )
        self._pass_over()

    def _ceil_mode(self, message: PoolingParameter, field: FieldDescriptor) -> None:
        """Read a fork's `ceil_mode: false` as `round_mode: FLOOR`."""
        self._check_once(message, field)
        self.tokens.advance()
        self._colon(field)
        message.round_mode = PoolingParameter.CEIL if self._bool(field) else PoolingParameter.FLOOR

    def _pass_over(self) -> None:
        """Skip the value of a fork's field, of whatever kind, with a list of closers in place of recursion."""
        tokens = self.tokens
        start = tokens.start
        tokens.take(":")
        closers: list[str] = []
        while True:
            symbol = tokens.text if tokens.kind == "symbol" else ""
            if symbol in _CLOSERS:
                closers.append(_CLOSERS[symbol])
            elif closers and symbol == closers[-1]:
                closers.pop()
            elif tokens.kind == "end" or symbol in ("}", ">", "]") or (symbol not in ("", "-") and not closers):
                raise tokens.fault(
                    f"found {tokens.shown()} in the value that begins in line {tokens.line_of(start)}"
                )
            # No recursion here, so depth costs no stack; the bound keeps a hostile file from growing the list for
            # ever.
            if len(closers) > _DEPTH:
                raise tokens.fault(f"blocks are nested more than {_DEPTH} deep; no file of Caffe's is: remove them")
            strings = tokens.kind == "string"
            tokens.advance()
            if not closers and symbol != "-" and not (strings and tokens.kind == "string"):
                return

    def _no_name(self, block: _Block) -> NetError:
        """Return the error for something that begins no field."""
        tokens = self.tokens
        if tokens.text == "[":
            return tokens.fault("found '[', which begins an extension; Caffe's files have none: remove it")
        return tokens.fault(
            f"found {tokens.shown()} where a field of {block.name} must begin, with its name and a colon: remove it"
        )

    def _unknown(self, block: _Block) -> NetError:
        """Return the error for a field that the message does not have."""
        tokens = self.tokens
        name, shown, start = tokens.text, tokens.shown(), tokens.start
        # The commonest fault by hand is a brace too few, after which a layer seems to hold the next one.
        for outer in reversed(self._blocks[:-1]):
            if name in outer.fields:
                return tokens.fault(
                    f"{block.name} has no field {shown}, {outer.name} has: "
                    f"close the block of line {tokens.line_of(block.start)} before it"
                )
        # The second is the wrong one of the two files that every Caffe project has.
        if (block.name, name) in _OTHER_FILES:
            return tokens.fault(f"{block.name} has no field {shown}: {_OTHER_FILES[block.name, name]}")
        near = _nearest_field(name, block.fields)
        remedy = near or f"; it has {_some(block.fields)}: remove it"
        fork = FIELDS.get(name, "") if block.name in _LAYERS else ""
        # Last, for it reads on: a field of a layer that Caffe does not have is no misspelling.
        kind = self._kind_of_layer()
        if about := _about(kind):
            return tokens.fault(about, start)
        if fork:
            return tokens.fault(f"{block.name} has no field {shown} in Caffe 1.0; it is of {fork}", start)
        # V1's types are those of its schema.
        if kind and block.name == "LayerParameter" and kind not in BVLC_TYPES:
            return tokens.fault(
                f"type {kind!r} is no layer of BVLC Caffe, nor is {shown} a field of its layers", start
            )
        return tokens.fault(f"{block.name} has no field {shown}{remedy}", start)

    def _kind_of_layer(self) -> str:
        """The type of the layer that is being read, also where it stands further on; empty outside of layers."""
        for inside, block in enumerate(reversed(self._blocks)):
            if block.name not in _LAYERS:
                continue
            if block.name != "V1LayerParameter" and block.message.HasField("type"):
                return str(cast("Any", block.message).type)
            return self._word_ahead("type", inside)
        return ""

    def _word_ahead(self, field: str, inside: int) -> str:
        """The word that a field further on has, in the block that is so many blocks around the current token."""
        tokens = self.tokens
        try:
            while tokens.kind != "end" and inside >= 0:
                at_name = inside == 0 and tokens.kind == "name" and tokens.text == field
                if tokens.kind == "symbol":
                    inside += (tokens.text in "{<[") - (tokens.text in "}>]")
                tokens.advance()
                if at_name:
                    tokens.take(":")
                    return unescape(tokens).decode(errors="replace") if tokens.kind == "string" else tokens.text
        except NetError:
            return ""  # what is said is the fault before it, and not this one
        return ""

    def _wrong(self, field: FieldDescriptor, rule: str, start: int | None = None) -> NetError:
        """Return the error for a value that is not what the field takes."""
        shown = self.tokens.shown()
        if start not in (None, self.tokens.start) and shown.startswith("'"):
            shown = f"'-{shown[1:]}"
        return self.tokens.fault(f"{_name(field)} is {shown}; it must be {rule}", start)


def _about(kind: str) -> str:
    """Return what there is to say of a layer's type, if that is not built."""
    about = about_type(kind)
    return f"type {kind} is {about}" if about else ""


def _name(field: FieldDescriptor) -> str:
    """Return a field with its message, as in `LayerParameter.name`."""
    return field.full_name.partition(".")[2]


def _whole(tokens: Tokens) -> int | None:
    """Return the integer that the current token writes, None if it is none or absurdly long."""
    text = tokens.text
    if tokens.kind != "number" or len(text) > _DIGITS or _INTEGER.fullmatch(text) is None:
        return None
    return int(text, 10 if text[0] != "0" else 16 if text[1:2] in ("x", "X") else 8)


def _some(names: Collection[str]) -> str:
    """Return names for an error, or the first of them."""
    listed = ", ".join(list(names)[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed} and {len(names) - _LISTED} others"


def _nearest_field(name: str, known: Iterable[str]) -> str:
    """Return what `_nearest` does, of fields: what most of their names end in makes no two of them alike."""
    ending = "_param"
    if not name.endswith(ending):
        return _nearest(name, known)
    stems = (field.removesuffix(ending) for field in known if field.endswith(ending))
    near = difflib.get_close_matches(name.removesuffix(ending)[:_SHOWN], list(stems), n=1, cutoff=0.75)
    return f": did you mean {near[0] + ending!r}?" if near else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error that names what was probably meant; empty if nothing is near."""
    near = difflib.get_close_matches(name[:_SHOWN], list(known), n=1)
    return f": did you mean {near[0]!r}?" if near else ""
