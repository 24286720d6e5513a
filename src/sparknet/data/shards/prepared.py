"""What a run trains on: a prepared data set, or several whose rows go together, the first with the first."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np

from sparknet.data.rows.columns import Column
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.rows.table_encoding import TableEncoding
from sparknet.data.shards.manifest import Manifest, StoredColumn
from sparknet.data.shards.shard import Shard
from sparknet.data.shards.shard_files import Reach, ShardFiles, files_of
from sparknet.data.shards.shard_table import Cut, ShardTable
from sparknet.data.storage.fingerprint import fingerprint
from sparknet.data.storage.place import LOCAL, Place, Storage
from sparknet.errors import ClusterError, DataError

__all__ = ["JoinedTable", "Part", "PreparedData", "PreparedTest", "RowTable", "is_here"]


class RowTable(Protocol):
    """Rows that can be read by number; safe for use by several threads."""

    def __len__(self) -> int: ...

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Rows of each shard: what `Order` takes."""
        ...

    @property
    def arrived(self) -> int:
        """Grows while bytes of shards arrive that have to be fetched; any thread may ask."""
        ...

    def take(self, rows: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Rows by their numbers, int64 [n]: of each column new values [n, *shape].

        Where images of several sizes are cut at random, `draws` are each row's random numbers, uint32 [n, 4].
        """
        ...

    def slice(self, start: int, stop: int, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Rows `start` to `stop` (exclusive): of each column values [stop - start, *shape], perhaps views."""
        ...

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Tell which rows, from and to (exclusive), are read from now on, in this order, until it is told again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A prepared data set among those of a run; it travels to the workers."""

    directory: str
    """Of its manifest: a path or URI."""
    names: dict[str, str] = field(default_factory=dict[str, str])
    """By column of its shards what that is called in the run; others are left out."""
    storage: Storage = LOCAL
    """How the driver reaches the directory."""
    reach: Reach | None = None
    """How workers reach the shards; None: under the same path."""
    notes: tuple[str, ...] = ()
    """What was found out about the source and is to be told."""
    own: str = ""
    """Where each host has training shards of its own, and no others; "": all workers reach all of them."""

    @property
    def place(self) -> Place:
        """The directory."""
        return self.storage.place(self.directory)

    def files(self) -> ShardFiles:
        """The shards' files, as this process reaches them."""
        return files_of(self.directory, self.reach)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """The prepared data sets of a run; it travels to the workers, who open them again."""

    parts: tuple[Part, ...]
    """At least one: the first says how rows are dealt out."""
    manifests: tuple[Manifest, ...]
    """Of the parts."""
    inputs: tuple[str, ...]
    """Columns that the net is given."""
    targets: tuple[str, ...]
    """Columns that the loss is given."""
    weight: str = ""
    """The column of the rows' weights."""
    tests: dict[str, "PreparedTest"] = field(default_factory=dict[str, "PreparedTest"])
    """Further rows that are measured, by name."""
    by_shard: bool = False
    """Each worker's rows of an epoch lie in few shards, since it has to fetch them."""

    @classmethod
    def of(cls, directory: Path, manifest: Manifest) -> "PreparedData":
        """One data set with its own columns, in a directory that all workers see."""
        return cls.alone(Part(directory=str(directory.absolute())), manifest)

    @classmethod
    def alone(cls, part: Part, manifest: Manifest) -> "PreparedData":
        """One data set with its own columns; they need no names."""
        names = {one.column.name: one.column.name for one in manifest.columns}
        return cls(
            parts=(replace(part, names=names),),
            manifests=(manifest,),
            inputs=manifest.inputs,
            targets=manifest.targets,
            weight=manifest.weight,
        )

    @property
    def stored(self) -> dict[str, tuple[StoredColumn, Place]]:
        """By column of the run what was counted of it, and the directory of its manifest."""
        return {
            name: (manifest.stored(own), part.place)
            for part, manifest in zip(self.parts, self.manifests, strict=True)
            for own, name in part.names.items()
        }

    @property
    def rows(self) -> RowSchema:
        """What a row is, as the net is given it before anything is cut out."""
        columns: dict[str, Column] = {
            name: replace(stored.column, name=name) for name, (stored, _) in self.stored.items()
        }
        return RowSchema(
            inputs=tuple(columns[name] for name in self.inputs),
            targets=tuple(columns[name] for name in self.targets),
            weight=self.weight,
        )

    @property
    def train_rows(self) -> int:
        """Number of training rows."""
        return self.manifests[0].train_rows

    @property
    def validation_rows(self) -> int:
        """Number of validation rows."""
        return self.manifests[0].validation_rows

    @property
    def skipped(self) -> int:
        """Damaged rows that were left out."""
        return self.manifests[0].skipped

    @property
    def skipped_examples(self) -> tuple[str, ...]:
        """What is wrong with the first of them."""
        return self.manifests[0].skipped_examples

    @property
    def fingerprint(self) -> str:
        """The same fingerprint is the same rows."""
        return "+".join(manifest.fingerprint for manifest in self.manifests)

    @property
    def content(self) -> str:
        """The same content, 64 hexadecimal digits, is the same rows in the same order.

        A fingerprint is of what was asked for: where Spark cuts the source into partitions, another preparation may
        have the rows in another order, and others of them held out.
        """
        digests = [
            [shard.sha256 for shard in (*manifest.train, *manifest.validation)] for manifest in self.manifests
        ]
        return fingerprint({"fingerprint": self.fingerprint, "shards": digests})

    @property
    def table(self) -> TableEncoding | None:
        """How words and other values became numbers."""
        return self.manifests[0].table

    def check(self) -> None:
        """Refuse parts whose rows cannot go together.

        Raises:
            DataError: they have different numbers of rows, or rows were left out of one.
        """
        first = self.manifests[0]
        for part, manifest in zip(self.parts[1:], self.manifests[1:], strict=True):
            here, there = ((one.train_rows, one.validation_rows) for one in (first, manifest))
            name = ", ".join(part.names.values())
            if here != there:
                raise DataError(
                    f"data.beside.{name} has {there[0]} training and {there[1]} validation rows, and the data "
                    f"beside it have {here[0]} and {here[1]}; rows go together one by one: give sources of as "
                    "many rows"
                )
            if first.skipped or manifest.skipped:
                example = (*first.skipped_examples, *manifest.skipped_examples)[0]
                raise DataError(
                    f"data.beside.{name}: damaged rows would be left out ({example}), and the rows behind them "
                    "would go with those of others: repair them"
                )

    @property
    def on_hosts(self) -> bool:
        """Each worker reads the training rows that are on its host's disks, and no others."""
        return bool(self.parts[0].own)

    @property
    def shards_here(self) -> tuple[Shard, ...]:
        """The training shards that this host has, where each has its own."""
        return tuple(shard for shard in self.manifests[0].train if is_here(self.parts[0].own, shard))

    def train_table(self, *, threads: int = 1, cuts: Mapping[str, Cut] | None = None) -> RowTable:
        """The training rows; `threads` decode encoded images.

        `cuts` are by column of the run what is cut out of images of several sizes.

        Raises:
            ClusterError: each host has rows of its own, and this one has none.
        """
        if self.on_hosts:
            return self._own_table(threads=threads, cuts=cuts)
        return self._joined(
            [
                manifest.train_table(part.files(), threads=threads, cuts=_of_part(cuts, part))
                for part, manifest in zip(self.parts, self.manifests, strict=True)
            ]
        )

    def validation_table(self, *, threads: int = 1, cuts: Mapping[str, Cut] | None = None) -> RowTable:
        """The validation rows; the rest as for `train_table`."""
        return self._joined(
            [
                manifest.validation_table(part.files(), threads=threads, cuts=_of_part(cuts, part))
                for part, manifest in zip(self.parts, self.manifests, strict=True)
            ]
        )

    def _own_table(self, *, threads: int, cuts: Mapping[str, Cut] | None) -> ShardTable:
        part, manifest, here = self.parts[0], self.manifests[0], self.shards_here
        if not here:
            raise ClusterError(
                f"host {socket.gethostname()} has none of the {len(manifest.train)} training shards of this run, "
                f"which lie in {part.own} of the hosts where they were made; with data.on_hosts workers run where "
                "their rows are: let Spark use those hosts alone, with as many cores as there are workers"
            )
        columns = tuple(one.column for one in manifest.columns)
        return ShardTable(Path(part.own), here, columns, threads=threads, cuts=_of_part(cuts, part))

    def _joined(self, tables: list[ShardTable]) -> RowTable:
        # What a single table gives is what is wanted, but for a run of several.
        return tables[0] if len(tables) == 1 else JoinedTable(tables, [part.names for part in self.parts])


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTest:
    """Rows that are measured beside the held-out ones."""

    data: PreparedData
    """The data set that has them, with the columns of the run."""
    split: Literal["train", "validation"]
    """Which of its rows they are."""

    def __len__(self) -> int:
        return self.data.train_rows if self.split == "train" else self.data.validation_rows

    def table(self, *, threads: int = 1, cuts: Mapping[str, Cut] | None = None) -> RowTable:
        """The rows; the rest as for `PreparedData.train_table`."""
        table = self.data.train_table if self.split == "train" else self.data.validation_table
        return table(threads=threads, cuts=cuts)


def _of_part(cuts: Mapping[str, Cut] | None, part: Part) -> dict[str, Cut]:
    """What is cut out of a part's own columns."""
    return {own: cuts[name] for own, name in part.names.items() if cuts and name in cuts}


def is_here(directory: str, shard: Shard) -> bool:
    """Whether a directory of this host has a shard, whole."""
    file = Path(directory) / shard.path
    return file.is_file() and file.stat().st_size == shard.bytes


class JoinedTable:
    """Tables of equally many rows as one, each giving some columns.

    Args:
        tables: at least one.
        names: for each table by its own column what that is called here; others are left out.
    """

    def __init__(self, tables: Sequence[ShardTable], names: Sequence[Mapping[str, str]]) -> None:
        self._tables = tuple(tables)
        self._names = tuple(names)

    def __len__(self) -> int:
        return len(self._tables[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for table in self._tables:
            table.close()

    @property
    def shard_rows(self) -> tuple[int, ...]:
        """Rows of each shard of the first table."""
        return self._tables[0].shard_rows

    @property
    def arrived(self) -> int:
        """As `ShardTable.arrived`."""
        return sum(table.arrived for table in self._tables)

    def expect(self, ranges: Sequence[tuple[int, int]]) -> None:
        """As `ShardTable.expect`."""
        for table in self._tables:
            table.expect(ranges)

    def take(self, rows: np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `ShardTable.take`."""
        return self._named([table.take(rows, draws) for table in self._tables])

    def slice(self, start: int, stop: int, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """As `ShardTable.slice`."""
        return self._named([table.slice(start, stop, draws) for table in self._tables])

    def _named(self, found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            name: columns[own]
            for columns, names in zip(found, self._names, strict=True)
            for own, name in names.items()
        }
