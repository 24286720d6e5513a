"""Labels that can be seen without a job: what a listing says of all of them, else those of the first rows."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparknet.config import Data
from sparknet.data.rows.extremes import Extremes, Seen
from sparknet.data.rows.reading import ReadPlan, RowReader
from sparknet.data.sources.opening import OpenedSource
from sparknet.data.sources.source import IsWrong
from sparknet.data.storage.local_files import is_file_uri, path_of

__all__ = ["first_labels"]


def first_labels(opened: OpenedSource, data: Data, column: str, is_wrong: IsWrong) -> Extremes:
    """The outermost values of a column of numbers, as far as they are seen at once.

    Of files that are not on this machine, of images, and of words nothing is.

    Args:
        opened: the source.
        data: says how it is read.
        column: which one.
        is_wrong: tells which values are of interest, so that more is read only where there are some.

    Raises:
        DataError: a row is neither damaged nor as the settings say.
    """
    plan, source = opened.column_plan(data, column), opened.source
    if plan.form is not None:
        return Extremes()
    if source is None:
        return _in_statistics(opened.where.path, column) if data.source == "parquet" else Extremes()
    if any(opened.where.storage.place(file.uri).local is None for file in source.files[:1]):
        return Extremes()
    if source.labels is not None:
        return source.labels(is_wrong)
    partitions = source.partitions if source.beginning is None else source.beginning()
    found = Extremes()
    # The last ones too: rows may lie in the order of their labels.
    for number in sorted({0, len(partitions) - 1}):
        reader = RowReader(ReadPlan(columns=(plan,)), number)
        first = islice(opened.reader.read(partitions[number], opened.where.storage), 1)
        for rows in reader.read(_alone(batch, column) for batch in first):
            found += rows.extremes(np.ones(len(rows), bool)).get(column, Extremes())
    return found


def _alone(batch: pa.RecordBatch, column: str) -> pa.RecordBatch:
    """A reader's rows with one of their columns."""
    columns: dict[str, Any] = {"c0": batch.column(column)}
    columns |= {name: batch.column(name) for name in ("error", "name") if name in batch.schema.names}
    return pa.RecordBatch.from_pydict(columns)


def _in_statistics(path: str, column: str) -> Extremes:
    """What the feet of Parquet files say of a column of numbers."""
    if "://" in path and not is_file_uri(path):
        return Extremes()
    place = path_of(path)
    files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.is_file() else list[Path]()
    return sum((_in_foot(file, column) for file in files), Extremes())


def _in_foot(file: Path, column: str) -> Extremes:
    try:
        foot = pq.read_metadata(file)
    except (OSError, pa.ArrowInvalid):  # Spark, which reads the rows, says best what is wrong with them
        return Extremes()
    found = Extremes()
    for group in range(foot.num_row_groups):
        for at in range(foot.num_columns):
            chunk: Any = foot.row_group(group).column(at)
            said: Any = chunk.statistics
            if chunk.path_in_schema == column and said is not None and said.has_min_max:
                ends = [one for one in (said.min, said.max) if type(one) in (int, float) and np.isfinite(one)]
                where = f"row group {group} of {file}"
                found += Extremes(seen=tuple(Seen(value=one, row=where) for one in sorted(set(ends))))
    return found
