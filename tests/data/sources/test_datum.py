"""Datum records: read and written as protobuf reads and writes them, and damage is named."""

import re

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.caffe.schema import Datum
from sparknet.data.sources import datum
from sparknet.data.sources.datum import parse, write
from sparknet.errors import DataError

INT32 = st.integers(-(2**31), 2**31 - 1)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "channels": INT32,
        "height": INT32,
        "width": INT32,
        "data": st.binary(max_size=300),
        "label": INT32,
        "float_data": st.lists(st.floats(width=32, allow_nan=False), max_size=40),
        "encoded": st.booleans(),
    },
)
PIECES = st.sampled_from(
    [
        b"\x08\x03\x10\x02\x18\x02",
        b"\x22\x03abc",
        b"\x28\x05",
        b"\x28" + b"\xff" * 9 + b"\x01",
        b"\x35\x00\x00\x80\x3f",
        b"\x35\x00\x00\x80\x3f" * 70,
        b"\xb5\x00\x00\x00\x80\x3f",  # a tag in two bytes where one would do
        b"\x32\x08\x00\x00\x00\x40\x00\x00\x40\x40",
        b"\x38\x01",
        b"\x38\x00",
        b"\x0d\x01\x02\x03\x04",  # channels in another wire type: unknown
        b"\x09" + bytes(8),
        b"\x42\x02xy",
        b"\x7b\x08\x01\x7c",  # a group
        b"\x7b\x7b\x42\x01z\x7c\x7c",
        b"\xf8\xff\xff\xff\x0f\x05",  # the largest field number
        b"\x7b",
        b"\x7c",
        b"\x00",
        b"\x22",
        b"\x80",
        b"\xff",
    ]
)


def reading(value: bytes) -> datum.Datum | str:
    """The record, or the message that refuses it."""
    try:
        return parse(memoryview(value))
    except DataError as error:
        return str(error)


def assert_same(value: bytes) -> None:
    """Ours and protobuf's reading of the same bytes agree, also in refusing them."""
    try:
        expected = Datum.FromString(value)
    except DecodeError:
        with pytest.raises(DataError, match=r"offset \d+"):
            parse(value)
        return
    found = reading(value)
    if isinstance(found, str):
        # upb looks at no field number within a group that it skips; there is no field 0
        assert re.search(r"0x[0-5] is no field's tag", found)
        assert any(byte & 7 == 3 for byte in value)
        return
    assert found.shape == (expected.channels, expected.height, expected.width)
    assert (bytes(found.data), found.label, found.encoded) == (expected.data, expected.label, expected.encoded)
    floats = np.array(expected.float_data, np.float32)
    assert (found.float_data is None) == (floats.size == 0)
    if found.float_data is not None:
        assert found.float_data.dtype == np.float32
        np.testing.assert_array_equal(found.float_data, floats)


@settings(deadline=None)
@given(FIELDS)
def test_what_protobuf_writes_is_read(fields):
    assert_same(Datum(**fields).SerializeToString())


@settings(deadline=None)
@given(FIELDS)
def test_what_is_written_is_what_protobuf_writes(fields):
    shape = ("channels", "height", "width")
    fields = {name: value for name, value in fields.items() if name not in shape} | (
        {name: fields[name] for name in shape} if set(shape) <= set(fields) else {}
    )
    ours = {name: value for name, value in fields.items() if name not in shape}
    if "channels" in fields:
        ours["shape"] = tuple(fields[name] for name in shape)
    if "float_data" in fields:
        ours["float_data"] = np.array(fields["float_data"], np.float32)
    assert write(**ours) == Datum(**fields).SerializeToString()


@settings(deadline=None)
@given(st.lists(PIECES, max_size=12), st.integers(0, 3))
def test_any_order_of_any_fields_is_read_as_protobuf_reads_it(pieces, cut):
    value = b"".join(pieces)
    assert_same(value[: len(value) - cut])


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_as_protobuf_does(value):
    assert_same(value)


@settings(deadline=None)
@given(FIELDS.map(lambda fields: Datum(**fields).SerializeToString()), st.data())
def test_a_changed_byte_is_read_or_refused_as_protobuf_does(value, data):
    if value:
        at = data.draw(st.integers(0, len(value) - 1))
        value = value[:at] + bytes([data.draw(st.integers(0, 255))]) + value[at + 1 :]
    assert_same(value)


@pytest.mark.parametrize("label", [0, 5, 127, 128, 999, -1, 2**31 - 1])
@pytest.mark.parametrize("encoded", [None, False, True])
def test_the_pixels_are_a_view_of_the_record(label, encoded):
    value = write(shape=(3, 20, 10), data=bytes(range(200)) * 3, label=label, encoded=encoded)
    found = parse(value)
    assert found.shape == (3, 20, 10)
    assert found.label == label
    assert found.encoded == bool(encoded)
    assert found.data.obj is value
    assert found.data == bytes(range(200)) * 3


def test_long_runs_of_floats_packed_and_not():
    values = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    tagged, packed = write(float_data=values), b"\x32\xa0\x9c\x01" + values.tobytes()
    for value in (tagged, packed, tagged + b"\x28\x07" + packed):
        assert_same(value)
    np.testing.assert_array_equal(parse(tagged).float_data, values)


def test_many_short_runs_of_floats_take_time_in_proportion():
    """Fields between the floats do not make each run look at all that follows."""
    value = (b"\x35\x00\x00\x80\x3f\x28\x01") * 20_000
    assert parse(value).float_data.tolist() == [1.0] * 20_000  # 20,000 looks at 100 kB each would take many seconds


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"\x08\x03\x22\x05ab", r"offset 3: a field of 5 bytes, and the record ends after 2"),
        (b"\x08\x03\x28\x80", r"offset 4: the record ends within a number"),
        (b"\x08" + b"\xff" * 11, r"offset 1: a number of more than 10 bytes"),
        (b"\x08\x03\x07", r"offset 2: 0x7 is no field's tag"),
        (b"\x32\x03abc", r"offset 2: float_data of 3 bytes"),
        (b"\x35\x00", r"offset 0: the record ends within float_data"),
        (b"\x0c", r"offset 0: the end of group 1, which is not open"),
        (b"\x0b" * 200, r"nested too deeply"),
        (b"\x49\x01", r"offset 0: field 9 goes beyond the record's end"),
    ],
)
def test_damage_is_named_with_its_offset(value, words):
    with pytest.raises(DataError, match=words):
        parse(value)


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1])
def test_numbers_beyond_32_bits_are_not_written(number):
    with pytest.raises(DataError, match=f"{number} does not fit 32 bits"):
        write(label=number)
    with pytest.raises(DataError, match=f"{number} does not fit 32 bits"):
        write(shape=(1, number, 1))
