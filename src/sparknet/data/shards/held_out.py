"""Which rows are held out for validation: a pure function of seed, partition and row number."""

import numpy as np

__all__ = ["held_out"]

_DRAWS = 1024  # draws are made in runs of this many, so that any range of rows needs few of them


def held_out(seed: int, *, partition: int, start: int, rows: int, fraction: float) -> np.ndarray:
    """Mark the validation rows among `rows` rows of a partition, the first of them number `start`.

    Stratified: of each run of 1/fraction consecutive rows one is drawn, so the number held out among any
    first n rows is n * fraction to within 1, however the rows are cut into batches.

    Args:
        seed: at least 0.
        partition: number of the partition the rows are in, at least 0.
        start: number of the first row within the partition.
        rows: how many rows.
        fraction: share to hold out, at least 0 and below 1.

    Returns:
        True for validation rows, bool [rows].
    """
    if fraction > 0.5:
        # runs of less than two rows would leave out nearly every n-th row instead of random ones
        return ~held_out(seed, partition=partition, start=start, rows=rows, fraction=1 - fraction)
    marks = np.zeros(rows, dtype=bool)
    if not rows or fraction == 0:
        return marks
    # stratum j is the rows from ceil(j / fraction) on; one more on each side covers rounding
    first = max(0, int(start * fraction) - 1)
    strata = np.arange(first, int((start + rows) * fraction) + 2)
    edges = np.ceil(np.append(strata, strata[-1] + 1) / fraction)
    edges = np.minimum(edges, 2.0**62).astype(np.int64)  # a tiny fraction leaves the range of int64
    picks = edges[:-1] + (_draws(seed, partition, strata) * np.diff(edges)).astype(np.int64)
    # Strata at the edges reach beyond these rows: their draw belongs to the neighbours.
    inside = picks[(picks >= start) & (picks < start + rows)]
    marks[inside - start] = True
    return marks


def _draws(seed: int, partition: int, strata: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each of the consecutive strata, float64."""
    first, last = int(strata[0]) // _DRAWS, int(strata[-1]) // _DRAWS
    # Drawn in whole runs, of which a part is used: a row's number does not depend on where a batch begins.
    runs = [_random(seed, partition, run).random(_DRAWS) for run in range(first, last + 1)]
    return np.concatenate(runs)[strata - first * _DRAWS]


def _random(seed: int, *key: int) -> np.random.Generator:
    # Philox is named because `default_rng` may become another generator in a later numpy.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))
