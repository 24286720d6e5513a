"""What a Python worker does: cells of the rows in, cells of the added columns out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyspark import TaskContext

from sparknet.data.rows.columns import Column
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.rows.sifting import RowSieve
from sparknet.spark.inference.net_cache import NetPlan, net_of
from sparknet.spark.inference.outputs import Outputs

__all__ = ["InferenceTask"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class InferenceTask:
    """An inference as a worker must know it; it travels with the query, and holds no weights."""

    net: NetPlan
    rows: ReadPlan
    """How the cells are read."""
    trained: tuple[Column, ...]
    """What their columns were in training."""
    names: tuple[str, ...]
    """What the cells are, as `RowSieve.read` takes them."""
    outputs: Outputs
    batch_size: int
    """Rows of a forward pass."""
    refuse: bool
    """A row that cannot be used is an error; if not, its cells become null."""

    def run(self, cells: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        """The rows of one partition, in batches as they come: as many rows in the same order, cut otherwise.

        Raises:
            DataError: a row that is refused, or all rows are of another kind than in training.
            NetError: the net cannot be built, or fails.
        """
        context = TaskContext.get()
        sieve = RowSieve(
            self.rows,
            self.trained,
            partition=context.partitionId() if context is not None else 0,
            refuse=self.refuse,
            any_type=self.net.test_net_only,
        )
        net = net_of(self.net)
        for batch in _cut(cells, self.names, rows=self.batch_size):
            sifted = sieve.read(batch)
            good = int(sifted.good.sum())
            made = {}
            if good:
                draws = np.zeros((good, 4), np.uint32)  # nothing is drawn
                given = net.feed.rows(sifted.values, draws)
                output = self.outputs.answer is not None or any(one.says == "raw" for one in self.outputs.columns)
                made = net.objective.infer(given, self.outputs.blobs, output=output)
            yield self.outputs.cells(made, sifted.good)


def _cut(cells: Iterator[tuple[pa.Array, ...]], names: tuple[str, ...], *, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of so many rows, whatever came together; the last one has the rest."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for columns in cells:
        # A single column comes by itself, whatever the signature says.
        arrays = [columns] if len(names) == 1 else list(columns)
        batch = pa.RecordBatch.from_arrays(arrays, names=list(names))
        at = 0
        while batch.num_rows - at >= rows - count:
            # No copy where a batch lies within one of Spark's.
            waiting.append(batch.slice(at, rows - count))
            at += rows - count
            yield _joined(waiting)
            waiting, count = [], 0
        if at < batch.num_rows:
            waiting.append(batch.slice(at))
            count += batch.num_rows - at
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
