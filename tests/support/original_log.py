"""A reader of the first SparkNet's training logs that is as strict as that program was regular.

It knows what the original wrote, in which order, and nothing of how ours is made.
"""

import re
from dataclasses import dataclass, field

LINE = re.compile(r"(?:\S.*\S  )?(\d+\.\d+(?:E-?\d+)?)(?:, i = (\d+))?: (.+)")
BEFORE = [
    "loading train data",
    "loading test data",
    r"numTrainData = (\d+)",
    r"numTestData = (\d+)",
    r"trainPartitionSizes = Array\(((?:\d+, )*\d+)\)",
    r"testPartitionSizes = Array\(((?:\d+, )*\d+)\)",
]
ROUND = ["broadcasting weights", "setting weights on workers"]
TESTED = ["testing", r"(\d+\.\d\d)% accuracy"]
TRAINED = ["training", "collecting weights", r"weight = (-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)"]


@dataclass
class OriginalLog:
    """What a plotting script takes from a log."""

    train_rows: int = 0
    test_rows: int = 0
    train_partitions: list[int] = field(default_factory=list)
    test_partitions: list[int] = field(default_factory=list)
    accuracy: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By round, counted from 0: when, in seconds, and percent."""
    weight: dict[int, float] = field(default_factory=dict)
    training_seconds: dict[int, float] = field(default_factory=dict)


def parse(text):
    """Read a log whose other lines, which the original did not write, stand between its own."""
    entries = [
        (float(m[1]), None if m[2] is None else int(m[2]), m[3]) for m in map(LINE.fullmatch, text.splitlines())
    ]
    assert [when for when, _, _ in entries] == sorted(when for when, _, _ in entries)
    log = OriginalLog()
    known = [(pattern, re.compile(pattern)) for pattern in [*BEFORE, *ROUND, *TESTED, *TRAINED]]
    told = []
    for when, number, message in entries:
        hits = [(pattern, found) for pattern, form in known if (found := form.fullmatch(message))]
        assert len(hits) <= 1
        told += [(when, number, pattern, found[1] if found.re.groups else None) for pattern, found in hits]
    before = [one for one in told if one[1] is None]
    assert [pattern for _, _, pattern, _ in before] == BEFORE, before
    assert told[: len(before)] == before
    counts = [[int(size) for size in value.split(", ")] for *_, value in before[2:]]
    (log.train_rows,), (log.test_rows,), log.train_partitions, log.test_partitions = counts
    rounds = [one for one in told if one[1] is not None]
    numbers = sorted({number for _, number, _, _ in rounds})
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert [number for _, number, _, _ in rounds] == sorted(number for _, number, _, _ in rounds)
    for number in numbers:
        read_round(log, number, [one for one in rounds if one[1] == number], last=number == numbers[-1])
    return log


def read_round(log, number, lines, *, last):
    patterns = [pattern for _, _, pattern, _ in lines]
    tested = patterns[2:4] == TESTED
    wanted = [*ROUND, *(TESTED if tested else []), *TRAINED]
    # A program that never ended was stopped in some round; ours ends with the test of its weights.
    assert patterns == wanted or (last and patterns == [*ROUND, *TESTED]), (number, patterns)
    if tested:
        log.accuracy[number] = (lines[3][0], float(lines[3][3]))
    if patterns[-1] == TRAINED[-1]:
        (trained, *_), (collected, *_), (*_, weight) = lines[-3:]
        log.training_seconds[number] = collected - trained
        log.weight[number] = float(weight)
