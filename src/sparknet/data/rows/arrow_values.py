"""Arrow columns as Spark sends them, checked and turned into numpy arrays as the shards hold them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa

from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import MOST_CLASSES, Column, ImageForm, check_labels
from sparknet.data.rows.image_cells import ImageCells, holds_pixels, is_binary
from sparknet.data.rows.own_size import SeveralSizes, is_packed, packed_among, planes_of
from sparknet.errors import BadImage, DataError

__all__ = [
    "Rows",
    "check_images",
    "column_of",
    "encoded_cells",
    "image_values",
    "images_of_own_size",
    "validation_marks",
    "values_of",
]


_NAMED = 3  # rows that a message names

_WHOLE: dict[str, Any] = {"uint8": pa.uint8(), "int64": pa.int64()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Which rows of a source a batch holds, for error messages."""

    partition: int
    """The input partition that they come from; of a DataFrame Spark's."""
    first: int
    """Number of the batch's first row within the partition."""
    names: Any = None
    """Arrow array of what the source itself calls the rows, if it has names for them."""

    def name(self, index: int) -> str:
        """Name the batch's row `index`."""
        own = self.names[index].as_py() if self.names is not None else None
        number = f"row {self.first + index} of partition {self.partition}"
        return f"{number} ({own})" if own else number


def column_of(array: Any, *, plan: ColumnPlan, rows: Rows) -> Column | None:
    """Describe the column that `array` starts: bytes and images become uint8, numbers float32 or int64.

    Args:
        array: its first Arrow array, of one row at least: binary, the struct of Spark's `image` source, lists of
            numbers, nested or not, float32, or int64.
        plan: how the column is read.
        rows: what the array holds.

    Returns:
        The column, with `image` set if its rows are images; None if they are, but all of this array's are null or
        damaged, so that nothing can be told before the next array.

    Raises:
        DataError: bytes of unknown shape that are no image, or a first row that is null or empty.
    """
    kind, name, shape = array.type, plan.name, plan.shape
    # Before the shape is asked for: encoded images say their own, and pixels that Spark decoded too.
    if plan.form is not None and (is_binary(kind) or holds_pixels(kind)):
        return _image_column(array, plan=plan, form=plan.form, rows=rows)
    if is_binary(kind):
        if not shape:
            raise DataError(_unknown_shape(name))
        return Column(name=name, dtype="uint8", shape=shape)
    if not _is_list(kind):
        whole = pa.types.is_integer(kind)
        classes = plan.classes if whole else None
        return Column(
            name=name,
            dtype="int64" if whole else "float32",
            shape=() if whole and not shape else shape or plan.number_shape,
            classes=classes,
        )
    dtype = plan.dtype or ("int64" if pa.types.is_integer(_innermost(kind)) else "float32")
    if plan.length is not None:
        return Column(name=name, dtype=dtype, shape=(plan.length,))
    return Column(name=name, dtype=dtype, shape=shape or _first_shape(array, name=name, rows=rows))


def values_of(array: Any, *, column: Column, plan: ColumnPlan, rows: Rows) -> np.ndarray:
    """Check an Arrow array of a column and give its values, `column.dtype` [n, *shape].

    Images are for `image_values`.

    Raises:
        DataError: naming column and row: a null at any depth, a width that is not `column.shape`'s, a number that
            is not finite, a class outside 0..classes-1, or a weight below 0.
    """
    _refuse_nulls(array, name=column.name, rows=rows)
    if is_binary(array.type):
        if plan.own_size == "if_needed":
            _find_packed(array, column=column, rows=rows)
        # A view of Arrow's own memory: what is checked here is copied once, into the shard.
        values, widths = _bytes(array)
        _check_widths(widths, column=column, rows=rows, size=column.width)
    elif _is_list(array.type) and plan.length is not None:
        values = _padded(array, column=column, plan=plan, rows=rows)
    elif _is_list(array.type):
        values = _numbers(array, column=column, rows=rows)
    else:
        values = array.to_numpy(zero_copy_only=False)
        _check_widths(np.ones(len(array), np.int64), column=column, rows=rows, size=column.width)
    values = values.reshape(len(array), *column.shape)
    if column.dtype == "float32":
        _refuse_infinite(values, name=column.name, rows=rows)
    if column.classes is not None:
        where = f"column {column.name}, partition {rows.partition}"
        check_labels(values, classes=column.classes or MOST_CLASSES, where=where, first_row=rows.first)
    if plan.weight:
        _refuse_negative(values, name=column.name, rows=rows)
    return values


def image_values(
    array: Any, *, column: Column, rows: Rows, resizes: bool, several: bool = False, threads: int = 1
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode an Arrow array of images; null and damaged ones are left out and complained about.

    Args:
        array: binary, or the struct of Spark's `image` source.
        column: with `image` set; its shape is what every image is brought to.
        rows: what the array holds.
        resizes: images of other sizes are scaled; False: they are an error.
        several: which says that they may be read in another way.
        threads: that decode at the same time; the decoders let go of Python's lock.

    Returns:
        Pixels, uint8 [n, *shape], 0 where a row is damaged, and by row what is wrong with it.

    Raises:
        SeveralSizes: an image of another size than the column's, where `several`.
        DataError: an image of another size than the column's, and not `resizes`; or of another number of channels
            where these are as stored.
    """
    cells = ImageCells(array)
    if not resizes:
        _check_sizes(cells, column=column, rows=rows, several=several)
    form = column.image
    assert form is not None, "the caller decodes images"
    if form.as_stored:
        _check_channels(cells, column=column, rows=rows)
    # Threads write into rows of one array: nothing is put together afterwards.
    pixels = np.empty((len(array), *column.shape), np.uint8)
    bad = _for_each(len(array), lambda at: cells.write(at, pixels[at], form=form), threads=threads)
    # A decoder that failed may have written half an image.
    pixels[list(bad)] = 0
    return pixels, _complaints(bad, name=column.name, rows=rows)


def images_of_own_size(
    array: Any, *, column: Column, bare: bool, rows: Rows, threads: int = 1
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode an Arrow array of images of any size; null and damaged ones are left out and complained about.

    Args:
        array: binary, or the struct of Spark's `image` source.
        column: with `image` set.
        bare: the bytes are no files, but pixels of the column's shape or those that say their own.
        rows: what the array holds.
        threads: as for `image_values`.

    Returns:
        The images, object [n], each uint8 [channels, height, width], None where a row is damaged; and by row what
        is wrong with it.

    Raises:
        DataError: an image of another number of channels than the column's where these are as stored.
    """
    form, channels = column.image, column.shape[0]
    assert form is not None, "the caller decodes images"
    cells, images = ImageCells(array), np.full(len(array), None, object)
    if form.as_stored and not bare:
        _check_channels(cells, column=column, rows=rows)

    def read(at: int) -> None:
        if bare and len(cell := array[at].as_py()) == column.width and not is_packed(cell):
            images[at] = np.frombuffer(cell, np.uint8).reshape(column.shape)
        else:
            images[at] = cells.planes(at, form=form, channels=channels)

    bad = _for_each(len(array), read, threads=threads)
    return images, _complaints(bad, name=column.name, rows=rows)


def check_images(array: Any, *, name: str, form: ImageForm, rows: Rows, threads: int = 1) -> dict[int, str]:
    """Decode an Arrow array of images to find which are not whole: by row what is wrong with it.

    Args:
        array: binary, or the struct of Spark's `image` source.
        name: the column's.
        form: how they are decoded.
        rows: what the array holds.
        threads: as for `image_values`.
    """
    cells = ImageCells(array)
    bad = _for_each(len(array), partial(cells.decode, form=form), threads=threads)
    return _complaints(bad, name=name, rows=rows)


def encoded_cells(array: Any, *, name: str) -> Any:
    """The files that an Arrow array of images holds, binary or large_binary, to be kept as they are.

    Raises:
        DataError: the column `name` holds pixels, as Spark's `image` source gives them.
    """
    if is_binary(array.type):
        return array
    raise DataError(
        f"column {name} holds pixels that Spark has decoded, which cannot be kept encoded: set data.keep to "
        '"pixels", or read the files with source image_folder'
    )


def validation_marks(array: Any, *, name: str, rows: Rows) -> np.ndarray:
    """Check an Arrow array of booleans and give them, bool [n].

    Raises:
        DataError: naming column and row of a null.
    """
    _refuse_nulls(array, name=name, rows=rows)
    return array.to_numpy(zero_copy_only=False)


def _is_list(kind: Any) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _unknown_shape(name: str, reason: str = "") -> str:
    return (
        f"column {name} is binary, which says nothing of its shape{reason}: set data.shape, "
        "as in [3, 32, 32] for (channels, height, width)"
    )


def _image_column(array: Any, *, plan: ColumnPlan, form: ImageForm, rows: Rows) -> Column | None:
    cells, name, shape = ImageCells(array), plan.name, plan.shape
    for index in range(len(array)):
        # Bytes of just the right length that begin as no image are pixels; an image may have that length too.
        if shape and cells.count_bytes(index) == prod(shape) and not cells.begins(index):
            return Column(name=name, dtype="uint8", shape=shape)
        try:
            _refuse_deep(cells, index, form=form, name=name, rows=rows)
            height, width, held = cells.decode(index, form=form).shape
        except BadImage:
            continue
        channels, *wanted = _image_shape(shape, name=name) or (plan.channels or held, height, width)
        return Column(name=name, dtype="uint8", shape=(channels, *(plan.resize or wanted)), image=form)
    # No image was whole. Damaged images leave the question open; what never began as one is an error of settings.
    strange = [index for index in range(len(array)) if cells.count_bytes(index)]
    if not strange or any(cells.begins(index) for index in strange):
        return None
    first, length = rows.name(strange[0]), cells.count_bytes(strange[0])
    if not shape:
        raise DataError(_unknown_shape(name, f"; {first} begins as no image this package knows"))
    raise DataError(
        f"column {name}: {first} has {length} values; shape {shape} takes {prod(shape)}, and the row begins as no "
        "image this package knows: correct the rows or data.shape"
    )


def _image_shape(shape: tuple[int, ...], *, name: str) -> tuple[int, ...]:
    if shape and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise DataError(
            f"column {name} holds encoded images and data.shape is {list(shape)}; it must be "
            "[channels, height, width] with 1 or 3 channels: correct it or leave it out"
        )
    return shape


def _refuse_deep(cells: ImageCells, index: int, *, form: ImageForm, name: str, rows: Rows) -> None:
    """Refuse an image of more than 8 bits where it is wanted as it is stored: cut to 8 it would be another."""
    if form.as_stored and (bits := cells.header(index).bits) != 8:
        raise DataError(
            f"column {name}: {rows.name(index)} is an image of {bits} bits; with channels as stored it must "
            'have 8: convert it, or bring all images to 8 bits with data.channels = "grey" or "colour"'
        )


def _check_channels(cells: ImageCells, *, column: Column, rows: Rows) -> None:
    assert column.image is not None, "the caller decodes images"
    others: dict[str, int] = {}
    for index in range(len(cells)):
        with suppress(BadImage):
            _refuse_deep(cells, index, form=column.image, name=column.name, rows=rows)
            held = cells.header(index).channels
            if held != column.shape[0]:
                cells.decode(index, form=column.image)  # the header of a damaged file proves nothing
                others[rows.name(index)] = held
    if others:
        named = ", ".join(f"{row} has {held}" for row, held in islice(others.items(), _NAMED))
        more = f" and {len(others) - _NAMED} more near by" if len(others) > _NAMED else ""
        raise DataError(
            f"column {column.name}: images have {column.shape[0]} channels like the first one, and {named}{more}; "
            "as they are stored all must have as many: make them alike, or bring all to one or three with "
            'data.channels = "grey" or "colour", in the data layer of a Caffe net force_gray or force_color'
        )


def _find_packed(array: Any, *, column: Column, rows: Rows) -> None:
    """Find pixels that say a size of their own among those of the column's."""
    values, widths = _bytes(array)
    odd = widths != column.width
    if not odd.any():
        odd = packed_among(values.reshape(len(array), -1))
    for index in np.flatnonzero(odd).tolist():
        cell = array[index].as_py()
        if is_packed(cell):
            size = planes_of(cell, form=ImageForm(), channels=column.shape[0]).shape[1:]
            raise SeveralSizes(column.name, _two_sizes(rows.name(index), size, column))


def _two_sizes(row: str, size: tuple[int, ...], column: Column) -> str:
    return (
        f"{row} is an image of {size[0]} x {size[1]} (height x width); {column.shape[1]} x {column.shape[2]} is "
        "the size of the others"
    )


def _check_sizes(cells: ImageCells, *, column: Column, rows: Rows, several: bool) -> None:
    form = column.image
    assert form is not None, "the caller decodes images"
    for index in range(len(cells)):
        try:
            # The header is enough where it agrees: decoding would double the work.
            size = cells.header(index).size if form.as_stored else cells.size(index)
            if size != column.shape[1:]:
                cells.decode(index, form=form)  # the header of a damaged file proves nothing
        except BadImage:
            continue
        if size != column.shape[1:]:
            example = _two_sizes(rows.name(index), size, column)
            if several:
                raise SeveralSizes(column.name, example)
            raise DataError(
                f"column {column.name}: {example}: set data.resize; or cut a square out of each, with data.crop or "
                "with crop_size in a Caffe net's data layers of both phases, and take no mean image off"
            )


def _for_each(count: int, decode: Callable[[int], object], *, threads: int) -> dict[int, str]:
    """Decode cells by number; by number what is wrong with the bad ones, in order."""

    def work(part: range) -> list[tuple[int, str]]:
        bad: list[tuple[int, str]] = []
        for index in part:
            try:
                decode(index)
            except BadImage as error:
                bad.append((index, str(error)))
        return bad

    # Interleaved, so that no thread has all the large images of a sorted source.
    parts = [range(first, count, threads) for first in range(min(threads, count))]
    if len(parts) < 2:
        return dict(pair for part in parts for pair in work(part))
    with ThreadPoolExecutor(len(parts)) as pool:
        return dict(sorted(pair for found in pool.map(work, parts) for pair in found))


def _complaints(bad: dict[int, str], *, name: str, rows: Rows) -> dict[int, str]:
    return {at: f"column {name}: {rows.name(at)}: {why}" for at, why in bad.items()}


def _first_shape(array: Any, *, name: str, rows: Rows) -> tuple[int, ...]:
    """The lengths of the first row's lists, from the outermost to the innermost."""
    _refuse_nulls(array, name=name, rows=rows)
    lengths: list[int] = []
    inside = array.slice(0, 1)
    while _is_list(inside.type):
        # Level by level, down the first row alone.
        widths, inside = _inside(inside)
        if not widths[0]:
            raise DataError(f"column {name}: {rows.name(0)} is empty; every row needs a value: remove such rows")
        if inside.null_count:
            raise DataError(_holds_null(name, rows.name(0)))
        lengths.append(int(widths[0]))
    return tuple(lengths)


def _holds_null(name: str, row: str) -> str:
    return f"column {name}: {row} holds a null; every value is needed: remove such rows"


def _refuse_nulls(array: Any, *, name: str, rows: Rows) -> None:
    if array.null_count:
        at = int(array.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"column {name}: {rows.name(at)} is null; every row needs a value: remove such rows")


def _refuse_infinite(values: np.ndarray, *, name: str, rows: Rows) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        at = int(finite.reshape(len(values), -1).all(axis=1).argmin())
        row = values[at].reshape(-1)
        raise DataError(
            f"column {name}: {rows.name(at)} holds {row[~np.isfinite(row)][0]}, which is not a finite float32: "
            "correct such rows"
        )


def _bytes(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """All bytes of a binary array, uint8, and the number in each row; no copy."""
    large = pa.types.is_large_binary(array.type)
    _, offsets, data = array.buffers()
    if not len(array):
        return np.zeros(0, np.uint8), np.zeros(0, np.int64)
    # A slice shares the buffers of its whole, so the first edge need not be 0.
    edges = np.frombuffer(offsets, np.int64 if large else np.int32)[array.offset :][: len(array) + 1]
    stored = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    return stored[edges[0] : edges[-1]], np.diff(edges)


def _inside(lists: Any) -> tuple[np.ndarray, Any]:
    """The length of each list of an array without nulls, and all that they hold."""
    if pa.types.is_fixed_size_list(lists.type):
        # Lists of a fixed size have no offsets.
        return np.full(len(lists), lists.type.list_size, np.int64), lists.flatten()
    return np.diff(lists.offsets.to_numpy()), lists.flatten()


def _numbers(array: Any, *, column: Column, rows: Rows) -> np.ndarray:
    """All numbers of an array of lists, checked against the column's shape, level by level if nested."""
    each = 1  # lists of one row
    for size in _list_sizes(array.type, column=column):
        widths, array = _inside(array)
        _check_widths(widths, column=column, rows=rows, size=size, each=each)
        each *= size
        if array.null_count:
            at = int(array.is_null().to_numpy(zero_copy_only=False).argmax())
            raise DataError(_holds_null(column.name, rows.name(at // each)))
    return _cast(array, column=column, name_of=lambda place: rows.name(place // each))


def _padded(array: Any, *, column: Column, plan: ColumnPlan, rows: Rows) -> np.ndarray:
    """Lists of any length brought to the column's: filled up with `pad`, or cut."""
    widths, inside = _inside(array)
    length = column.width
    if not plan.truncate and len(widths) and int(widths.max()) > length:
        at = int((widths > length).argmax())
        raise DataError(
            f"column {column.name}: {rows.name(at)} has {int(widths[at])} values; length {length} takes no more: "
            f"raise data.columns.{column.name}.length, or set its truncate to true"
        )

    def name_of(place: int) -> str:
        return rows.name(int(np.searchsorted(widths.cumsum(), place, "right")))

    if inside.null_count:
        raise DataError(_holds_null(column.name, name_of(inside.is_null().to_numpy(zero_copy_only=False).argmax())))
    values = _cast(inside, column=column, name_of=name_of)
    places = np.arange(length)
    held = places < widths[:, None]
    result = np.full((len(widths), length), plan.pad, column.dtype)
    starts = np.concatenate([np.zeros(1, np.int64), widths.cumsum()[:-1]])
    result[held] = values[(starts[:, None] + places)[held]]
    return result


def _cast(array: Any, *, column: Column, name_of: Callable[[int], str]) -> np.ndarray:
    """Numbers without nulls as the column's dtype; `name_of` names the row of the one at a place."""
    if column.dtype == "float32":
        # Not "safe", which refuses integers beyond 2**24. What float32 cannot hold becomes infinite, and is refused
        # later.
        return array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=True)
    try:
        # Safe: a fraction is no whole number, and 256 no byte.
        return array.cast(_WHOLE[column.dtype]).to_numpy(zero_copy_only=True)
    except pa.ArrowInvalid as error:
        values = array.to_numpy(zero_copy_only=False)
        limits = np.iinfo(column.dtype)
        # Also where it is not a number, which compares as false.
        bad = ~((values == np.floor(values)) & (values >= limits.min) & (values < int(limits.max) + 1))
        at = int(bad.argmax())
        raise DataError(
            f"column {column.name}: {name_of(at)} holds {values[at]}, which is no {column.dtype}; correct such "
            f"rows, or set data.columns.{column.name}.dtype"
        ) from error


def _innermost(kind: Any) -> Any:
    while _is_list(kind):
        kind = kind.value_type
    return kind


def _refuse_negative(values: np.ndarray, *, name: str, rows: Rows) -> None:
    bad = values < 0
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"column {name}: {rows.name(at)} is {values[at]:g}; the weight of a row must be at least 0: correct "
            "such rows"
        )


def _list_sizes(kind: Any, *, column: Column) -> tuple[int, ...]:
    """How long lists of type `kind` must be, from the outermost to the innermost."""
    depth = 0
    while _is_list(kind):
        depth, kind = depth + 1, kind.value_type
    if depth == 1:
        return (column.width,)
    if depth == len(column.shape):
        return column.shape
    sizes = tuple(size for size in column.shape if size > 1)  # 28 lists of 28 are an image of one channel as well
    if depth != len(sizes):
        raise DataError(
            f"column {column.name} holds lists nested {depth} deep; shape {column.shape} has {len(column.shape)} "
            "sizes: correct the rows or data.shape"
        )
    return sizes


def _check_widths(widths: np.ndarray, *, column: Column, rows: Rows, size: int, each: int = 1) -> None:
    """Check that all lists, of which a row has `each`, are of length `size`."""
    bad = widths != size
    if bad.any():
        at = int(bad.argmax())
        within = " in a list" if each > 1 else ""
        raise DataError(
            f"column {column.name}: {rows.name(at // each)} has {int(widths[at])} values{within}; shape "
            f"{column.shape} takes {size}: correct the rows or data.shape"
        )
