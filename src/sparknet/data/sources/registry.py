"""The formats that are read here and not by Spark, by the names that Spark and `data.source` know them by."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import pyarrow as pa

from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import SourceRows
from sparknet.data.sources import cifar10, digits, image_folder, image_tar, lmdb, mnist
from sparknet.data.sources.files import Location
from sparknet.data.storage.place import Facts, Storage
from sparknet.errors import DataError

__all__ = ["FORMATS", "Format", "SourceRows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A reader of one format."""

    describe: Callable[[Location], SourceRows]
    """Says what the rows are; raises DataError."""
    units: Callable[[Location], list[Any]]
    """Lists what a location holds, cut into pieces that are read independently; raises DataError."""
    files: Callable[[Location], list[Facts]]
    """Lists the files behind those units; raises DataError."""
    read: Callable[[Any, Storage], Iterator[pa.RecordBatch]]
    """Yields a unit's rows."""
    check: Callable[[Location], object]
    """Finds what is wrong at first sight, without a look at every row; raises DataError."""
    rows: Literal["fixed", "named"]
    """Columns of the batches. fixed: `image` fixed_size_list<uint8>, `label` int64, every row whole. named: `name`
    string, `image` binary or list<float>, `label` int64, `error` string, where a damaged row has an error and no
    image."""


def _fixed(module: ModuleType) -> Format:
    """CIFAR-10 and its like: one shape, files under standard names."""
    columns: tuple[Column, Column] = module.COLUMNS
    return Format(
        describe=lambda where: SourceRows(input=columns[0], label=columns[1], classes=module.CLASSES),
        units=lambda where: module.units(where.path, split=where.split, storage=where.storage),
        files=lambda where: module.files(where.path, split=where.split, storage=where.storage),
        read=module.read,
        check=lambda where: module.units(where.path, split=where.split, storage=where.storage),
        rows="fixed",
    )


def _named(module: ModuleType, *, check: Callable[[Location], object]) -> Format:
    """Formats whose rows have names and may be damaged."""
    return Format(
        describe=module.describe,
        units=module.units,
        files=module.files,
        read=module.read,
        check=check,
        rows="named",
    )


def _describe_digits(where: Location) -> SourceRows:
    return SourceRows(input=digits.COLUMNS[0], label=digits.COLUMNS[1], classes=digits.CLASSES)


def _units_of_digits(where: Location) -> list[Any]:
    if where.path or where.split != "train":
        raise DataError(
            f"digits: path {where.path!r}, split {where.split!r}; the digits have neither files nor a test split: "
            "leave both out and hold out a share (data.validation_fraction)"
        )
    return digits.units()


def _describe_databases(where: Location) -> SourceRows:
    records = lmdb.describe(where.path, where.storage)
    return SourceRows(
        input=Column(name="image", dtype=records.dtype, shape=records.shape),
        label=Column(name="label", dtype="int64", shape=()),
        classes=None,
        encoded=records.encoded,
    )


FORMATS: dict[str, Format] = {
    "digits": Format(
        describe=_describe_digits,
        units=_units_of_digits,
        files=lambda where: [],
        read=lambda unit, storage: digits.read(unit),
        check=_units_of_digits,
        rows="fixed",
    ),
    "cifar10": _fixed(cifar10),
    "mnist": _fixed(mnist),
    # Cutting databases and archives into units reads every key or header of them.
    "lmdb": Format(
        describe=_describe_databases,
        units=lambda where: lmdb.units(where.path, where.storage),
        files=lambda where: lmdb.files(where.path, where.storage),
        read=lmdb.read,
        check=_describe_databases,
        rows="named",
    ),
    "image_tar": _named(image_tar, check=image_tar.describe),
    "image_folder": _named(image_folder, check=image_folder.units),
}
"""By the name that Spark knows them by."""
