"""Windows in images, as Caffe's WindowData layer reads them: a list of images, each with its windows.

An entry is `# index`, the image's path, channels, height, width and the number of windows, then a line for each of
these: label, overlap with the nearest object, x1, y1, x2, y2. Which are foreground and which background, and how
they are cut out, is as in window_data_layer.cpp; how they are drawn is not (`_chosen`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import pyarrow as pa

from sparknet.config import Windows
from sparknet.data.rows.columns import LABEL, Column
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.image_codec import decode
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location
from sparknet.data.sources.image_batches import NamedRow, NamedRows
from sparknet.data.sources.image_list import facts_of
from sparknet.data.sources.listed_names import root_of
from sparknet.data.sources.source import Source
from sparknet.data.storage.place import LOCAL, Place, Storage
from sparknet.errors import BadImage, DataError

__all__ = ["Box", "ImageWindows", "WindowPartition", "cut_window", "open_source", "read"]

_PARTITION_ROWS = 512
_DRAWS_SEED = 0
"""Of the background that is taken; always the same, for it decides what is prepared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """A window and its label; both corners belong to it."""

    x1: int
    y1: int
    x2: int
    y2: int
    label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageWindows:
    """An image and the windows that are taken of it."""

    uri: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPartition:
    """Some images with their windows: what one task reads."""

    images: tuple[ImageWindows, ...]
    windows: Windows
    order: Literal["rgb", "bgr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """An image of the list with all that is of use of it."""

    uri: str
    foreground: list[Box]
    background: list[Box]


def open_source(where: Location) -> Source:
    """Open a list; relative paths begin as those of a list of images do.

    Raises:
        DataError: the list cannot be read or is no such list, an image is not there, or there are no windows of a
            kind that is wanted.
    """
    place = where.storage.place(where.path)
    listing = place.facts()
    if listing is None or listing.is_directory:
        raise DataError(f"{place}: no such list of windows: correct data.path")
    windows = where.windows
    assert windows is not None, "the registry has looked"
    entries = _entries(place, windows)
    root = root_of(place, entries[0].uri, root=where.root, storage=where.storage)
    files, images = [listing], list[ImageWindows]()
    for number, (entry, boxes) in enumerate(zip(entries, _chosen(place, entries, windows), strict=True), start=1):
        name = entry.uri
        facts = facts_of(place, number, where.storage.place(name) if name.startswith("/") else root / name)
        files.append(facts)
        if boxes:
            images.append(ImageWindows(uri=facts.uri, boxes=boxes))
    column = Column(name="image", dtype="uint8", shape=(3, windows.size, windows.size))
    return Source(
        schema=RowSchema(inputs=(column,), targets=(LABEL,)),
        files=files,
        labels=lambda _: _labels(images),
        cut=lambda: [
            WindowPartition(images=tuple(group), windows=windows, order=where.order) for group in _groups(images)
        ],
    )


def read(partition: WindowPartition, storage: Storage = LOCAL) -> Iterator[pa.RecordBatch]:
    """Yield the partition's windows: image uint8 [3, size, size], label, `name` and `error`.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    batch = NamedRows()
    for image in partition.images:
        for row in _rows(image, partition, storage.place(image.uri).read()):
            if not batch.has_room(row):
                yield batch.take()
            batch.append(row)
    if len(batch):
        yield batch.take()


def _rows(image: ImageWindows, partition: WindowPartition, content: bytes) -> Iterator[NamedRow]:
    try:
        pixels, fault = decode(content, channels=3, order=partition.order), ""
    except BadImage as error:
        pixels, fault = None, str(error)
    for number, box in enumerate(image.boxes):
        name = f"{image.uri}#{number}"
        if pixels is None:
            yield NamedRow(name=name, error=f"{image.uri}: {fault}")
            continue
        try:
            cut = cut_window(pixels, box, partition.windows)
            yield NamedRow(name=name, image=cut.tobytes(), label=box.label)
        except BadImage as error:
            yield NamedRow(name=name, error=f"{image.uri}: {error}")


def cut_window(image: np.ndarray, box: Box, windows: Windows) -> np.ndarray:
    """Cut a window out, with what lies around it, and bring it to the size.

    Args:
        image: uint8 [height, width, 3].
        box: where.
        windows: how.

    Returns:
        uint8 [3, size, size], C-contiguous.

    Raises:
        BadImage: the window lies outside the image, or nothing is left of it.
    """
    size, (rows, columns) = windows.size, image.shape[:2]
    across, down = _Span(first=box.x1, last=box.x2), _Span(first=box.y1, last=box.y2)
    wide, high = _Place(span=across, side=size, start=0), _Place(span=down, side=size, start=0)
    if windows.context_pad or windows.crop_mode == "square":
        # In float32, as Caffe's layers are.
        scale = np.float32(size) / np.float32(size - 2 * windows.context_pad)
        halves = [across.half, down.half]
        if windows.crop_mode == "square":
            halves = [max(halves)] * 2
        wide = across.widened(halves[0] * scale).placed(columns, size)
        high = down.widened(halves[1] * scale).placed(rows, size)
    for place, limit in ((wide, columns), (high, rows)):
        if not 0 <= place.span.first <= place.span.last < limit or place.side < 1:
            raise BadImage(
                f"the window {box.x1}, {box.y1}, {box.x2}, {box.y2} does not lie in the image of {columns} x {rows}"
                " pixels, or nothing is left of it: correct the list"
            )
    part = image[high.span.first : high.span.last + 1, wide.span.first : wide.span.last + 1]
    made = np.empty((size, size, 3), np.uint8)
    made[:] = windows.fill or 0
    made[high.start : high.start + high.side, wide.start : wide.start + wide.side] = cv2.resize(
        part, (wide.side, high.side), interpolation=cv2.INTER_LINEAR
    )
    return np.ascontiguousarray(made.transpose(2, 0, 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Span:
    """A window along one axis, the last pixel included."""

    first: int
    last: int

    @property
    def half(self) -> np.float32:
        return np.float32((self.last - self.first + 1) / 2)

    def widened(self, half: np.float32) -> "_Span":
        """Of another width around the same middle."""
        middle = np.float32(self.first) + self.half
        return _Span(first=_rounded(middle - half), last=_rounded(middle + half))

    def placed(self, limit: int, size: int) -> "_Place":
        """Cut off at the image's edges; `size` is the side of the whole."""
        before, after = max(0, -self.first), max(0, self.last - limit + 1)
        inner = _Span(first=self.first + before, last=self.last - after)
        scale = np.float32(size) / np.float32(self.last - self.first + 1)
        side = _rounded(np.float32(inner.last - inner.first + 1) * scale)
        start = _rounded(np.float32(before) * scale)
        # What is rounded twice may come to more than there is.
        return _Place(span=inner, side=min(side, size - start), start=start)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Along one axis what is taken of the image, and where it goes in the finished square."""

    span: _Span
    side: int
    start: int


def _rounded(number: np.float32) -> int:
    """As C rounds: halves away from 0."""
    return int(np.sign(number) * np.floor(np.abs(np.float64(number)) + 0.5))


def _labels(images: Sequence[ImageWindows]) -> Extremes:
    named = [(box.label, image.uri, number) for image in images for number, box in enumerate(image.boxes)]
    return Extremes.of(np.array([label for label, _, _ in named]), lambda at: "window {1}#{2}".format(*named[at]))


def _groups(images: Sequence[ImageWindows]) -> Iterator[list[ImageWindows]]:
    group, rows = list[ImageWindows](), 0
    for image in images:
        group.append(image)
        rows += len(image.boxes)
        if rows >= _PARTITION_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _chosen(place: Place, entries: Sequence[_Entry], windows: Windows) -> list[tuple[Box, ...]]:
    """The windows that are rows, by image: the foreground, and the background that goes with it."""
    # Caffe draws from both lists for ever, a share of each batch from the foreground. What is prepared is finite,
    # and of background there is a hundred times as much as goes with the foreground.
    fraction = windows.foreground_fraction
    foreground = [(at, box) for at, entry in enumerate(entries) for box in entry.foreground]
    background = [(at, box) for at, entry in enumerate(entries) for box in entry.background]
    for what, found, wanted in (("foreground", foreground, fraction > 0), ("background", background, fraction < 1)):
        if wanted and not found:
            raise DataError(
                f"{place}: no window is {what}, and data.windows.foreground_fraction is {fraction:g}: correct the "
                f"list, data.windows.{what}_threshold, or the fraction"
            )
    if fraction == 0:
        taken = background
    elif fraction == 1:
        taken = foreground
    else:
        wanted = max(1, round(len(foreground) * (1 - fraction) / fraction))
        whole, rest = divmod(wanted, len(background))
        drawn = np.random.default_rng(_DRAWS_SEED).permutation(len(background))[:rest]
        taken = [*foreground, *background * whole, *(background[at] for at in sorted(drawn.tolist()))]
    boxes: list[list[Box]] = [[] for _ in entries]
    for at, box in taken:
        boxes[at].append(box)
    return [tuple(one) for one in boxes]


def _entries(place: Place, windows: Windows) -> list[_Entry]:
    """The list's images.

    Raises:
        DataError: it is no such list; the message names the entry.
    """
    try:
        words = place.read().decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: it is not UTF-8 and so no list of windows: {error}; give another file"
        ) from error
    reader, entries = _Words(place=place, words=words), list[_Entry]()
    while reader.has_more:
        entries.append(_entry(reader, len(entries), windows))
    if not entries:
        raise DataError(f"{place}: the list names no image; each begins with `# index`: give another")
    return entries


def _entry(reader: "_Words", number: int, windows: Windows) -> _Entry:
    reader.entry = number
    if reader.word("a #") != "#":
        raise reader.fault("does not begin with #")
    # window_data_layer.cpp finds images by these numbers: with others it would cut windows out of another image.
    if (index := reader.whole("its index")) != number:
        raise reader.fault(f"has index {index}; images are numbered from 0 on in their order")
    uri = reader.word("a path")
    channels = reader.whole("channels")
    reader.whole("height")
    reader.whole("width")
    if channels != 3:
        raise reader.fault(f"has {channels} channels; windows are cut out of images of 3")
    entry = _Entry(uri=uri, foreground=[], background=[])
    for _ in range(reader.whole("the number of windows")):
        label, overlap = reader.whole("a label"), reader.number("an overlap")
        x1, y1, x2, y2 = (reader.whole(what) for what in ("x1", "y1", "x2", "y2"))
        # All in float32, as in Caffe: 0.7 is not below 0.7.
        if overlap >= np.float32(windows.foreground_threshold):
            if label < 1:
                raise reader.fault(f"has a foreground window of label {label}; 0 is the background's")
            entry.foreground.append(Box(x1=x1, y1=y1, x2=x2, y2=y2, label=label))
        elif overlap < np.float32(windows.background_threshold):
            entry.background.append(Box(x1=x1, y1=y1, x2=x2, y2=y2, label=0))
    return entry


class _Words:
    """The words of a list, one after the other."""

    def __init__(self, *, place: Place, words: list[str]) -> None:
        self._place = place
        self._words = words
        self._at = 0
        self.entry = 0

    @property
    def has_more(self) -> bool:
        return self._at < len(self._words)

    def word(self, what: str) -> str:
        if not self.has_more:
            raise self.fault(f"ends where {what} should be")
        self._at += 1
        return self._words[self._at - 1]

    def whole(self, what: str) -> int:
        word = self.word(what)
        digits = word.removeprefix("-")
        # Longer ones are no number of 32 bits, and Python refuses to read thousands of digits.
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 10):
            raise self.fault(f"has {word[:40]!r} where {what} should be, a whole number")
        return int(word)

    def number(self, what: str) -> np.float32:
        word = self.word(what)
        try:
            return np.float32(word)
        except ValueError as error:
            raise self.fault(f"has {word[:40]!r} where {what} should be, a number") from error

    def fault(self, what: str) -> DataError:
        return DataError(f"{self._place}: image {self.entry} {what}: correct the list")
