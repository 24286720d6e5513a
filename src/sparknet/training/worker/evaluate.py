"""Validation: every row exactly once, or a number of batches, over whichever workers are there."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparknet.config import RunConfig
from sparknet.data.loading.row_random import row_draws
from sparknet.data.loading.transform import Normalise
from sparknet.data.shards.prepared import PreparedData
from sparknet.training.coordination.messages import ChoreReport
from sparknet.training.coordination.post_commit import add_up
from sparknet.training.objectives.objective import EVALUATION_BATCH, Objective, Sums
from sparknet.training.worker.device_feed import DeviceFeed

__all__ = ["EVALUATION_BATCH", "Cuts", "Evaluation", "Judged", "Table", "evaluate_part"]

# Few, so that a worker that dies costs little and a slow one does not hold up the others; more than one, since
# each part takes a request to the driver.
_BATCHES_PER_PART = 4


class Table(Protocol):
    """Rows that can be read in slices."""

    def __len__(self) -> int: ...

    def slice(self, start: int, stop: int, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Rows `start` to `stop` (exclusive) of each column; with each row's random numbers, uint32 [n, 4]."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Cuts:
    """How the rows of an evaluation are cut into parts, and those into batches."""

    rows: int
    """Rows to evaluate; more than the table has: it starts over."""
    batch: int
    """Rows of a forward pass."""
    unit: int = 1
    """Parts begin at multiples of it."""

    @classmethod
    def of(cls, objective: Objective, rows: int, *, batches: int | None = None) -> "Cuts":
        """The cuts of an evaluation of every row, or of so many batches."""
        batch = objective.evaluation_batch
        return cls(rows=rows if batches is None else batches * batch, batch=batch, unit=objective.unit)

    def count_parts(self, workers: int) -> int:
        """Parts to hand out: at least one per worker, so that all of them help."""
        wanted = max(workers, math.ceil(self.rows / (_BATCHES_PER_PART * self.batch)))
        return max(1, min(math.ceil(self.rows / self.unit), wanted))

    def batches(self, part: int, parts: int) -> Iterator[tuple[int, int]]:
        """The batches of a part, as rows `start` to `stop` (exclusive); all parts together cover each row once."""
        # A Caffe net's outputs are means over a batch, so its batches must be the same ones however many workers
        # share them: parts are cut between units, and a unit there is a batch.
        units = math.ceil(self.rows / self.unit)
        start, stop = (min(self.rows, at * units // parts * self.unit) for at in (part, part + 1))
        for at in range(start, stop, self.batch):
            yield at, min(at + self.batch, stop)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Judged:
    """Some rows and by what a net is judged on them."""

    name: str
    """Empty for the held-out rows; else what stands before the names of the measures."""
    objective: Objective
    cuts: Cuts


class Evaluation:
    """What is measured after a round: the held-out rows and further ones, each by its own part of the net.

    Parts are numbered through all of them.

    Args:
        judged: the held-out rows first.
        workers: who share the parts out.
    """

    def __init__(self, judged: Sequence[Judged], workers: int) -> None:
        self._judged = tuple(judged)
        self._counts = [one.cuts.count_parts(workers) for one in self._judged]

    @classmethod
    def of(cls, objective: Objective, data: PreparedData, config: RunConfig) -> "Evaluation":
        """The evaluation of a run; without parts where no rows are held out."""
        if not data.validation_rows:
            return cls([], config.run.workers)
        held_out = Cuts.of(objective, data.validation_rows, batches=config.run.eval_batches)
        judged = [Judged(name="", objective=objective, cuts=held_out)]
        for name, rows in data.tests.items():
            judge = objective.judges.get(name, objective)
            cuts = Cuts.of(judge, len(rows), batches=config.data.tests[name].batches)
            judged.append(Judged(name=name, objective=judge, cuts=cuts))
        return cls(judged, config.run.workers)

    @property
    def parts(self) -> int:
        """Parts to hand out."""
        return sum(self._counts)

    def measure(
        self, part: int, tables: Mapping[str, Table], chains: Mapping[str, Mapping[str, Normalise]]
    ) -> ChoreReport:
        """Measure one part.

        Args:
            part: its number.
            tables: by name the rows.
            chains: by name what these go through.
        """
        within, place = part, 0
        while within >= self._counts[place]:
            within, place = within - self._counts[place], place + 1
        one = self._judged[place]
        found = evaluate_part(
            one.objective,
            tables[one.name],
            chains[one.name],
            cuts=one.cuts,
            part=(within, self._counts[place]),
        )
        sums = {_key(one.name, name): values for name, values in found.sums.items()}
        # The rows that are told are the held-out ones; each set's own number is one of its sums.
        rows = 0 if one.name else found.rows
        return ChoreReport(part=part, rows=rows, sums={**sums, _key(one.name, ""): (float(found.rows),)})

    def conclude(self, sums: Sums, _rows: int) -> dict[str, float]:
        """All measures by name, from the sums of all parts: those of further rows as `NAME/measure`."""
        concluded: dict[str, float] = {}
        for one in self._judged:
            prefix = _key(one.name, "")
            own = {key.removeprefix(prefix): values for key, values in sums.items() if key.startswith(prefix)}
            (rows,) = own.pop("")
            found = one.objective.conclude(own, int(rows))
            concluded |= {f"{one.name}/{name}" if one.name else name: value for name, value in found.items()}
        return concluded


def _key(owner: str, name: str) -> str:
    # A tab, since measures have names of any letters that are seen.
    return f"{owner}\t{name}"


def evaluate_part(
    objective: Objective, table: Table, chain: Mapping[str, Normalise], *, cuts: Cuts, part: tuple[int, int]
) -> ChoreReport:
    """Measure the rows of one part.

    Args:
        objective: whose measures are taken, in evaluation mode.
        table: the validation rows.
        chain: by column what turns stored values into those that the net is given.
        cuts: which rows, in which batches.
        part: which part, from 0, and how many there are.
    """
    rows, found = 0, list[Sums]()
    feed = DeviceFeed.of(objective, chain)
    for start, stop in cuts.batches(*part):
        # Slices of the table and no loader: rows come in their own order, and none is read ahead for another part.
        # The same numbers for a row in every evaluation, of whatever run.
        draws = row_draws(0, 0, np.arange(start, stop) % len(table), stream="evaluation")
        columns = _read(table, start, stop, draws)
        # Sums and not means, so that parts of different length add up.
        found.append(objective.measure(feed.rows(columns, draws)))
        rows += stop - start
    return ChoreReport(part=part[0], rows=rows, sums=add_up(found))


def _read(table: Table, start: int, stop: int, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of a table that starts over at its end."""
    pieces: list[dict[str, np.ndarray]] = []
    while start < stop:
        at = start % len(table)
        count = min(stop - start, len(table) - at)
        pieces.append(table.slice(at, at + count, draws[:count]))
        start, draws = start + count, draws[count:]
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
