"""A session for preparations, sources for them, and what they made as plain arrays."""

import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession


def open_prepare_session(name, **environment):
    """A session in which a task may fail once; its tasks have these variables besides."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2,2]")
        .appName(name)
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.host", "127.0.0.1")
        # The Java machine may have been started by other tests, with their environment.
        .config(map={f"spark.executorEnv.{name}": value for name, value in environment.items()})
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")  # these tests provoke failures
    return session


def rows_of(directory, manifest, split):
    """All rows of a split: inputs and labels."""
    table = getattr(manifest, f"{split}_table")(directory)
    rows = table.slice(0, len(table))
    return rows[manifest.inputs[0]], rows[manifest.targets[0]]


def as_set(images, labels):
    """Rows as a sorted list, for comparison regardless of order."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def write_parquet(directory, columns, *, files=2):
    directory.mkdir()
    table = pa.table(columns)
    step = -(-len(table) // files)
    for number in range(files):
        pq.write_table(table.slice(number * step, step), directory / f"part-{number}.parquet")
    return str(directory)
