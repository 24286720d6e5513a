"""The text format as protobuf itself reads it: its parsers in Python and in C++ are the oracles of ours."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

import sparknet.caffe.schema
from places import REFERENCE
from sparknet.caffe.prototxt import format_text, parse_text
from sparknet.caffe.schema import LayerParameter, NetParameter, SolverParameter
from sparknet.errors import NetError

FILES = sorted((REFERENCE).rglob("net.prototxt"))


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> dict:
    """Keyword arguments of a random message: the required fields and up to five of the others."""
    chosen = draw(
        st.lists(st.sampled_from(list(descriptor.fields)), max_size=5, unique_by=lambda field: field.name)
    )
    required = [field for field in descriptor.fields if field.is_required]
    return {
        field.name: draw(values(field)) for field in {field.name: field for field in required + chosen}.values()
    }


def values(field: FieldDescriptor) -> st.SearchStrategy:
    if field.containing_type.name == "BlobProto" and field.name in ("data", "diff", "double_data", "double_diff"):
        return st.lists(st.binary(min_size=8, max_size=8), max_size=1)
    integer = {
        FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    }
    if field.type in integer:
        one = integer[field.type]
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        one = messages(field.message_type)
    elif field.type == FieldDescriptor.TYPE_ENUM:
        one = st.sampled_from([value.number for value in field.enum_type.values])
    else:
        one = {
            FieldDescriptor.TYPE_FLOAT: st.floats(width=32, allow_nan=False),
            FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False),
            FieldDescriptor.TYPE_BOOL: st.booleans(),
            FieldDescriptor.TYPE_STRING: st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
            FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
        }[field.type]
    return st.lists(one, max_size=3) if field.is_repeated else one


def random_messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    return messages(kind.DESCRIPTOR).map(lambda chosen: kind(**chosen))


def without_blobs(message: Message) -> Message:
    """Clear the fields that are bytes in our schema and numbers in text."""
    for field, value in message.ListFields():
        if field.containing_type.name == "BlobProto" and field.type == FieldDescriptor.TYPE_BYTES:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                without_blobs(inner)
    return message


@settings(max_examples=150, deadline=None)
@given(random_messages(NetParameter) | random_messages(LayerParameter) | random_messages(SolverParameter))
def test_a_random_message_survives_printing_and_parsing_and_protobuf_agrees(message):
    def same(one: Message, other: Message) -> bool:  # NaN in a blob, and the sign of zero
        return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)

    kind = type(message)
    assert same(parse_text(format_text(message), kind).message, message)
    without_blobs(message)
    assert same(text_format.Parse(format_text(message), kind()), message)
    for options in ({}, {"as_one_line": True}, {"use_short_repeated_primitives": True, "pointy_brackets": True}):
        assert same(parse_text(text_format.MessageToString(message, **options), kind).message, message)


WORDS = (
    "{ } < > [ ] : , ; # \n - 1 0 2 007 1.5 .5 1e3 -1 1f nan true TEST MAX 'a' \"b\" name type layer layers param "
    "input input_dim input_shape dim state phase stage pooling_param pool kernel_size include loss_weight blobs_lr"
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["drop", "add", "swap", "repeat"]), st.integers(0, 10**6), st.sampled_from(WORDS.split(" "))
    ),
    min_size=1,
    max_size=3,
)
TOKENS = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'|#[^\n]*\n|[\w.+]+|\s+|.")


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(FILES), EDITS)
def test_an_edited_net_is_accepted_if_and_only_if_protobuf_accepts_it(path, edits):
    """Known differences, out of reach of these words: there protobuf in C++, which Caffe uses, is the rule.

    protobuf in Python takes Python's own numbers (1_0, 0o7, +1, 1ff), every space of Unicode, unknown escapes
    and NUL bytes, and does not miss required fields; it does not take a space after a sign.
    """
    tokens = TOKENS.findall(path.read_text())
    for edit, at, word in edits:
        at %= len(tokens) + 1
        if edit == "drop":
            del tokens[at : at + 1]
        elif edit == "add":
            tokens.insert(at, f" {word} ")
        elif edit == "swap":
            tokens[at : at + 1] = [f" {word} "]
        else:
            tokens[at:at] = tokens[max(0, at - 8) : at]
    text = "".join(tokens)
    try:
        theirs = text_format.Parse(text, NetParameter())
    except text_format.ParseError:
        if not re.search(r"-\s", text):
            with pytest.raises(NetError):
                parse_text(text, NetParameter)
    else:
        assert parse_text(text, NetParameter).message == theirs or "nan" in text


SPELLINGS = [
    rb"name: 'a\x416' input: '\u0041\U00000042' input: '\1234\?\X41\x4'",
    rb"name: '\ud83d\ude00'",
    rb"name: '\q'",
    rb"name: '\xg'",
    rb"name: 'a\0b'",
    b"name: 'a\0b'",
    b"name: 'a\nb'",
    b'name: "a\rb" \r\f\v input: \'\' ""',
    b"name: 'a'\"b\"#c",
    b"name:\xc2\xa0'a'",
    b"name: 'a' /* c */",
    b"name 'a'",
    b"name: a",
    b"name: ['a']",
    b"name: 'a' name: 'b'",
    b"state { } state { }",
    b"state: [ ]",
    b"input_dim: [1, - 2, 0x1F, 0X1f, 017, -0x10, -017, 00, -2147483648]",
    b"input_dim: [ ] input_dim: 1, input_dim: 2; input_dim: 3",
    *(b"input_dim: " + word for word in b"1_0 1.0 1e5 08 0x +1 1,, [1,2,] 1input_dim:2 2147483648 --1".split(b" ")),
    b"input_shape { dim: 9223372036854775807 dim: -9223372036854775808 }",
    b"input_shape { dim: 9223372036854775808 }",
    b"layer { loss_weight: [1, 1., .5, 5.e3, 1F, 0f, 1e5f, -1e+5, 1e400, 3.5e38, 99999999999999999999999999] }",
    b"layer { loss_weight: [inf, -Inf, infinity, nan, - # c\n 1] }",
    *(
        b"layer { loss_weight: %b }" % word
        for word in b"0x10 0_1 +1 00.5 01 00 1ff 1.5.2 1e 1e+ . 'a' 1 .5 x".split(b" ")
    ),
    b"layer { phase: 01 propagate_down: [t, f, 1, 0, True, False, 0x1, 00, 01] } layer { phase: 0x1 }",
    *(b"layer { phase: %b }" % word for word in (b"2", b"'TRAIN'", b"train", b"-1", b"1.0", b"[1]")),
    *(b"force_backward: " + word for word in (b"2", b"TRUE", b"yes", b"1.0", b"-1", b"'t'")),
    b"layer [ { name: 'a' }, < > ] layer <>; layer: { } layer [ ]",
    b"layer: [ { }; { } ]",
    b"layer { type: 'a' >",
    b"layer { convolution_param { num_output: -1 } }",
    b"layer { pooling_param { kernel_size: 4294967296 } }",
    b"[x]: 1",
    b"3: 1",
    b"Name: 'a'",
    b"",
    b"# nothing",
]
PROTOC = """
import os, pickle, sys, tempfile
from grpc_tools import protoc

texts, schema = pickle.load(sys.stdin.buffer)
answer = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
written = []
for text in texts:
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(text)
        source.seek(0)
        os.dup2(source.fileno(), 0)
        os.dup2(target.fileno(), 1)
        failed = protoc.main(["protoc", f"-I{schema}", "--encode=sparknet.NetParameter", "net_format.proto"])
        target.seek(0)
        written.append(None if failed else target.read())
with os.fdopen(answer, "wb") as out:
    pickle.dump(written, out)
"""


def test_protobuf_in_cpp_takes_and_refuses_the_same_spellings():
    """Caffe reads its files by this parser.

    Known differences, all wanted: ours reads bytes that are no UTF-8 as their escape
    sequences, and takes a byte-order mark and -0 where
    a number cannot be negative. A missing required field is a warning of protoc and an error of Caffe and of ours.
    """
    pytest.importorskip("grpc_tools")
    schema = str(Path(sparknet.caffe.schema.__file__).parent)
    run = subprocess.run(
        [sys.executable, "-c", PROTOC], input=pickle.dumps((SPELLINGS, schema)), capture_output=True, check=True
    )
    for text, theirs in zip(SPELLINGS, pickle.loads(run.stdout), strict=True):
        if theirs is None:
            with pytest.raises(NetError):
                parse_text(text.decode(), NetParameter)
        else:
            ours = parse_text(text.decode(), NetParameter).message
            assert ours.SerializeToString() == NetParameter.FromString(theirs).SerializeToString(), text
