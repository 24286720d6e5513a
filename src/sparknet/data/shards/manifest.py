"""The manifest: what a directory of shards holds, and where that came from."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparknet.config.codec import decode, encode
from sparknet.data.rows.columns import Column
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.shard import check_path
from sparknet.data.shards.shard_files import ShardFiles
from sparknet.data.shards.shard_table import Cut, Shard, ShardTable
from sparknet.data.storage.place import LOCAL, Place
from sparknet.errors import ConfigError, DataError
from sparknet.whole_files import whole_file

__all__ = ["FORMAT_VERSION", "MANIFEST_NAME", "Manifest", "StoredColumn", "save_mean_image"]

# Part of the fingerprint too: shards of another version are never found, only prepared anew.
FORMAT_VERSION = 5
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredColumn:
    """A column of the shards, and what was counted of its training rows."""

    column: Column
    """What it is; of classes with their number."""
    channel_mean: tuple[float, ...] = ()
    """Of numbers with an axis: the mean of each channel (the first axis) over the rows."""
    channel_std: tuple[float, ...] = ()
    """The population standard deviation of each channel over rows and all places, of the stored values."""
    mean_image: str = ""
    """File beside the manifest with the mean of each value, float32 of the column's shape."""
    counts: tuple[int, ...] = ()
    """Of classes: rows of each."""
    several: str = ""
    """Of images that keep their own sizes: two of them, for messages."""
    train: Extremes = field(default_factory=Extremes)
    """Of targets and whole numbers: the outermost values of the training rows."""
    validation: Extremes = field(default_factory=Extremes)
    """The same of the validation rows."""

    def __post_init__(self) -> None:
        if self.mean_image:
            check_path(self.mean_image)

    def load_mean_image(self, directory: Path | Place) -> np.ndarray:
        """Read the mean image, float32 [*shape].

        Raises:
            DataError: the file is missing, damaged or of another shape.
        """
        directory = _place(directory)
        file = directory / self.mean_image
        try:
            # A store may be shared: nothing in it is unpickled.
            mean = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except DataError as error:
            raise DataError(f"{error}; {_remedy(directory)}") from error
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file}: cannot be read: {error}; {_remedy(directory)}") from error
        if mean.shape != self.column.shape or mean.dtype != np.float32:
            raise DataError(
                f"{file}: {mean.dtype} of shape {mean.shape}; the manifest says float32 of "
                f"{self.column.shape}: {_remedy(directory)}"
            )
        return mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A prepared data set: its shards, and what was counted while they were written."""

    version: int = FORMAT_VERSION
    """Version of this format and of the shards'."""
    columns: tuple[StoredColumn, ...]
    """Of every shard, in this order."""
    inputs: tuple[str, ...]
    """Names of the columns that a net is given."""
    targets: tuple[str, ...]
    """Names of the columns that a loss is given."""
    weight: str = ""
    """Name of the column of the rows' weights; empty: there is none."""
    train: tuple[Shard, ...]
    """Training rows."""
    validation: tuple[Shard, ...]
    """Validation rows."""
    source: dict[str, bool | int | float | str]
    """Where the rows came from, for people."""
    fingerprint: str
    """SHA-256 of everything that decides what the shards hold; the same fingerprint is the same data."""
    seed: int
    """Drew the validation rows; 0 where nothing was drawn."""
    skipped: int = 0
    """Damaged rows of the source that were left out."""
    skipped_examples: tuple[str, ...] = ()
    """What is wrong with the first ten of them."""
    table: TableEncoding | None = None
    """How words and other values became numbers; None where the source has the columns as they are."""

    def stored(self, name: str) -> StoredColumn:
        """The column of this name."""
        return next(one for one in self.columns if one.column.name == name)

    @property
    def rows(self) -> RowSchema:
        """What a row is, as the net is given it before anything is cut out."""
        return RowSchema(
            inputs=tuple(self.stored(name).column for name in self.inputs),
            targets=tuple(self.stored(name).column for name in self.targets),
            weight=self.weight,
        )

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return sum(shard.rows for shard in self.train)

    @property
    def validation_rows(self) -> int:
        """Number of validation rows."""
        return sum(shard.rows for shard in self.validation)

    def train_table(
        self, files: ShardFiles | Path, *, threads: int = 1, cuts: Mapping[str, Cut] | None = None
    ) -> ShardTable:
        """The training rows; the arguments are those of `ShardTable`."""
        return ShardTable(files, self.train, self._plain, threads=threads, cuts=cuts)

    def validation_table(
        self, files: ShardFiles | Path, *, threads: int = 1, cuts: Mapping[str, Cut] | None = None
    ) -> ShardTable:
        """The validation rows; the arguments are those of `ShardTable`."""
        return ShardTable(files, self.validation, self._plain, threads=threads, cuts=cuts)

    @property
    def _plain(self) -> tuple[Column, ...]:
        return tuple(one.column for one in self.columns)

    def save(self, directory: Path) -> Path:
        """Write `manifest.json` into the directory, atomically, and return its path.

        Raises:
            OSError: the directory cannot be written.
        """
        path = Path(directory) / MANIFEST_NAME
        # A NaN is no JSON; it would be written and not be read again by others.
        text = json.dumps(encode(self), indent=1, allow_nan=False)
        with whole_file(path) as draft:
            draft.write_text(text, encoding="utf-8")
        return path

    @classmethod
    def load(cls, directory: Path | Place) -> "Manifest":
        """Read the directory's `manifest.json`.

        Raises:
            DataError: it is missing, damaged or of another version.
        """
        directory = _place(directory)
        path, remedy = directory / MANIFEST_NAME, _remedy(directory)
        try:
            text = path.read()
        except DataError as error:
            raise DataError(f"{error}; {remedy}") from error
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}: cannot be read: {error}; {remedy}") from error
        # Before the fields: another version has others, and would be told as damage.
        version = values.get("version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: version {version!r}; this release reads {FORMAT_VERSION}: {remedy}")
        try:
            return decode(cls, values)
        except ConfigError as error:
            raise DataError(f"{path}: damaged: {error}; {remedy}") from error

    def __post_init__(self) -> None:
        names = [one.column.name for one in self.columns]
        used = {*self.inputs, *self.targets, *([self.weight] if self.weight else [])}
        if set(names) != used or len(names) != len(used):
            raise ConfigError(f"columns are {names}; inputs, targets and weights are {sorted(used)}")
        for one in self.columns:
            counted, classes = sum(one.counts), one.column.classes
            if classes is not None and (
                len(one.counts) != classes or counted != self.train_rows * one.column.width
            ):
                raise ConfigError(
                    f"column {one.column.name} has {len(one.counts)} counts of {counted} values; it must have "
                    f"{classes} counts of {self.train_rows * one.column.width}"
                )


def save_mean_image(directory: Path, number: int, mean: np.ndarray) -> str:
    """Write the mean image of the column of this number, float32 [*shape], beside the manifest; name the file.

    Raises:
        OSError: the directory cannot be written.
    """
    # By number: a column's name may be no name of a file.
    name = f"mean-{number}.npy"
    with whole_file(Path(directory) / name) as draft, draft.open("wb") as file:
        np.save(file, mean.astype(np.float32), allow_pickle=False)
    return name


def _place(directory: Path | Place) -> Place:
    return directory if isinstance(directory, Place) else LOCAL.place(str(directory))


def _remedy(directory: Place) -> str:
    return f"delete {directory} to prepare the data again"
