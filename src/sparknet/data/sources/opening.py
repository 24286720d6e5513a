"""From `data` to an opened source: made once by whoever begins, and handed on to all that ask about the rows."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from sparknet.config import Data
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import Column, ImageForm, ImageHeader
from sparknet.data.rows.image_codec import header_of
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location, local_path
from sparknet.data.sources.registry import Format, find_format
from sparknet.data.sources.source import Reader, Source
from sparknet.data.storage.local_files import is_file_uri
from sparknet.data.storage.place import Storage
from sparknet.errors import BadImage, DataError

__all__ = ["DATA_FRAME", "OpenedSource", "OpenedSources", "data_of_parts", "open_source", "open_sources"]

_CHANNELS = {None: 3, "colour": 3, "grey": 1}
"""Of encoded images when decoded, by `data.channels`; what else it says is the file's to tell."""


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

    def read_plan(self, data: Data, *, validation: str = "") -> ReadPlan:
        """How tasks read the rows.

        Args:
            data: says which columns, and what they are.
            validation: what names the column of marks; empty: the rows are not marked.
        """
        return ReadPlan(
            columns=tuple(self.column_plan(data, name) for name in data.column_names), validation=validation
        )

    def column_plan(self, data: Data, name: str) -> ColumnPlan:
        """How tasks read one column.

        Where the cells may be images, it says how they become pixels. Of rows that Spark reads only the cells
        themselves tell whether they are.
        """
        rule, found = data.column(name), self._found(name)
        is_input = name in data.input_names
        # A source that says it holds pixels is believed, whatever a row begins with.
        images = rule.kind == "image" or (is_input and rule.kind is None and name != "features")
        if found is not None and found.image is None:
            images = False
        stored = rule.channels == "stored" and not rule.shape
        form = ImageForm(order=rule.channel_order or "rgb", as_stored=stored, resize_mode=rule.resize_mode)
        channels = _CHANNELS.get(rule.channels, 0)
        if images and stored and found is not None:
            # What the driver has seen, so that all tasks hold their images against the same one.
            channels = self.first_header.channels if self.first_header else 0
        return ColumnPlan(
            name=name,
            dtype=rule.dtype or ("int64" if rule.kind == "ids" else None),
            shape=rule.shape or (found.shape if found else ()),
            # Caffe's nets take single numbers as such, and others as vectors of one.
            number_shape=() if not is_input or data.class_values == "stored" else (1,),
            length=rule.length,
            pad=rule.pad,
            truncate=rule.truncate,
            classes=self._classes(data, name),
            target=name in data.target_names,
            weight=name == data.weight,
            form=form if images else None,
            channels=channels if images else 3,
            resize=rule.resize,
            keep=rule.keep,
            own_size="if_needed" if rule.may_keep_sizes and _holds_pixels(found, images=images) else "no",
            threads=data.threads,
        )

    def _found(self, name: str) -> Column | None:
        """What the source says of a column."""
        columns = self.source.schema.columns if self.source else ()
        return next((column for column in columns if column.name == name), None)

    def _classes(self, data: Data, name: str) -> int | None:
        """For a column of classes their number, as the settings say or else the source, or 0."""
        rule, found = data.column(name), self._found(name)
        if rule.classes:
            return rule.classes
        # As Caffe has them, labels are whole numbers of any kind: the layers that read them know which they take.
        if data.class_values == "stored" or rule.kind not in (None, "category"):
            return None
        if found is not None:
            return found.classes
        return 0

    def schema(self, data: Data) -> RowSchema | None:
        """What the rows will be as the net is given them; None where only reading them all tells.

        Images as files are looked into for their size as far as the first whole one.

        Raises:
            DataError: a file is damaged.
        """
        inputs = [self._input(data, name) for name in data.input_names]
        targets = tuple(self._target(data, name) for name in data.target_names)
        # Unknown until the rows are read: whoever asks builds its net later. So is whether fractions are classes.
        if None in inputs or any(one.classes is not None and one.dtype == "float32" for one in targets):
            return None
        found = self.source.schema if self.source else None
        return RowSchema(
            inputs=tuple(column for column in inputs if column is not None),
            targets=targets,
            weight=data.weight,
            class_names=found.class_names if found else (),
        )

    def _input(self, data: Data, name: str) -> Column | None:
        plan, found = self.column_plan(data, name), self._found(name)
        shape = (plan.length,) if plan.length else plan.shape
        if found and found.image and not shape:
            shape = self._shape_of_images(plan)
        if found and not found.image and not shape:
            shape = plan.number_shape
        elif not shape:
            return None
        image = _kept_as_files(plan) if found and found.image else None
        return Column(name=name, dtype=plan.dtype or self._stored_dtype(found), shape=shape, image=image)

    def _stored_dtype(self, found: Column | None) -> Literal["uint8", "float32", "int64"]:
        """What becomes of numbers of which nothing is said: in lists and as inputs whole ones are float32 too."""
        return found.dtype if found and (found.dtype == "uint8" or not self.format.has_columns) else "float32"

    def _target(self, data: Data, name: str) -> Column:
        plan, found = self.column_plan(data, name), self._found(name)
        if found is not None and found.image and plan.form is not None:
            # A source that gives images alone has them as inputs and targets.
            return Column(name=name, dtype="uint8", shape=self._shape_of_images(plan), image=_kept_as_files(plan))
        if found is not None and found.shape:
            dtype = plan.dtype or self._stored_dtype(found)
        else:
            dtype = plan.dtype or (found.dtype if found else "int64" if plan.classes is not None else "float32")
        return Column(name=name, dtype=dtype, shape=plan.shape, classes=plan.classes)

    def _shape_of_images(self, plan: ColumnPlan) -> tuple[int, ...]:
        """What encoded images become; () where the first whole one must tell and there is none."""
        assert plan.form is not None, "the caller has images"
        if plan.resize and plan.channels:
            return (plan.channels, *plan.resize)
        if self.first_header is None:
            return ()
        if plan.form.as_stored and self.first_header.bits != 8:
            raise DataError(
                f"{self.where.path}: the first image has {self.first_header.bits} bits; with its channels as they "
                'are stored it must have 8: convert the images, or set data.channels to "grey" or "colour"'
            )
        size = self.first_header.size if plan.form.as_stored else self.first_header.upright
        return (plan.channels, *(plan.resize or size))

    @cached_property
    def first_header(self) -> ImageHeader | None:
        """What the first whole image is; None where there is none."""
        if self.listed.header is not None:
            return self.listed.header
        for partition in self.listed.partitions:
            # Image by image: the first may be damaged, and one must not end the question.
            for batch in self.reader.read(partition, self.where.storage):
                for image in batch.column("image"):
                    with suppress(BadImage):
                        if image.is_valid:
                            return header_of(image.as_py())
        return None


@dataclass(frozen=True, kw_only=True)
class OpenedSources:
    """What a run reads."""

    train: OpenedSource
    """The training rows, or all rows where validation rows are marked or drawn."""
    validation: OpenedSource | None
    """The rows of `data.validation_path`."""
    beside: Mapping[str, "OpenedSources"] = field(default_factory=dict[str, "OpenedSources"])
    """By name what is read in step."""

    @property
    def sides(self) -> Sequence[OpenedSource]:
        """Training rows, then validation rows."""
        return [self.train] if self.validation is None else [self.train, self.validation]

    def schema(self, data: Data) -> RowSchema | None:
        """What the rows will be, all columns together; None where only reading them all tells.

        Raises:
            DataError: a file is damaged.
        """
        if not self.beside:
            return self.train.schema(data)
        columns: dict[str, Column] = {}
        for (part, names), opened in zip(data_of_parts(data), (self, *self.beside.values()), strict=True):
            rows = opened.train.schema(part)
            if rows is None:
                return None
            found = {column.name: column for column in rows.columns}
            columns |= {name: replace(found[own], name=name) for own, name in names.items()}
        return RowSchema(
            inputs=tuple(columns[name] for name in data.input_names),
            targets=tuple(columns[name] for name in data.target_names),
            weight=data.weight,
        )


def data_of_parts(data: Data) -> list[tuple[Data, dict[str, str]]]:
    """The sources that are read in step, each as a `Data` of its own, with the names of its columns in the run.

    The first is `data.source` itself; it, and each beside it, has no other columns than those that are used.
    """
    own = [name for name in data.column_names if name not in data.beside]
    inputs = [name for name in own if name in data.input_names]
    targets = [name for name in own if name in data.target_names]
    first = replace(
        data,
        # A source that gives targets alone, or inputs alone, has them as both: each is stored once.
        inputs=tuple(inputs or targets),
        targets=tuple(targets or inputs),
        columns={name: rule for name, rule in data.columns.items() if name in own},
        beside={},
        tests={},
        image="image",
        label="label",
    )
    parts = [(first, {name: name for name in own})]
    for name, beside in data.beside.items():
        column = beside.column
        rule = data.columns.get(name)
        part = Data(
            source=beside.source,
            path=beside.path,
            validation_path=beside.validation_path,
            validation=data.validation,
            labels=beside.labels,
            validation_labels=beside.validation_labels,
            root=beside.root,
            inputs=(column,),
            targets=(column,),
            columns={} if rule is None else {column: rule},
            channel_order=data.channel_order,
            channels=data.channels,
            class_values=data.class_values,
            s3_endpoint=data.s3_endpoint,
            threads=data.threads,
            shard_megabytes=data.shard_megabytes,
            corrupt_share=data.corrupt_share,
        )
        parts.append((part, {column: name}))
    return parts


def open_sources(data: Data) -> OpenedSources:
    """Open everything that a run reads.

    Raises:
        ConfigError: `data.source` is no format, or a setting does not suit it.
        DataError: a path is missing or damaged, or the two sources are of different kinds.
    """
    if data.beside:
        (first, _), *others = data_of_parts(data)
        opened = open_sources(first)
        beside = {name: open_sources(part) for name, (part, _) in zip(data.beside, others, strict=True)}
        return replace(opened, beside=beside)
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
    source = form.reader.open_source(where)
    _check_columns(data, source.schema)
    return OpenedSource(format=form, where=where, source=source)


def _locate(data: Data, *, validation: bool) -> Location:
    if validation and not data.validation_path:
        raise DataError("data.validation_path is ''; a second source needs one: set data.validation_path")
    return Location(
        path=data.validation_path if validation else data.path,
        split="test" if validation else "train",
        labels=data.validation_labels if validation else data.labels,
        root=data.root,
        columns=data.column_names,
        windows=data.windows,
        order=data.channel_order or "rgb",
        several_sizes=data.column("image").may_keep_sizes,
        storage=Storage(s3_endpoint=data.s3_endpoint),
    )


def _kept_as_files(plan: ColumnPlan) -> ImageForm | None:
    """How encoded images will be decoded where they are kept as files."""
    return plan.form if plan.keep == "encoded" else None


def _holds_pixels(found: Column | None, *, images: bool) -> bool:
    """Whether a column's rows are images, or pixels of the shape of one."""
    return images or (found is not None and found.dtype == "uint8" and len(found.shape) == 3)


def _check_columns(data: Data, schema: RowSchema) -> None:
    """Hold the names of columns against those that the reader gives."""
    given = [column.name for column in schema.columns]
    for key, names in (("image", data.input_names), ("label", data.target_names), ("weight", (data.weight,))):
        for name in filter(None, names):
            if name not in given and name not in data.beside:
                raise DataError(f"column {name} is not in the data, which has {', '.join(given)}: set data.{key}")
    if data.validation_column:
        raise DataError(
            f"column {data.validation_column} is not in the data, which has {', '.join(given)}: set "
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
