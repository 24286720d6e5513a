"""Rows with what a model made of them, written by Spark: Parquet or CSV, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, AtomicType, BinaryType, DataType

from sparknet.data.storage.place import Place, Storage
from sparknet.errors import DataError, UsageError
from sparknet.spark.frames.column_kinds import FAULT, as_numbers, kind_of
from sparknet.spark.jobs.error_translation import spark_errors
from sparknet.spark.jobs.jobs import run_job
from sparknet.spark.preparing.convert import check_reach
from sparknet.whole_files import whole_directory

__all__ = ["find_target", "write_rows"]

Format = Literal["parquet", "csv"]

_DOING = "writing the rows"
_FORMATS: dict[str, Format] = {".parquet": "parquet", ".csv": "csv"}


def find_target(target: str, *, overwrite: bool, s3_endpoint: str = "") -> tuple[Place, Format]:
    """Where rows are to be written, and as what.

    Args:
        target: path or URI, which ends in .parquet or .csv.
        overwrite: what is there may be replaced.
        s3_endpoint: as `data.s3_endpoint`.

    Raises:
        UsageError: it ends otherwise, or there is something that may not be replaced.
        DataError: it cannot be looked at.
    """
    ending = next((ending for ending in _FORMATS if target.rstrip("/").endswith(ending)), None)
    if ending is None:
        raise UsageError(f"--to is {target!r}; it must end in {' or '.join(_FORMATS)}, which says what is written")
    place = Storage(s3_endpoint=s3_endpoint).place(target)
    facts = place.facts()
    if facts is not None and not facts.is_directory:
        raise UsageError(f"--to is {place}, which is a file; Spark writes a directory: name another one")
    if facts is not None and not overwrite:
        raise UsageError(f"--to is {place}, and there is something already: name another place, or add --overwrite")
    return place, _FORMATS[ending]


def write_rows(frame: DataFrame, place: Place, form: Format) -> int:
    """Write rows and count them.

    On this machine's file system the directory appears when all of it is there. Elsewhere what was there is removed
    first, and what was written when something fails.

    Args:
        frame: with columns of any kind. Images and other bytes are left out, and what only tells of damage; vectors
            become arrays, which with all that a line cannot hold are written as JSON in CSV.
        place: a directory that is replaced, or nothing.
        form: as what.

    Returns:
        How many rows were written.

    Raises:
        DataError: a row or the source is at fault, or the place cannot be written.
        ClusterError: Spark failed.
    """
    if place.local is None:
        with spark_errors(f"looking at {place}"):
            check_reach(frame.sparkSession, place)
    seen = Observation()
    told = F.count(F.lit(1)).alias("rows")
    rows = frame.observe(seen, told).select(*_columns(frame, form))

    def write(where: str) -> Callable[[], int]:
        # Into a directory that is there already, and empty.
        writer = rows.write.mode("overwrite").options(**({"header": "true"} if form == "csv" else {}))
        return lambda: (writer.format(form).save(where), int(seen.get["rows"]))[1]

    with spark_errors(_DOING):
        if place.local is not None:
            return _write_locally(frame, place.local, write)
        place.delete()
        try:
            return run_job(frame.sparkSession, write(place.uri), doing=_DOING)
        except BaseException:
            place.delete()
            raise


def _write_locally(frame: DataFrame, target: Path, write: Callable[[str], Callable[[], int]]) -> int:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_directory(target) as draft:
            # With its scheme: without, Spark takes its default file system, which on a cluster is seldom the local
            # one.
            return run_job(frame.sparkSession, write(f"file://{draft}"), doing=_DOING)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error}; give another place: --to") from error


def _columns(frame: DataFrame, form: Format) -> list[Column]:
    fields = [field for field in frame.schema.fields if field.name != FAULT]
    # Of a source that tells of damaged rows: those that are left have none.
    if FAULT in frame.columns:
        fields = [field for field in fields if field.name != "error"]
    kept = [field for field in fields if not _is_bytes(field.dataType)]
    return [_cells(field.name, field.dataType, form).alias(field.name) for field in kept]


def _is_bytes(kind: DataType) -> bool:
    return isinstance(kind, BinaryType) or kind_of(kind) == "image"


def _cells(name: str, kind: DataType, form: Format) -> Column:
    cells = F.col(f"`{name.replace('`', '``')}`")
    if kind_of(kind) == "numbers" and not isinstance(kind, ArrayType):
        cells, kind = as_numbers(cells, kind), ArrayType(kind)
    if form == "csv" and not isinstance(kind, AtomicType):
        return F.to_json(cells)
    return cells
