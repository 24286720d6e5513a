"""Caffe's text files: every spelling, and every error with its place."""

import math
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from places import REFERENCE
from sparknet.caffe.prototxt import Parsed, format_text, parse_text, read_text
from sparknet.caffe.prototxt.forks import HARMLESS, REFUSED
from sparknet.caffe.prototxt.parse import names_file
from sparknet.caffe.schema import BlobProto, Datum, FillerParameter, LayerParameter, NetParameter, SolverParameter
from sparknet.caffe.schema.net_format_pb2 import DESCRIPTOR
from sparknet.errors import NetError

CASES = REFERENCE
FILES = sorted(CASES.rglob("*.prototxt"))


def kind_of(path: Path) -> type[NetParameter] | type[SolverParameter]:
    return SolverParameter if path.name == "solver.prototxt" else NetParameter


def net(text: str) -> NetParameter:
    return parse_text(text, NetParameter).message


def layer(text: str) -> LayerParameter:
    return parse_text(text, LayerParameter).message


def refused(text: str, message: type[Message] = NetParameter) -> str:
    with pytest.raises(NetError) as caught:
        parse_text(text, message, source="a.prototxt")
    return str(caught.value)


# Files


def test_every_reference_file_reads_as_protobuf_reads_it_and_survives_printing():
    assert len(FILES) > 150
    for path in FILES:
        kind = kind_of(path)
        parsed = read_text(path, kind)
        assert parsed.message == text_format.Parse(path.read_text(), kind()), path
        assert parsed.source == str(path)
        text = format_text(parsed.message)
        assert parse_text(text, kind).message == parsed.message, path
        assert text_format.Parse(text, kind()) == parsed.message, path


def test_lines_say_where_each_layer_starts():
    text = "name: 'n'\n\n# one\nlayer\n{\n  bottom: 'x' }\nlayer: [ { },\n{ } ] layers { }\ninput_shape { dim: 1 }"
    parsed = parse_text(text, NetParameter)
    assert parsed.lines == {
        ("layer", 0): 4,
        ("layer", 1): 7,
        ("layer", 2): 8,
        ("layers", 0): 8,
        ("input_shape", 0): 9,
    }
    assert isinstance(parsed, Parsed)
    assert parsed.source == "<text>"


def test_a_str_with_a_line_break_or_a_brace_is_text_and_another_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "n.prototxt").write_text("name: 'file'")
    monkeypatch.chdir(tmp_path)
    assert read_text("n.prototxt", NetParameter).message.name == "file"
    assert read_text(tmp_path / "n.prototxt", NetParameter).message.name == "file"
    assert read_text("name: 'text'\n", NetParameter).message.name == "text"
    assert len(read_text("layer {}", NetParameter).message.layer) == 1
    assert len(read_text("layer {} " * 1000, NetParameter).message.layer) == 1000  # longer than any path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_may_have_a_brace_in_its_path(tmp_path, kind):
    path = tmp_path / "{x}" / "n.prototxt"
    path.parent.mkdir()
    path.write_text("name: 'file'")
    assert names_file(kind(path))
    assert read_text(kind(path), NetParameter).message.name == "file"
    assert names_file(kind(path.parent / "none")) == (kind is Path)


def test_a_file_may_have_a_byte_order_mark_and_line_ends_of_windows(tmp_path):
    (tmp_path / "n.prototxt").write_bytes(b"\xef\xbb\xbfname: 'x'\r\nlayer {\r\n}\r\nlayer { nam: 1 }")
    with pytest.raises(NetError, match=r"n\.prototxt:4:9: LayerParameter has no field 'nam'"):
        read_text(tmp_path / "n.prototxt", NetParameter)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(NetError, match=r"missing\.prototxt: no such file: give the path of a prototxt"):
        read_text(tmp_path / "missing.prototxt", NetParameter)
    with pytest.raises(NetError, match=f"{re.escape(str(tmp_path))}.*directory"):
        read_text(tmp_path, NetParameter)
    with pytest.raises(NetError, match="embedded null byte"):
        read_text("a\0b", NetParameter)
    with pytest.raises(NetError, match="the prototxt is given as ''; it must be a path or text"):
        read_text("", NetParameter)
    with pytest.raises(NetError, match=r"x\{1\}\.prototxt: no such file"):
        read_text(tmp_path / "x{1}.prototxt", NetParameter)


def test_a_weights_file_given_as_a_prototxt_is_recognised():
    with pytest.raises(
        NetError, match=r"caffemodel: byte \d+ is 0x\w\w, so this is no text in UTF-8: a \.caffemodel"
    ):
        read_text(CASES / "nets" / "lenet_like" / "weights.caffemodel", NetParameter)
    assert "found a NUL byte; text has none: this looks like a binary file" in refused("\0\1\2")
    assert refused("name: 'a\0b'") == (
        "a.prototxt:1:9: found a NUL byte; text has none: this looks like a binary file"
    )


# Spellings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5", -0.5),
        ("- 5", -5.0),
        ("- # a comment\n 5", -5.0),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("1.5e-3", 0.0015),
        ("2f", 2.0),
        ("2.5F", 2.5),
        ("0f", 0.0),
        ("1e400", math.inf),
        ("-3.5e38", -math.inf),
        ("1e-60", 0.0),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("16777217", 16777216.0),
        ("99999999999999999999999999", 1e26),
    ],
)
def test_a_float(text, value):
    assert layer(f"loss_weight: {text}").loss_weight[0] == struct.unpack("f", np.float32(value).tobytes())[0]


def test_not_a_number_is_a_number():
    assert all(math.isnan(value) for value in layer("loss_weight: [nan, -nan, NaN]").loss_weight)


@pytest.mark.parametrize(
    "text",
    [
        "0x10",
        "00.5",
        "01",
        "00",
        "1_0",
        "1.2.3",
        "1ff",
        "1e",
        "1e+",
        "--1",
        "+1",
        "'1'",
        "true",
        "one",
        "",
        "{ }",
        "1x",
    ],
)
def test_no_float(text):
    assert refused(f"loss_weight: {text}", LayerParameter).startswith("a.prototxt:1:")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-0", 0),
        ("017", 15),
        ("0x1f", 31),
        ("0X1F", 31),
        ("-0x10", -16),
        ("- 7", -7),
        ("2147483647", 2**31 - 1),
        ("-2147483648", -(2**31)),
        ("0" * 500 + "7", 7),
    ],
)
def test_an_integer(text, value):
    assert net(f"input_dim: {text}").input_dim == [value]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("input_dim", "2147483648"),
        ("input_dim", "-2147483649"),
        ("input_dim", "08"),
        ("input_dim", "0x"),
        ("input_dim", "0o17"),
        ("input_dim", "0b11"),
        ("input_dim", "1_0"),
        ("input_dim", "1.0"),
        ("input_dim", "1e3"),
        ("input_dim", "x"),
        ("input_dim", "9" * 5000),
        ("input_shape { dim", "9223372036854775808"),
        ("layer { pooling_param { pad", "-1"),
        ("layer { pooling_param { pad", "4294967296"),
    ],
)
def test_no_integer_of_that_field(field, text):
    assert re.search(r"is '-?.*'; it must be (a whole number )?from -?\d+ to \d+", refused(f"{field}: {text}"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("true", "True", "t", "1", "0x1")),
        *((text, False) for text in ("false", "False", "f", "0")),
    ],
)
def test_a_truth_value(text, value):
    assert net(f"force_backward: {text}").force_backward is value


@pytest.mark.parametrize("text", ["TRUE", "yes", "2", "-1", "'true'", "1.0"])
def test_no_truth_value(text):
    assert "NetParameter.force_backward is " in refused(f"force_backward: {text}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a' \"b\"\n# joined\n'c'", "abc"),
        (r"'\a\b\f\n\r\t\v\\\?\'\"'", "\a\b\f\n\r\t\v\\?'\""),
        (r"'\1012\x413\u00e94\U0001F600'", "A2A3é4😀"),
        (r"'\ud83d\ude00'", "😀"),
        (r"'\303\251'", "é"),
        ("'é\u2028\t\r'", "é\u2028\t\r"),
        ("''", ""),
    ],
)
def test_a_string(text, value):
    assert net(f"name: {text}").name == value


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("'a", 7, 'the string "\'a" does not end in its line'),
        ("'a\nb'", 7, "does not end in its line"),
        ("\"a'", 7, 'is closed by the " that opened it'),
        (r"'a\'", 7, "does not end in its line"),
        (r"'C:\data'", 10, r"\d is no escape sequence"),
        (r"'\777'", 8, r"\777 is no escape sequence"),
        (r"'\ud800'", 8, r"\ud800 is no escape sequence"),
        (r"'\U00110000'", 8, r"\U00110000 is no escape sequence"),
        (r"'\xg'", 8, r"\x is no escape sequence"),
        ("'a\ud800'", 7, "holds half of a surrogate pair"),
        ("a", 7, "NetParameter.name is 'a'; it must be text in quotes, as in name: \"...\""),
        ("1", 7, "it must be text in quotes"),
    ],
)
def test_no_string(text, column, message):
    said = refused(f"name: {text}")
    assert said.startswith(f"a.prototxt:1:{column}: ")
    assert message in said


def test_bytes_take_any_byte():
    assert parse_text(r"data: '\000\377\xfeA'", Datum).message.data == b"\0\xff\xfeA"


def test_an_enum_by_name_and_by_number():
    assert [net(f"state {{ phase: {text} }}").state.phase for text in ("TRAIN", "TEST", "1", "0x1", "-0")] == [
        0,
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Test", "NetState.phase is 'Test'; it must be one of TRAIN, TEST"),
        ("TESTS", "it must be one of TRAIN, TEST: did you mean 'TEST'?"),
        ("2", "NetState.phase is '2'; it must be one of TRAIN, TEST, without quotes"),
        ("4294967296", "NetState.phase is '4294967296'; it must be one of TRAIN, TEST"),
        ("-1", "NetState.phase is '-1'; it must be one of TRAIN, TEST"),
        ("'TEST'", "NetState.phase is 'TEST'; it must be one of TRAIN, TEST, without quotes"),
    ],
)
def test_no_value_of_the_enum(text, message):
    assert message in refused(f"state {{ phase: {text} }}")


@pytest.mark.parametrize(
    "text",
    [
        "layer{name:'a'}layer<name:'b'>",
        "layer: { name: 'a' }, layer: < name: 'b' >;",
        "layer [ { name: 'a' }, < name: 'b' > ]",
        "layer: [{name:'a';},{name:'b',}] ",
        "layer { name: 'a' } # }\n layer [ ] layer: [ ] layer { name: 'b' }",
    ],
)
def test_blocks_lists_and_separators(text):
    assert [layer.name for layer in net(text).layer] == ["a", "b"]


# Errors of structure


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer {\n  name: 'a'\n", "1:1: the LayerParameter block opened here is never closed: add '}'"),
        ("state <", "1:1: the NetState block opened here is never closed: add '>'"),
        ("layer {\n}\n}", "3:1: found '}' where no block is open: remove it"),
        (
            "layer {\n>",
            "2:1: found '>', but the LayerParameter block of line 1 was opened by '{': close it with '}'",
        ),
        ("name 'a'", "1:6: NetParameter.name is followed by 'a'; a colon stands between name and value"),
        ("name:", "1:6: NetParameter.name is the end of the file; it must be text in quotes"),
        ("name: ['a']", "1:7: NetParameter.name is given a list; it takes one value"),
        ("state [{}]", "1:7: NetParameter.state is given a list"),
        ("input: ['a',]", "1:13: NetParameter.input is ']'; it must be text in quotes"),
        ("input: ['a'", "1:12: found the end of the file in the list of input that begins in line 1"),
        ("input: [\n'a' 2]", "2:5: found '2' in the list of input that begins in line 1; values are separated"),
        ("layer: 3", "1:8: NetParameter.layer is '3'; it must be a block, written { ... }"),
        ("name: 'a',,", "1:11: found ',' where a field of NetParameter must begin"),
        (": 3", "1:1: found ':' where a field of NetParameter must begin"),
        ("3: 3", "1:1: found '3' where a field of NetParameter must begin"),
        ("'a': 3", "1:1: found 'a' where a field of NetParameter must begin"),
        ("[a.b]: 3", "1:1: found '[', which begins an extension"),
        ("name: 'a' // b", "1:11: found '/'; outside quotes the text format has names"),
        ("name:\u00a0'a'", "1:6: found '\\xa0'; outside quotes"),
        ("name: 'a'\nname: 'b'", "2:1: name is given a second time in this NetParameter; it takes one value"),
        ("state {} state {}", "1:10: state is given a second time in this NetParameter"),
        ("layer { clip_param {\n min: 0 } }", "1:9: this ClipParameter lacks max; Caffe requires a value"),
        ("nam: 'a'", "1:1: NetParameter has no field 'nam': did you mean 'name'?"),
        ("state { xyz: 1 }", "1:9: NetState has no field 'xyz'; it has phase, level, stage: remove it"),
        (
            "layer {\n name: 'a'\nlayer {",
            "3:1: LayerParameter has no field 'layer', NetParameter has: close the block of line 1 before it",
        ),
        ("layer { pooling_param { pooling: MAX } }", "no field 'pooling': did you mean 'pool'?"),
    ],
)
def test_an_error_of_structure_names_its_place(text, message):
    said = refused(text)
    assert said.startswith("a.prototxt:")
    assert message in said


@pytest.mark.parametrize(
    "text",
    [
        "{" * 10**6,
        "layer {" * 10**5,
        "debug: {" * 10**5,
        "forward_type: " + "[" * 10**5,
        "name: '" + "\\1" * 10**6,
        "name: '" + "x" * 10**7,
        "name: " + "9" * 10**7,
        "input: " + "''" * 10**5 + "\xff",
        "loss_weight: " + "9" * 10**7,
        "x" * 10**7,
        "'" * 10**6,
        "\\" * 10**6,
        "#" * 10**6 + "\n{",
        " " * 10**7 + "\0",
    ],
    ids=lambda text: text[:8].strip(),
)
def test_garbage_of_any_size_and_depth_is_a_short_error(text):
    for message in (NetParameter, LayerParameter):
        assert len(refused(text, message)) < 1000


# Blobs


def test_numbers_of_a_blob_are_packed():
    blob = parse_text("shape { dim: 3 } data: 1 data: [-2.5, 1e400] double_data: 0.1 diff: []", BlobProto).message
    assert blob.data == [struct.pack("<3f", 1, -2.5, math.inf)]
    assert blob.double_data == [struct.pack("<d", 0.1)]
    assert not blob.diff
    assert format_text(blob) == "data: 1\ndata: -2.5\ndata: inf\nshape {\n  dim: 3\n}\ndouble_data: 0.1\n"


def test_the_pieces_of_a_blobs_data_become_one():
    blob = BlobProto(data=[struct.pack("<f", 1), struct.pack("<2f", 2, 3)])
    assert parse_text(format_text(blob), BlobProto).message.data == [struct.pack("<3f", 1, 2, 3)]


def test_damaged_data_has_no_text():
    with pytest.raises(NetError, match="data of a blob has 5 bytes; each number takes 4"):
        format_text(BlobProto(data=[b"12345"]))


def test_bytes_that_are_no_utf8_are_read_as_caffe_reads_them(tmp_path):
    """Comments may be of any encoding, and strings are bytes to Caffe."""
    path = tmp_path / "gbk.prototxt"
    path.write_bytes("# \u4e2d\u6587 {\nname: '\u4e2d\u6587'\n".encode("gbk") + b"# caf\xe9")
    parsed = read_text(path, NetParameter)
    assert parsed.message.name == r"\xd6\xd0\xce\xc4"
    assert net(format_text(parsed.message)) == parsed.message == net(r"name: '\xd6\xd0\xce\xc4'")
    raw = NetParameter.FromString(NetParameter(name="abc").SerializeToString().replace(b"abc", b"a\xffc"))
    assert format_text(raw) == r'name: "a\\xffc"' + "\n"
    path.write_bytes("name: 'x'".encode("utf-16"))
    with pytest.raises(NetError, match="byte 3 is 0x00, so this is no text in UTF-8"):
        read_text(path, NetParameter)


# Forks


def fork_field(owner: str, text: str) -> tuple[str, type[Message]]:
    """Put a field into a message of the type `owner`: the text, and the type of the file."""
    if owner in ("NetParameter", "SolverParameter", "LayerParameter"):
        return text, {"NetParameter": NetParameter, "SolverParameter": SolverParameter}.get(owner, LayerParameter)
    fields = LayerParameter.DESCRIPTOR.fields
    holder = next(field.name for field in fields if field.message_type and field.message_type.name == owner)
    return f"{holder} {{ {text} }}", LayerParameter


def test_fields_of_forks_that_change_no_number_are_passed_over():
    for owner, fields in HARMLESS.items():
        for name, reason in fields.items():
            assert reason
            for value in ("FLOAT16", "-1", "'a' 'b'", "[1, 'a', { }]", "{ a: < b: [1] > }", "[ ]"):
                text, message = fork_field(owner, f"{name}: {value};")
                assert parse_text(text, message).message.ByteSize() < 4  # the empty holder


def test_no_field_of_the_schema_is_among_those_of_forks():
    for owner, fields in [*HARMLESS.items(), *REFUSED.items()]:
        assert not set(fields) & set(DESCRIPTOR.message_types_by_name[owner].fields_by_name), owner


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("engine: ", "1:9: found the end of the file in the value that begins in line 1"),
        ("engine: ]", "1:9: found ']' in the value"),
        ("engine: ;", "1:9: found ';' in the value"),
        ("engine { a: [ } ]", "1:15: found '}' in the value"),
        ("engine { ", "1:10: found the end of the file in the value"),
        ("engine: " + "{" * 200, "1:109: blocks are nested more than 100 deep"),
    ],
)
def test_a_field_that_is_passed_over_must_still_be_well_formed(text, message):
    assert message in refused(text)


def test_fields_of_forks_that_change_numbers_are_refused_with_the_reason():
    for owner, fields in REFUSED.items():
        for name, (effect, neutral) in fields.items():
            text, message = fork_field(owner, f"{name}: 7")
            assert refused(text, message).endswith(
                f"{owner} has no field {name!r} in Caffe 1.0; in a fork {effect}"
            )
            assert name not in HARMLESS.get(owner, {})
            for value in neutral:
                text, message = fork_field(owner, f"{name}: {value};")
                assert parse_text(text, message).message.ByteSize() < 4


@pytest.mark.parametrize(("fork", "ours"), [("false", "FLOOR"), ("0", "FLOOR"), ("true", "CEIL")])
def test_ceil_mode_is_honoured(fork, ours):
    assert layer(f"pooling_param {{ ceil_mode: {fork} }}") == layer(f"pooling_param {{ round_mode: {ours} }}")


def test_ceil_mode_beside_round_mode_is_refused():
    text = "pooling_param { round_mode: CEIL ceil_mode: false }"
    assert "round_mode is given a second time in this PoolingParameter" in refused(text, LayerParameter)
    assert "PoolingParameter.round_mode is 'FLOOR'; it must be true or false" in refused(
        "pooling_param { ceil_mode: FLOOR }", LayerParameter
    )


def test_an_engine_of_intels_is_the_default_engine():
    assert layer("lrn_param { engine: MKL2017 }") == layer("lrn_param { engine: DEFAULT }")
    assert "LRNParameter.engine is 'MKL'" in refused("lrn_param { engine: MKL }", LayerParameter)


# Printing


def test_a_net_prints_as_caffes_users_write_it():
    text = r"""name: "a\"b\\\n\001é"
state {
  phase: TRAIN
}
layer {
  name: "conv"
  type: "Convolution"
  loss_weight: 0.1
  loss_weight: -1e-8
  param {
    lr_mult: 1
  }
  convolution_param {
    bias_term: false
    kernel_size: 3
    kernel_size: 5
  }
}
"""
    assert format_text(net(text)) == text


@given(st.floats(width=32, allow_nan=False))
def test_a_float_prints_short_and_reads_back_to_the_same_bits(value):
    text = format_text(FillerParameter(value=value))
    assert struct.pack("f", parse_text(text, FillerParameter).message.value) == struct.pack("f", value)
    assert len(text) <= len("value: -1234567900000000\n")  # before 1e16, exponents begin


def test_a_net_in_place_of_a_solver_and_the_other_way_round():
    with pytest.raises(
        NetError, match="SolverParameter has no field 'name': this looks like a net; give the solver"
    ):
        parse_text('name: "LeNet"', SolverParameter)
    with pytest.raises(
        NetError, match="NetParameter has no field 'base_lr': this looks like a solver; give the net"
    ):
        parse_text("base_lr: 0.1", NetParameter)
