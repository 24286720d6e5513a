"""Each row's own random numbers: a pure function of seed, epoch and the row's number, whoever reads the row.

The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC 2011,
section 3.3): ten rounds turn a counter of 128 bits into four random numbers, so a row's number is its counter and
there is no state to carry from row to row.
"""

from typing import Literal

import numpy as np

__all__ = ["Stream", "places", "row_draws", "tosses"]

Stream = Literal["training", "evaluation"]
_STREAMS: dict[Stream, int] = {"training": 0, "evaluation": 1}

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def row_draws(seed: int, epoch: int, rows: np.ndarray, *, stream: Stream = "training") -> np.ndarray:
    """Random numbers of rows.

    Args:
        seed: at least 0, of any size.
        epoch: pass over the data; numbers repeat after 2**32 passes.
        rows: numbers of the rows in their table, int64 [n], at least 0.
        stream: what for; the numbers of different streams have nothing to do with each other.

    Returns:
        uint32 [n, 4], each uniform over all 32 bits.
    """
    rows = np.asarray(rows, np.int64).astype(np.uint64)
    # A seed of any size in 64 bits: SeedSequence mixes it, so that neighbouring seeds give unlike keys.
    key = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    counter = np.empty((4, len(rows)), np.uint64)
    # The row and not its place in a batch: workers, threads and batch size do not change what becomes of it.
    counter[0] = rows & _LOW
    counter[1] = rows >> _HALF
    counter[2] = epoch & 0xFFFFFFFF
    counter[3] = _STREAMS[stream]
    return philox(counter, (int(key[0]), int(key[1]))).T.astype(np.uint32, order="C")


def places(draws: np.ndarray, count: int) -> np.ndarray:
    """Turn random numbers, uint32 [n], into places 0..count-1, int64 [n], alike to within count / 2**32."""
    # Multiply and shift (Lemire 2019) without rejection: no division, and one draw for each place.
    return ((draws.astype(np.uint64) * np.uint64(count)) >> _HALF).astype(np.int64)


def tosses(draws: np.ndarray) -> np.ndarray:
    """Turn random numbers, uint32 [n], into tosses of a fair coin, bool [n]: the top bit."""
    return draws >= np.uint32(1 << 31)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of many counters at once.

    Args:
        counter: 32-bit numbers in uint64 [4, n]; not changed.
        key: two 32-bit numbers.

    Returns:
        32-bit numbers in uint64 [4, n].
    """
    first, second, third, fourth = counter
    # In uint64 arrays, whose product of two 32-bit numbers keeps the high half.
    for step in range(_ROUNDS):
        keys = [np.uint64((part + step * weyl) & 0xFFFFFFFF) for part, weyl in zip(key, _WEYL, strict=True)]
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, second = (right >> _HALF) ^ second ^ keys[0], right & _LOW
        third, fourth = (left >> _HALF) ^ fourth ^ keys[1], left & _LOW
    return np.stack([first, second, third, fourth])
