"""Every format, and everything about it that is asked outside its own file.

A new format is one file with `open_source` and `read` (see `source.Reader`) and one row of `FORMATS`.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sparknet.config import Data
from sparknet.config.rules import told
from sparknet.data.sources import (
    cifar10,
    digits,
    hdf5,
    image_folder,
    image_list,
    image_tar,
    lmdb,
    mnist,
    parquet,
    passes,
    windows,
)
from sparknet.data.sources.files import Location
from sparknet.data.sources.source import Reader
from sparknet.data.storage.place import Place
from sparknet.errors import ConfigError

__all__ = ["DATA_FRAME_NAME", "FORMATS", "Format", "find_format"]

DATA_FRAME_NAME = "dataframe"
"""`data.source` of rows that a program gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """What is known of a format."""

    what: str
    """What its rows are made of, as it is told in help and documents."""
    reader: Reader | None = None
    """Opens and reads it; None: Spark does."""
    has_path: bool = True
    """It reads files; the digits come with a package, and a net's own rows from the net."""
    has_label_file: bool = False
    """Its labels stand in a file of their own (`data.labels`)."""
    has_header: bool = False
    """Its first line may name the columns (`data.header`)."""
    names_classes: bool = False
    """Its directories' names are the classes, which training rows number for all others."""
    names_rows: bool = False
    """Its rows have names and may be damaged: columns `name` and `error`."""
    has_root: bool = False
    """It reads a list, whose relative paths may begin at `data.root`."""
    has_windows: bool = False
    """Its rows are windows of images (`data.windows`)."""
    has_columns: bool = False
    """Its rows have columns of their own, as a table's, and no fixed image and label."""
    column_names: Callable[[Location], Sequence[str]] | None = None
    """Tells what its columns are called, without reading rows; None: image and label, or Spark finds out."""
    holds_tests: Callable[[Place], bool] | None = None
    """Tells whether a place of training rows holds test rows too, under standard names; None: no place does."""
    held_out: float = 0.0
    """Share of the rows that a command holds out where it is told nothing of it."""


def _is_directory(place: Place) -> bool:
    """What is not there counts as one, unless it is a pattern: the reader says best what is missing."""
    facts = place.facts()
    return facts.is_directory if facts else not set("*?[") & set(place.uri)


FORMATS: dict[str, Format] = {
    "digits": Format(what="scikit-learn's digits", reader=digits, has_path=False, held_out=0.2),
    "cifar10": Format(what="CIFAR-10 binary batches", reader=cifar10, holds_tests=_is_directory),
    "mnist": Format(what="MNIST IDX files", reader=mnist, holds_tests=_is_directory),
    "lmdb": Format(what="LMDB databases of Caffe's Datum records", reader=lmdb, names_rows=True),
    "image_tar": Format(
        what="tar files of images with a label file",
        reader=image_tar,
        has_label_file=True,
        names_rows=True,
        holds_tests=image_tar.has_tests,
    ),
    "image_folder": Format(
        what="a directory of images for each class", reader=image_folder, names_classes=True, names_rows=True
    ),
    "image_list": Format(
        what="a list of image files, lines `PATH LABEL`", reader=image_list, has_root=True, names_rows=True
    ),
    "windows": Format(
        what="a list of images with their windows, as R-CNN has them",
        reader=windows,
        has_root=True,
        has_windows=True,
        names_rows=True,
    ),
    "hdf5": Format(
        what="HDF5 files, or a list of them, whose data sets are columns",
        reader=hdf5,
        has_root=True,
        has_columns=True,
        column_names=hdf5.column_names,
    ),
    "csv": Format(what="CSV", has_header=True),
    "parquet": Format(what="Parquet", column_names=parquet.column_names),
    "net": Format(
        what="no rows: the net's own layers make them, and one of these stands for each of its passes",
        reader=passes,
        has_path=False,
    ),
}
"""By the name that `data.source` and Spark know them by."""


def find_format(data: Data) -> Format:
    """The format of `data.source`, which the other settings must suit.

    Raises:
        ConfigError: there is no such format, or a setting belongs to other formats.
    """
    found = FORMATS.get(data.source)
    if data.source == DATA_FRAME_NAME:
        raise ConfigError(
            "data.source is 'dataframe'; a program gave the rows of this run, and only it can give them again: "
            "call `fit` there with the same runDir, or name rows with data.source and data.path"
        )
    if found is None:
        close = difflib.get_close_matches(data.source, FORMATS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "correct data.source"
        raise ConfigError(f"data.source is {data.source!r}; it must be one of {', '.join(FORMATS)}: {hint}")
    # Here and not in the configuration, which knows no formats.
    if bool(data.path) != found.has_path:
        needs = f"source {data.source} needs it: set data.path"
        raise ConfigError(
            f"data.path is {data.path!r}; {needs if found.has_path else f'{data.source} comes without files'}"
        )
    _check_on_hosts(data, found)
    for key, labels in (("labels", data.labels), ("validation_labels", data.validation_labels)):
        if labels and not found.has_label_file:
            raise ConfigError(
                f"data.{key} is {labels!r}; source {data.source} has its labels with its rows: leave it out"
            )
    if found.has_windows and data.windows is None:
        raise ConfigError("data.windows is not given; source windows needs it: set data.windows.size at least")
    if data.windows is not None and not found.has_windows:
        raise ConfigError(
            f"data.windows is given; source {data.source} has images as they are, and no windows: leave it out"
        )
    if data.root and not found.has_root:
        raise ConfigError(f"data.root is {data.root!r}; source {data.source} reads no list of files: leave it out")
    if data.features and found.reader is not None:
        raise ConfigError(
            f"data.features is {told(data.features)}; source {data.source} has one input, image, and no columns to "
            "put together: leave it out"
        )
    return found


def _check_on_hosts(data: Data, found: Format) -> None:
    if data.on_hosts and (found.reader is None or not found.has_path):
        known = ", ".join(name for name, one in FORMATS.items() if one.reader and one.has_path)
        which = "is read by Spark, which gives any file to any worker" if found.has_path else "has no files"
        raise ConfigError(
            f"data.on_hosts is true; source {data.source} {which}: leave it out, or name files of {known}"
        )
