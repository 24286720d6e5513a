"""Parquet files, which Spark reads: what their columns are called, before there is a Spark."""

import pyarrow as pa
import pyarrow.parquet as pq

from sparknet.data.sources.files import Location, find_files
from sparknet.errors import DataError

__all__ = ["column_names"]


def column_names(where: Location) -> tuple[str, ...]:
    """Names of the first file's columns.

    Raises:
        DataError: nothing is there, or it is no Parquet.
    """
    found = find_files(where.path, in_directory=("*.parquet",), what="Parquet files", storage=where.storage)
    try:
        with where.storage.place(found[0].uri).open() as file:
            return tuple(pq.read_schema(file).names)
    except pa.ArrowInvalid as error:
        raise DataError(f"{found[0].uri}: it cannot be read as Parquet: {error}; give a whole file") from error
