"""Bytes of any size for the tasks of a job, without room for them in the Java machines.

A plan that carries weights, or a single broadcast of them, stands whole in the driver's Java heap, which has 1 GB
where nobody asked for more. Pieces pass through it one by one, and Spark moves to its disk what does not fit.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from pyspark import Broadcast
from pyspark.sql import SparkSession

from sparknet.spark.jobs.jobs import run_job
from sparknet.training.run_files.tensor_bytes import empty_bytes
from sparknet.training.sync.pieces import Streamed, cut

__all__ = ["BroadcastBytes", "Whole", "broadcast_bytes"]

_PIECE_BYTES = 64 << 20


class Whole(Protocol):
    """Bytes that are put together when they are asked for."""

    def whole(self) -> memoryview:
        """All of them."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BroadcastBytes:
    """Bytes that Spark has taken to every machine whose tasks ask for them; travels with a task."""

    size: int
    pieces: "tuple[Broadcast[bytes], ...]"

    def whole(self) -> memoryview:
        """All of them in one piece of memory, which may be written."""
        data, at = empty_bytes(self.size), 0
        for piece in self.pieces:
            value = piece.value
            data[at : at + len(value)] = value
            at += len(value)
        return data


@contextmanager
def broadcast_bytes(spark: SparkSession, data: Streamed) -> Generator[BroadcastBytes]:
    """Hand bytes to Spark; they are taken back from all machines when the block is left."""
    pieces: list[Broadcast[bytes]] = []

    def hand_over() -> None:
        for piece in cut(data, _PIECE_BYTES):
            # As bytes, which pickle writes as they are; this process keeps a file of them and not the memory.
            pieces.append(spark.sparkContext.broadcast(bytes(piece)))

    try:
        # By a thread of its own, as all long talk with the Java machine: an interrupt would cut the main one's.
        run_job(spark, hand_over, doing="handing weights to the workers")
        yield BroadcastBytes(size=len(data), pieces=tuple(pieces))
    finally:
        for piece in pieces:
            piece.destroy()
