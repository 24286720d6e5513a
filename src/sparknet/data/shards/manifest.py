"""The manifest: what a directory of shards holds, and where that came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparknet.config.codec import decode, encode
from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.shard_table import Shard, ShardTable
from sparknet.errors import ConfigError, DataError
from sparknet.whole_files import whole_file

__all__ = ["FORMAT_VERSION", "MANIFEST_NAME", "MEAN_NAME", "Manifest", "save_mean_image"]

# Part of the fingerprint too: shards of another version are never found, only prepared anew.
FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
MEAN_NAME = "mean.npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A prepared data set: its shards, and what was counted while they were written."""

    version: int = FORMAT_VERSION
    """Version of this format and of the shards'."""
    input: Column
    """The net's input."""
    label: Column
    """The class: int64, shape ()."""
    train: tuple[Shard, ...]
    """Training rows."""
    validation: tuple[Shard, ...]
    """Validation rows."""
    classes: int
    """Labels are 0..classes-1."""
    train_label_counts: tuple[int, ...]
    """Training rows of each class."""
    channel_mean: tuple[float, ...]
    """Mean of each channel (the input's first axis) over the training rows."""
    channel_std: tuple[float, ...]
    """Population standard deviation of each channel over the training rows and all places, of the stored values."""
    mean_image: str = MEAN_NAME
    """File beside the manifest with the training rows' mean, float32 of the input's shape."""
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
    """How columns of words became numbers; None where the source has the input and the label as they are."""

    @property
    def rows(self) -> RowSchema:
        """What a row is, as the net is given it before anything is cut out."""
        return RowSchema(input=self.input, label=self.label, classes=self.classes)

    @property
    def columns(self) -> tuple[Column, Column]:
        """The columns of every shard: the input, then the label."""
        return (self.input, self.label)

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return sum(shard.rows for shard in self.train)

    @property
    def validation_rows(self) -> int:
        """Number of validation rows."""
        return sum(shard.rows for shard in self.validation)

    def train_table(self, directory: Path, *, threads: int = 1) -> ShardTable:
        """The training rows; `directory` is the manifest's, `threads` decode encoded images."""
        return ShardTable(directory, self.train, self.columns, threads=threads)

    def validation_table(self, directory: Path, *, threads: int = 1) -> ShardTable:
        """The validation rows; `directory` is the manifest's, `threads` decode encoded images."""
        return ShardTable(directory, self.validation, self.columns, threads=threads)

    def load_mean_image(self, directory: Path) -> np.ndarray:
        """Read the mean image, float32 [*shape].

        Raises:
            DataError: the file is missing, damaged or of another shape.
        """
        path = Path(directory) / self.mean_image
        try:
            # A store may be shared: nothing in it is unpickled.
            mean = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read: {error}; {_remedy(path.parent)}") from error
        if mean.shape != self.input.shape or mean.dtype != np.float32:
            raise DataError(
                f"{path}: {mean.dtype} of shape {mean.shape}; the manifest says float32 of "
                f"{self.input.shape}: {_remedy(path.parent)}"
            )
        return mean

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
    def load(cls, directory: Path) -> "Manifest":
        """Read the directory's `manifest.json`.

        Raises:
            DataError: it is missing, damaged or of another version.
        """
        path = Path(directory) / MANIFEST_NAME
        remedy = _remedy(path.parent)
        try:
            values: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; {remedy}") from None
        except (OSError, ValueError) as error:
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
        counted = sum(self.train_label_counts)
        if len(self.train_label_counts) != self.classes or counted != self.train_rows:
            raise ConfigError(
                f"train_label_counts is {len(self.train_label_counts)} counts of {counted} rows; "
                f"it must be {self.classes} counts of {self.train_rows} rows"
            )


def save_mean_image(directory: Path, mean: np.ndarray) -> None:
    """Write the mean image, float32 [*shape], as the manifest's `mean.npy`.

    Raises:
        OSError: the directory cannot be written.
    """
    with whole_file(Path(directory) / MEAN_NAME) as draft, draft.open("wb") as file:
        np.save(file, mean.astype(np.float32), allow_pickle=False)


def _remedy(directory: Path) -> str:
    return f"delete {directory} to prepare the data again"
