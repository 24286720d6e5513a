"""Validation: every row exactly once, over whichever workers are there."""

import math

import torch
from torch.nn import functional

from sparknet.data.preprocess import Normalise
from sparknet.data.shards import ShardTable
from sparknet.training.local_steps import Replica
from sparknet.training.messages import ChoreReport

__all__ = ["EVALUATION_BATCH", "count_parts", "evaluate_part"]

EVALUATION_BATCH = 256
"""Rows per forward pass."""
_ROWS_PER_PART = 4 * EVALUATION_BATCH


def count_parts(rows: int, workers: int) -> int:
    """Parts to cut the validation rows into: at least one per worker, so that all of them help."""
    return max(1, min(rows, max(workers, math.ceil(rows / _ROWS_PER_PART))))


@torch.no_grad()
def evaluate_part(
    replica: Replica, table: ShardTable, normalise: Normalise, *, part: int, parts: int, columns: tuple[str, str]
) -> ChoreReport:
    """Count hits and sum the cross-entropy over rows [part · rows / parts, (part + 1) · rows / parts).

    Args:
        replica: whose module is evaluated, in evaluation mode.
        table: the validation rows.
        normalise: the same preprocessing as in training.
        part: which part, from 0.
        parts: how many there are; together they cover every row exactly once.
        columns: names of the image and the label column.
    """
    start, stop = part * len(table) // parts, (part + 1) * len(table) // parts
    image, label = columns
    correct, correct_top5, loss = 0, 0, 0.0
    replica.module.eval()
    for at in range(start, stop, EVALUATION_BATCH):
        rows = table.slice(at, min(at + EVALUATION_BATCH, stop))
        logits = replica.logits(torch.from_numpy(normalise(rows[image])))
        labels = torch.tensor(rows[label])
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        # A tie counts against the net, as in Caffe's accuracy layer: rank 0 must be strictly the best. So does
        # a score that is not a number, which compares as false.
        scores = logits.gather(1, labels[:, None])
        rank = (~(logits < scores)).sum(1) - 1
        correct += int((rank < 1).sum())
        correct_top5 += int((rank < 5).sum())
    return ChoreReport(part=part, rows=stop - start, correct=correct, correct_top5=correct_top5, loss_sum=loss)
