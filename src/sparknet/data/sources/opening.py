"""From `data` to an opened source: made once by whoever begins, and handed on to all that ask about the rows."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from sparknet.config import Data
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.image_codec import size_of
from sparknet.data.rows.inputs import InputPlan
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, local_path
from sparknet.data.sources.registry import Format, find_format
from sparknet.data.sources.source import Reader, Source
from sparknet.data.storage.local_files import is_file_uri
from sparknet.data.storage.place import Storage
from sparknet.errors import BadImage, DataError

__all__ = ["DATA_FRAME", "OpenedSource", "OpenedSources", "open_source", "open_sources"]

_COLOURS = 3
"""Channels of encoded images when decoded, unless data.shape says otherwise."""


@dataclass(frozen=True, kw_only=True)
class OpenedSource:
    """The rows of one place, listed once; the settings, which say what becomes of them, come with each question."""

    format: Format
    where: Location
    source: Source | None
    """What the format's own reader found; None where Spark reads the files."""

    @property
    def reader(self) -> Reader:
        """The format's own."""
        assert self.format.reader is not None, "Spark reads this format"
        return self.format.reader

    @property
    def listed(self) -> Source:
        """What the format's own reader found."""
        assert self.source is not None, "Spark reads this format"
        return self.source

    def input_plan(self, data: Data) -> InputPlan:
        """How tasks read the input column.

        Where the rows may be images, it says how they become pixels. Of rows that Spark reads only the cells
        themselves tell whether they are.
        """
        # Several columns are numbers; a source that says it holds pixels is believed, whatever a row begins with.
        pixels = bool(data.features) or (self.source is not None and not self.source.schema.encoded)
        form = ImageForm(order=data.channel_order or "rgb", resize_mode=data.resize_mode)
        return InputPlan(
            name=data.image,
            shape=data.shape or (self.source.schema.input.shape if self.source else ()),
            form=None if pixels else form,
            resize=data.resize,
            threads=data.threads,
        )

    def classes(self, data: Data) -> int | None:
        """Labels are below this, as the settings say or else the source; None where only the rows tell."""
        return data.classes or (self.source.schema.classes if self.source else None)

    def schema(self, data: Data) -> RowSchema | None:
        """What the rows will be as the net is given them; None where only reading them all tells.

        Images as files are looked into for their size as far as the first whole one.

        Raises:
            DataError: a file is damaged.
        """
        found = self.source.schema if self.source else None
        shape = self.input_plan(data).shape
        if found and found.encoded and not shape:
            size = data.resize or self._size_of_first
            shape = (_COLOURS, *size) if size else ()
        # Unknown until the rows are read: whoever asks builds its net later.
        if not shape:
            return None
        return RowSchema(
            input=Column(name=data.image, dtype=found.input.dtype if found else "float32", shape=shape),
            label=Column(name=data.label, dtype="int64", shape=()),
            classes=self.classes(data),
            class_names=found.class_names if found else (),
        )

    @cached_property
    def _size_of_first(self) -> tuple[int, ...]:
        """Height and width of the first whole image; () where there is none."""
        for partition in self.listed.partitions:
            # Image by image: the first may be damaged, and one must not end the question.
            for batch in self.reader.read(partition, self.where.storage):
                for image in batch.column("image"):
                    with suppress(BadImage):
                        if image.is_valid:
                            return size_of(image.as_py())
        return ()


@dataclass(frozen=True, kw_only=True)
class OpenedSources:
    """What a run reads."""

    train: OpenedSource
    """The training rows, or all rows where validation rows are marked or drawn."""
    validation: OpenedSource | None
    """The rows of `data.validation_path`."""

    @property
    def sides(self) -> Sequence[OpenedSource]:
        """Training rows, then validation rows."""
        return [self.train] if self.validation is None else [self.train, self.validation]


def open_sources(data: Data) -> OpenedSources:
    """Open everything that a run reads.

    Raises:
        ConfigError: `data.source` is no format, or a setting does not suit it.
        DataError: a path is missing or damaged, or the two sources are of different kinds.
    """
    # Training rows first: their directories number the classes of the others.
    train = open_source(data)
    if not data.validation_path:
        return OpenedSources(train=train, validation=None)
    validation = _opened(data, validation=True, training=train.source)
    if train.source and validation.source and train.source.schema.encoded != validation.source.schema.encoded:
        files, pixels = (data.path, data.validation_path)[:: 1 if train.source.schema.encoded else -1]
        raise DataError(
            f"{files} holds encoded images and {pixels} pixels; both must be of one kind: write one of "
            "them anew with sparknet data to-lmdb"
        )
    return OpenedSources(train=train, validation=validation)


def open_source(data: Data, *, validation: bool = False) -> OpenedSource:
    """Open the training rows alone, or those of `data.validation_path` alone.

    Raises:
        ConfigError: `data.source` is no format, or a setting does not suit it.
        DataError: the path is missing or damaged.
    """
    return _opened(data, validation=validation, training=None)


DATA_FRAME = OpenedSource(format=Format(what="a DataFrame", names_rows=True), where=Location(path=""), source=None)
"""The rows of any DataFrame that is there already: there is nothing to list."""


def _opened(data: Data, *, validation: bool, training: Source | None) -> OpenedSource:
    """Open one side; `training` is the other one, where it is open."""
    form, where = find_format(data), _locate(data, validation=validation)
    if form.reader is None:
        _check_local(where.path)
        return OpenedSource(format=form, where=where, source=None)
    if validation and form.names_classes and data.validation_path != data.path:
        names = training.schema.class_names if training else ()
        # The training images number the classes of all others.
        where = replace(where, labels=data.path, class_names=names)
    _check_columns(data)
    return OpenedSource(format=form, where=where, source=form.reader.open_source(where))


def _locate(data: Data, *, validation: bool) -> Location:
    if validation and not data.validation_path:
        raise DataError("data.validation_path is ''; a second source needs one: set data.validation_path")
    return Location(
        path=data.validation_path if validation else data.path,
        split="test" if validation else "train",
        labels=data.validation_labels if validation else data.labels,
        storage=Storage(s3_endpoint=data.s3_endpoint),
    )


def _check_columns(data: Data) -> None:
    """Hold the names of columns against those that every reader of ours gives."""
    for key, name, own in (("image", data.image, "image"), ("label", data.label, "label")):
        if name != own:
            raise DataError(f"column {name} is not in the data, which has image, label: set data.{key}")
    if data.validation_column:
        raise DataError(
            f"column {data.validation_column} is not in the data, which has image, label: set "
            "data.validation_path or data.validation_fraction in place of data.validation_column"
        )


def _check_local(path: str) -> None:
    """Refuse a local path that is not there; globs and remote paths are left to Spark."""
    if "://" in path and not is_file_uri(path):
        return
    place = local_path(path)
    # Spark's own error for it is a page long and comes after Spark has started.
    if not set("*?[{") & set(str(place)) and not place.exists():
        raise DataError(f"{path}: no such file or directory; correct data.path or data.validation_path")
