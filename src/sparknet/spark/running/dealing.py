"""Which rows a worker has, in which order."""

from collections.abc import Mapping
from dataclasses import dataclass

from sparknet.config import RunConfig
from sparknet.data.loading.sampling_order import Order, RowOrder
from sparknet.data.loading.shard_order import ShardOrder
from sparknet.data.shards.prepared import PreparedData, RowTable
from sparknet.data.shards.shard_table import Cut
from sparknet.data.storage.fingerprint import fingerprint

__all__ = ["Dealt"]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Dealt:
    """A worker's training rows."""

    table: RowTable
    """Holds them, and perhaps those of others."""
    order: RowOrder
    """Which of them are read when."""
    rows: str = ""
    """Which rows the table holds, where not all workers have the same ones; what `Cursor.rows` says."""

    @classmethod
    def of(cls, data: PreparedData, config: RunConfig, *, slot: int, cuts: Mapping[str, Cut] | None) -> "Dealt":
        """The rows of a slot, on this host.

        From the slot and not the attempt: a retried task reads what its predecessor would have read.

        Raises:
            ClusterError: each host has rows of its own, and this one has none.
        """
        run, threads = config.run, config.data.threads
        table = data.train_table(threads=threads, cuts=cuts)
        if data.on_hosts:
            # Each worker of a host passes over all its rows, in an order of its own: how many workers a host will
            # have nobody knows, and who shares rows must not share their order.
            order = Order(run.seed, table.shard_rows, 1, 0, stream=(slot,))
            return cls(
                table=table, order=order, rows=fingerprint({"shards": [one.path for one in data.shards_here]})
            )
        deal = ShardOrder if data.by_shard else Order
        return cls(table=table, order=deal(run.seed, table.shard_rows, run.workers, slot))
