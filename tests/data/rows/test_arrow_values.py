"""Arrow columns of every kind become arrays; what cannot be used names column, row and partition."""

import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow as pa
import pytest

from sparknet.data.rows import arrow_values, image_cells
from sparknet.data.rows.arrow_values import (
    Rows,
    encoded_cells,
    image_values,
    validation_marks,
)
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.image_codec import decode, encode_jpeg, resize
from sparknet.errors import DataError

ROWS = Rows(partition=3, first=100)


def decoded(array, **options):
    """Pixels, which rows are whole, and what is wrong with the others."""
    pixels, complaints = image_values(array, **options)
    good = np.array([row not in complaints for row in range(len(array))], bool)
    return SimpleNamespace(pixels=pixels, good=good, complaints=list(complaints.values()))


def column_of(array, shape=(), **choices):
    return arrow_values.column_of(array, plan=ColumnPlan(name="x", shape=shape, **choices), rows=ROWS)


def values_of(array, shape=(), **choices):
    plan = ColumnPlan(name="x", shape=shape, **choices)
    return arrow_values.values_of(array, column=column_of(array, shape, **choices), plan=plan, rows=ROWS)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("piece", [slice(0, 3), slice(1, 3), slice(2, 2)])
def test_bytes(kind, piece):
    array = pa.array([b"abcd", b"efgh", b"ijkl"], kind)[piece]
    got = values_of(array, (2, 2))
    assert got.dtype == np.uint8
    assert got.shape == (len(array), 2, 2)
    assert got.tobytes() == b"".join(array.to_pylist())


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("piece", [slice(0, 3), slice(1, 3)])
def test_lists(kind, piece):
    array = pa.array([[1, 2], [3, 4], [5, 6]], kind(pa.float32()))[piece]
    got = values_of(array)
    assert got.dtype == np.float32
    assert got.tolist() == array.to_pylist()
    assert values_of(array, (1, 2)).shape == (len(array), 1, 2)


NESTED = [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]], [[13, 14, 15], [16, 17, 18]]]
FIXED = pa.list_(pa.list_(pa.float32(), 3), 2)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(pa.float32())),
        pa.large_list(pa.list_(pa.float64())),
        FIXED,
    ],
    ids=str,
)
@pytest.mark.parametrize("piece", [slice(0, 3), slice(1, 3)])
def test_nested_lists(kind, piece):
    array = pa.array(NESTED, kind)[piece]
    assert column_of(array) == Column(name="x", dtype="float32", shape=(2, 3))
    for shape in ((), (2, 3)):
        got = values_of(array, shape)
        assert got.dtype == np.float32
        assert got.tolist() == array.to_pylist()


def test_lists_of_fixed_size():
    array = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2))[1:]
    assert column_of(array).shape == (2,)
    assert values_of(array, (2, 1)).tolist() == [[[3], [4]], [[5], [6]]]


def test_numbers():
    array = pa.array([1.5, 2.5], pa.float32())
    assert column_of(array) == Column(name="x", dtype="float32", shape=(1,))
    assert values_of(array).tolist() == [[1.5], [2.5]]
    assert values_of(array, (1, 1)).shape == (2, 1, 1)


def test_bytes_need_a_shape():
    with pytest.raises(DataError, match=r"column x is binary, .*set data.shape"):
        column_of(pa.array([b"abc"]))


FLOATS = pa.list_(pa.float32())
WRONG = {
    "null bytes": (pa.array([b"ab", None]), (2,), "row 101 of partition 3 is null"),
    "null list": (pa.array([[1], None], FLOATS), (), "row 101 of partition 3 is null"),
    "null first list": (pa.array([None, [1]], FLOATS), (), "row 100 of partition 3 is null"),
    "null number": (pa.array([1, None], pa.float32()), (), "row 101 of partition 3 is null"),
    "null in a list": (
        pa.array([[9, 9], [1, 2], [3, None]], FLOATS)[1:],
        (),
        "row 101 of partition 3 holds a null",
    ),
    "short bytes": (
        pa.array([b"abc", b"ab"]),
        (3, 1),
        r"row 101 of partition 3 has 2 values; shape \(3, 1\) takes 3",
    ),
    "no bytes": (pa.array([b"", b""]), (3,), "row 100 of partition 3 has 0 values"),
    "long list": (
        pa.array([[1], [1, 2]], FLOATS),
        (),
        r"row 101 of partition 3 has 2 values; shape \(1,\) takes 1",
    ),
    "empty first list": (pa.array([[], [1]], FLOATS), (), "row 100 of partition 3 is empty"),
    "null list within": (
        pa.array([[[1], [2]], [[3], None]], pa.list_(FLOATS)),
        (),
        "row 101 of partition 3 holds a null",
    ),
    "null list within the first": (pa.array([[None]], pa.list_(FLOATS)), (), "row 100 of partition 3 holds a null"),
    "null number within": (
        pa.array([[[9, 9]], [[1, 2]], [[3, None]]], pa.list_(FLOATS))[1:],
        (),
        "row 101 of partition 3 holds a null",
    ),
    "null fixed list within": (
        pa.array([[[1, 2, 3]] * 2, [[1, 2, 3], None]], FIXED),
        (),
        "row 101 of .* holds a null",
    ),
    "fewer lists": (
        pa.array([[[1], [2]], [[1]]], pa.list_(FLOATS)),
        (),
        r"row 101 of partition 3 has 1 values; shape \(2, 1\) takes 2",
    ),
    "a longer list within": (
        pa.array([[[1], [2]], [[3], [4, 5]]], pa.list_(FLOATS)),
        (),
        r"row 101 of partition 3 has 2 values in a list; shape \(2, 1\) takes 1",
    ),
    "empty list within": (pa.array([[[]], [[1]]], pa.list_(FLOATS)), (), "row 100 of partition 3 is empty"),
    "axes exchanged": (
        pa.array(NESTED, FIXED),
        (3, 2),
        r"row 100 of partition 3 has 2 values; shape \(3, 2\) takes 3",
    ),
    "a number for an image": (
        pa.array([1.0], pa.float32()),
        (2,),
        r"row 100 of partition 3 has 1 values; shape \(2,\) takes 2",
    ),
    "not a number": (
        pa.array([[1, 2], [3, float("nan")]], FLOATS),
        (),
        "row 101 of partition 3 holds nan, which is not a finite float32",
    ),
    "infinite": (pa.array([1, float("inf")], pa.float32()), (), "row 101 of partition 3 holds inf, which"),
}


@pytest.mark.parametrize("case", WRONG)
def test_unusable_inputs(case):
    array, shape, message = WRONG[case]
    with pytest.raises(DataError, match=f"column x: {message}"):
        values_of(array, shape)


@pytest.mark.parametrize("shape", [(6,), (2,), (2, 3, 4)])
def test_lists_nested_to_another_depth(shape):
    with pytest.raises(DataError, match=rf"column x holds lists nested 2 deep; shape .* has {len(shape)} sizes"):
        values_of(pa.array(NESTED, FIXED), shape)


def test_nested_lists_may_leave_out_axes_of_one():
    assert values_of(pa.array(NESTED, FIXED), (1, 2, 3)).tolist() == [[row] for row in NESTED]


def picture(seed, height=20, width=30) -> np.ndarray:
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8), (width, height))


FORM = ImageForm()
JPEGS = [encode_jpeg(picture(seed), quality=95) for seed in range(5)]
TALL = encode_jpeg(picture(9, 33, 22))
CUT = JPEGS[0][:-40]
IMAGES = Column(name="x", dtype="uint8", shape=(3, 20, 30), image=FORM)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_tell_their_shape(kind):
    assert column_of(pa.array(JPEGS, kind), form=FORM) == IMAGES
    assert column_of(pa.array(JPEGS, kind), form=FORM, resize=(8, 9)).shape == (3, 8, 9)
    assert column_of(pa.array(JPEGS, kind), (1, 28, 28), form=FORM).shape == (1, 28, 28)
    assert column_of(pa.array(JPEGS, kind), (1, 28, 28), form=FORM, resize=(8, 9)).shape == (1, 8, 9)
    assert column_of(pa.array(JPEGS, kind), form=ImageForm(order="bgr")).image == ImageForm(order="bgr")


def test_pixels_are_known_by_their_number():
    assert column_of(pa.array([bytes(12)]), (3, 2, 2), form=FORM) == Column(
        name="x", dtype="uint8", shape=(3, 2, 2)
    )
    assert column_of(pa.array(JPEGS[:1]), (len(JPEGS[0]),)).image is None


def test_a_jpeg_of_as_many_bytes_as_the_shape_has_is_an_image():
    content = JPEGS[0] + bytes(3 * 20 * 30 - len(JPEGS[0]))
    assert column_of(pa.array([content]), (3, 20, 30), form=FORM) == IMAGES


def test_the_first_whole_image_tells():
    assert column_of(pa.array([None, b"", b"text", CUT, TALL[:100], JPEGS[0], TALL]), form=FORM) == IMAGES
    for damaged in ([None], [None, b""], [CUT, b"text"], [JPEGS[0][:4], None]):
        assert column_of(pa.array(damaged, pa.binary()), form=FORM) is None


def test_bytes_that_are_no_images():
    with pytest.raises(
        DataError,
        match=r"column x is binary, .*; row 101 of .* begins as no image this package knows: set data.shape",
    ):
        column_of(pa.array([None, b"abc"]), form=FORM)
    with pytest.raises(
        DataError, match=r"row 100 of .* has 3 values; shape \(3, 2, 2\) takes 12, and the row begins as no image"
    ):
        column_of(pa.array([b"abc"]), (3, 2, 2), form=FORM)


@pytest.mark.parametrize("shape", [(784,), (4, 20, 30), (20, 30, 3)])
def test_shapes_that_images_do_not_have(shape):
    with pytest.raises(
        DataError, match=r"column x holds encoded images and data.shape is \[.*with 1 or 3 channels"
    ):
        column_of(pa.array(JPEGS), shape, form=FORM)


def images_of(cells, column=IMAGES, **choices):
    array = cells if isinstance(cells, pa.Array) else pa.array(cells, pa.binary())
    return decoded(array, column=column, rows=ROWS, **{"resizes": False, **choices})


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_images(threads):
    cells = [JPEGS[0], None, JPEGS[1], CUT, JPEGS[2], b"text", JPEGS[3], JPEGS[4]]
    found = images_of(cells, threads=threads)
    assert found.good.tolist() == [True, False, True, False, True, False, True, True]
    assert (found.pixels.dtype, found.pixels.shape) == (np.uint8, (8, 3, 20, 30))
    for index, content in enumerate(cells):
        if found.good[index]:
            expected = decode(content, channels=3, order="rgb").transpose(2, 0, 1)
            assert (found.pixels[index] == expected).all()
    assert not found.pixels[~found.good].any()
    null, cut, text = found.complaints
    assert null == "column x: row 101 of partition 3: the image is null: leave it out"
    assert cut.startswith(
        f"column x: row 103 of partition 3: the JPEG of {len(CUT)} bytes is damaged or cut short:"
    )
    assert text.startswith("column x: row 105 of partition 3: 4 bytes that begin with b'text' are no image")


def test_no_images_at_all():
    assert images_of([]).pixels.shape == (0, 3, 20, 30)
    found = images_of([None, None], threads=2)
    assert not found.good.any()
    assert len(found.complaints) == 2


def test_a_slice_of_images():
    found = images_of(pa.array([None, JPEGS[3], CUT], pa.binary())[1:])
    assert found.good.tolist() == [True, False]
    assert found.complaints[0].startswith("column x: row 101 ")


@pytest.mark.parametrize("mode", ["exact", "shorter_side"])
def test_images_are_resized_where_asked(mode):
    column = Column(name="x", dtype="uint8", shape=(3, 16, 16), image=ImageForm(order="bgr", resize_mode=mode))
    found = images_of([JPEGS[0], TALL], column, resizes=True)
    for index, content in enumerate((JPEGS[0], TALL)):
        expected = resize(decode(content, channels=3, order="bgr"), (16, 16), mode)
        assert (found.pixels[index] == expected.transpose(2, 0, 1)).all()


def test_images_of_several_sizes_need_a_size():
    message = (
        r"column x: row 102 of partition 3 is an image of 33 x 22 \(height x width\); 20 x 30 is the size of the "
        "others: set data.resize"
    )
    with pytest.raises(DataError, match=message):
        images_of([JPEGS[0], CUT, TALL, TALL], threads=2)
    assert images_of([JPEGS[0], TALL[:-30]]).good.tolist() == [True, False]


STORED = ImageForm(order="bgr", as_stored=True)


def png(*shape: int, dtype: type = np.uint8) -> bytes:
    return cv2.imencode(".png", np.full(shape, 7, dtype))[1].tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_as_stored_are_those_of_the_first_image(channels):
    array = pa.array([png(5, 6, channels)], pa.binary())
    assert column_of(array, form=STORED, channels=0).shape == (channels, 5, 6)
    assert column_of(array, form=STORED, channels=0, resize=(2, 3)).shape == (channels, 2, 3)


def test_images_of_other_channels_are_named():
    column = Column(name="x", dtype="uint8", shape=(1, 5, 6), image=STORED)
    mixed = [png(5, 6), png(5, 6, 3), CUT, png(5, 6, 4), png(5, 6, 3)[:-9], png(5, 6, 3), png(5, 6, 3)]
    message = (
        "column x: images have 1 channels like the first one, and row 101 of partition 3 has 3, row 103 of "
        r"partition 3 has 4, row 105 of partition 3 has 3 and 1 more near by; as they are stored all must have as "
        "many: make them alike, or .* force_gray or force_color"
    )
    with pytest.raises(DataError, match=message):
        images_of(mixed, column)
    found = images_of([png(5, 6), CUT, png(5, 6)], column)
    assert found.good.tolist() == [True, False, True]
    assert (found.pixels[0] == 7).all()


def test_images_of_sixteen_bits_are_not_cut_to_eight_where_they_are_wanted_as_stored():
    message = "column x: row 100 of partition 3 is an image of 16 bits; with channels as stored it must have 8"
    deep = png(5, 6, dtype=np.uint16)
    with pytest.raises(DataError, match=message):
        column_of(pa.array([deep], pa.binary()), form=STORED, channels=0)
    column = Column(name="x", dtype="uint8", shape=(1, 5, 6), image=STORED)
    with pytest.raises(DataError, match=message):
        images_of([deep], column)


def test_threads_decode_at_the_same_time(monkeypatch):
    meeting = threading.Barrier(2, timeout=20)
    wrapped = image_cells.decode_into

    def meet(out, data, *, form):
        meeting.wait()
        wrapped(out, data, form=form)

    monkeypatch.setattr(image_cells, "decode_into", meet)
    assert images_of(JPEGS[:4], threads=2).good.all()


STRUCT = pa.struct(
    [
        ("origin", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("nChannels", pa.int32()),
        ("mode", pa.int32()),
        ("data", pa.binary()),
    ]
)


def struct(pixels: np.ndarray, **other):
    """A cell of Spark's `image` source."""
    height, width, channels = pixels.shape
    mode = {1: 0, 3: 16, 4: 24}[channels]
    cell = {"height": height, "width": width, "nChannels": channels, "mode": mode, "data": pixels.tobytes()}
    return {"origin": "file:/a.png", **cell, **other}


INVALID = {"origin": "file:/b.png", "height": -1, "width": -1, "nChannels": -1, "mode": -1, "data": b""}


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_images_that_spark_has_decoded(order):
    bgr = picture(1)
    grey, clear = bgr[..., :1].copy(), np.dstack([bgr, bgr[..., 0]])
    array = pa.array([None, INVALID, struct(bgr), struct(clear), struct(grey)], STRUCT)
    column = column_of(array, form=ImageForm(order=order))
    assert column == Column(name="x", dtype="uint8", shape=(3, 20, 30), image=ImageForm(order=order))
    found = images_of(array, column)
    assert found.good.tolist() == [False, False, True, True, True]
    expected = (bgr if order == "bgr" else bgr[..., ::-1]).transpose(2, 0, 1)
    assert (found.pixels[2] == expected).all()
    assert (found.pixels[3] == expected).all()
    assert (found.pixels[4] == grey[..., 0]).all()
    null, invalid = found.complaints
    assert "row 100 of partition 3: the image is null" in null
    assert (
        "row 101 of partition 3: the image struct has height -1, width -1, nChannels -1, mode -1 and 0" in invalid
    )


def test_images_that_spark_has_decoded_in_grey_and_resized():
    column = Column(name="x", dtype="uint8", shape=(1, 8, 9), image=FORM)
    found = images_of(pa.array([struct(picture(1))], STRUCT), column, resizes=True)
    expected = cv2.resize(cv2.cvtColor(picture(1), cv2.COLOR_BGR2GRAY), (9, 8))
    assert (found.pixels[0, 0] == expected).all()
    with pytest.raises(DataError, match=r"image of 20 x 30 .*; 8 x 9 is the size of the others"):
        images_of(pa.array([struct(picture(1))], STRUCT), column)


@pytest.mark.parametrize(
    "other",
    [
        {"mode": 21},
        {"data": b"short"},
        {"data": None},
        {"height": None},
        {"nChannels": 2},
        {"height": -20, "width": -30},
        {"height": 0, "data": b""},
    ],
    ids=str,
)
def test_structs_that_are_no_images(other):
    array = pa.array([struct(picture(1), **other)], STRUCT)
    assert column_of(array, form=FORM) is None
    found = images_of(array)
    assert not found.good.any()
    assert "which is no 8-bit image of 1, 3 or 4 channels" in found.complaints[0]


def test_only_files_can_be_kept_encoded():
    array = pa.array(JPEGS, pa.large_binary())
    assert encoded_cells(array, name="x") is array
    with pytest.raises(DataError, match=r"column x holds pixels that Spark has decoded, .*set data.keep to"):
        encoded_cells(pa.array([INVALID], STRUCT), name="x")


def test_labels():
    labels = values_of(pa.array([0, 5, 2]), classes=6)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 5, 2]


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([1, None], 3, "column x: row 101 of partition 3 is null"),
        ([1, -1], None, "column x, partition 3: row 101 has label -1"),
        ([1, 3], 3, "column x, partition 3: row 101 has label 3; labels must be 0 to 2 for 3 classes"),
        ([1 << 40], None, "row 100 has label 1099511627776; labels must be 0 to 1048575"),
    ],
)
def test_unusable_labels(values, classes, message):
    with pytest.raises(DataError, match=message):
        values_of(pa.array(values, pa.int64()), classes=classes or 0)


def test_marks():
    assert validation_marks(pa.array([True, False]), name="v", rows=ROWS).tolist() == [True, False]
    with pytest.raises(DataError, match="column v: row 101 of partition 3 is null"):
        validation_marks(pa.array([True, None]), name="v", rows=ROWS)


# Lists of any length, whole numbers, weights --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
def test_lists_of_any_length_are_filled_up(kind):
    array = pa.array([[7, 8], [], [1, 2, 3]], kind(pa.int64()))
    assert column_of(array, length=4).shape == (4,)
    got = values_of(array, length=4, pad=-1.0)
    assert got.dtype == np.int64
    assert got.tolist() == [[7, 8, -1, -1], [-1] * 4, [1, 2, 3, -1]]
    # A slice has offsets that do not begin at 0.
    assert values_of(array[1:], length=3).tolist() == [[0, 0, 0], [1, 2, 3]]
    assert values_of(array[:0], length=3).shape == (0, 3)


def test_lists_are_cut_where_that_is_asked_for():
    array = pa.array([[7, 8], [1, 2, 3]], pa.list_(pa.int64()))
    assert values_of(array, length=2, truncate=True).tolist() == [[7, 8], [1, 2]]
    with pytest.raises(DataError, match=r"row 101 of partition 3 has 3 values; length 2 takes no more: raise"):
        values_of(array, length=2)


def test_lists_of_fractions_are_filled_up_too():
    got = values_of(pa.array([[0.5], [1.5, 2.5]], pa.list_(pa.float64())), length=2, pad=-0.25)
    assert got.dtype == np.float32
    assert got.tolist() == [[0.5, -0.25], [1.5, 2.5]]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (pa.int64(), [[1], [2, None]], "column x: row 101 of partition 3 holds a null"),
        (pa.int64(), [[1], None], "column x: row 101 of partition 3 is null"),
        (pa.float64(), [[1.0], [], [2.0, 2.5]], "column x: row 102 of partition 3 holds 2.5, which is no int64"),
        (pa.float64(), [[1.0, float("nan")]], "column x: row 100 of partition 3 holds nan, which is no int64"),
        (pa.uint64(), [[1], [1 << 63]], "column x: row 101 of partition 3 holds 9223372036854775808, which is no"),
    ],
)
def test_numbers_that_no_id_is(kind, values, message):
    with pytest.raises(DataError, match=message):
        values_of(pa.array(values, pa.list_(kind)), length=3, dtype="int64")


def test_whole_numbers_keep_their_type_where_that_is_asked_for():
    array = pa.array([[[0, 255], [1, 2]]], pa.list_(pa.list_(pa.int64())))
    assert values_of(array, dtype="uint8").dtype == np.uint8
    assert values_of(array, dtype="float32").dtype == np.float32
    with pytest.raises(
        DataError, match=r"row 101 of partition 3 holds 256, which is no uint8; correct such rows, or"
    ):
        values_of(pa.array([[1, 2], [256, 0]], pa.list_(pa.int64())), dtype="uint8")


def test_a_single_number_is_a_vector_of_one_or_a_number():
    array = pa.array([0.5, 1.5], pa.float32())
    assert values_of(array).shape == (2, 1)
    assert values_of(array, number_shape=()).shape == (2,)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_shown(value):
    with pytest.raises(DataError, match=f"row 101 of partition 3 holds {value}, which is not a finite float32"):
        values_of(pa.array([0.0, value], pa.float32()), number_shape=())


def test_weights_are_at_least_0():
    array = pa.array([0.0, 2.5], pa.float32())
    assert values_of(array, number_shape=(), weight=True).tolist() == [0.0, 2.5]
    with pytest.raises(DataError, match=r"row 101 of partition 3 is -0\.5; the weight of a row must be at least 0"):
        values_of(pa.array([1.0, -0.5], pa.float32()), number_shape=(), weight=True)
