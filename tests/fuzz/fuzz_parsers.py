"""Throw damaged files at every parser: nothing may come out but an answer or a documented error.

    python tests/fuzz/fuzz_parsers.py --inputs 50000 --seed 1
    python tests/fuzz/fuzz_parsers.py --target net_text --seed 1 --only 4711     # one input again

Each target names a corpus of good files, the function under test and the errors that it documents. An input is made
from the corpus by a few random mutations that depend on the seed and its number alone. Anything but an answer or a
documented error is a fault, and so are more than `--seconds` for one input and more than `--memory-mib` on top of
what the process held at its start (RLIMIT_AS, which makes it a MemoryError). A faulty input is made smaller and
saved; the exit code is 1.

The parsers and their files are in `fuzz_targets.py`.
"""

import argparse
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

from fuzz_targets import LARGEST, TARGETS, Target

WORDS = [
    *b"{ } < > [ ] : ; , - . # ' \" \\ \\x \\u \\777 \\ud800 0 1 -1 0x 1e 1e9999 nan inf true ''".split(),
    *b"2147483648 4294967296 18446744073709551616 99999999999999999999999".split(),
    *b"layer layers name type blobs data shape dim include param input input_dim input_shape engine".split(),
    *b"convolution_param pooling_param ceil_mode \xff \xc3\xa9 \xe2\x80\xa8 \xf0\x9f\x98\x80 \xed\xa0\x80".split(),
    *(b"\0", b"\n", b"\r", b" ", b"\xef\xbb\xbf", b"\xff" * 9),
    *(b"{" * 200, b"[" * 200, b"9" * 5000, b"layer {" * 90, b"'\\" + b"1" * 300),
]


def mutations(corpus: Sequence[bytes], choice: random.Random) -> bytes:
    """Return one input: a corpus entry after one to six edits, of which most are damage or none is."""
    content = bytearray(choice.choice(corpus))
    kinds = choice.choice((_EDITS, _DAMAGE, _DAMAGE + _EDITS))
    for _ in range(choice.choice((1, 1, 2, 3, 6))):
        choice.choice(kinds)(content, corpus, choice)
        del content[LARGEST:]
    return bytes(content)


def _piece(content: bytes | bytearray, choice: random.Random) -> slice:
    start = choice.randint(0, len(content))
    return slice(start, min(len(content), start + choice.choice((1, 2, 4, 16, 64, 512))))


def _flip(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    if content:
        content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)


def _replace(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    if content:
        content[choice.randrange(len(content))] = choice.randrange(256)


def _insert(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    at = choice.randint(0, len(content))
    content[at:at] = choice.choice(WORDS)


def _overwrite(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    content[_piece(content, choice)] = choice.choice(WORDS)


def _delete(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    del content[_piece(content, choice)]


def _copy(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    at = choice.randint(0, len(content))
    content[at:at] = content[_piece(content, choice)] * choice.choice((1, 1, 2, 50))


def _splice(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    other = choice.choice(corpus)
    content[_piece(content, choice)] = other[_piece(other, choice)]


def _truncate(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    del content[choice.randint(0, len(content)) :]


def _change_number(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    numbers = list(re.finditer(rb"[0-9.]+", content))
    if numbers:
        found = choice.choice(numbers)
        content[found.start() : found.end()] = choice.choice((b"0", b"1", b"3", b"7", b"1.5", b"4000000000"))


def _move_line(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    """Copy a line of some file between two lines of this one; as often as not the text stays well formed."""
    lines = bytes(content).splitlines(keepends=True)
    other = choice.choice(corpus).splitlines(keepends=True) if choice.random() < 0.5 else lines
    if other:
        lines.insert(choice.randint(0, len(lines)), choice.choice(other))
    content[:] = b"".join(lines)


def _drop_line(content: bytearray, corpus: Sequence[bytes], choice: random.Random) -> None:
    lines = bytes(content).splitlines(keepends=True)
    if lines:
        del lines[choice.randrange(len(lines))]
    content[:] = b"".join(lines)


_DAMAGE = (_flip, _replace, _insert, _insert, _overwrite, _delete, _copy, _splice, _truncate)
_EDITS = (_change_number, _move_line, _drop_line)


class TooSlow(BaseException):
    """An input took longer than its share; no `except Exception` swallows it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the body after `seconds`; main thread only."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def limit_memory(mebibytes: int) -> None:
    """Let the process take this much address space on top of what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def outcome(target: Target, content: bytes, seconds: float) -> BaseException | bool:
    """Return True for an answer, False for a documented error, and the fault if it was neither."""
    try:
        with time_limit(seconds):
            target.run(content)
    except KeyboardInterrupt:
        raise
    except target.allowed as error:
        return error if not str(error) else False  # an error without a message helps nobody
    except BaseException as error:  # TooSlow, MemoryError, RecursionError and SystemExit are what we look for
        return error
    return True


def shrink(target: Target, content: bytes, seconds: float, tries: int = 2000) -> bytes:
    """Return a smaller input with the same kind of fault: pieces are left out as long as it stays."""
    kind = type(outcome(target, content, seconds))
    size = len(content) // 2
    while size and tries > 0:
        at = 0
        while at < len(content) and tries > 0:
            tries -= 1
            smaller = content[:at] + content[at + size :]
            if type(outcome(target, smaller, seconds)) is kind:
                content = smaller
            else:
                at += size
        size //= 2
    return content


@cache
def corpus_of(name: str) -> Sequence[bytes]:
    return TARGETS[name].corpus()


def input_of(name: str, seed: int, number: int) -> bytes:
    """Return the input of a number; the first ones are the corpus itself, unchanged."""
    corpus = corpus_of(name)
    if number < len(corpus):
        return corpus[number]
    return mutations(corpus, random.Random(f"{name}:{seed}:{number}"))


def fuzz(name: str, numbers: Sequence[int], *, seed: int, seconds: float, save: Path) -> int:
    """Run inputs of one target, print what was measured, and return the number of faults."""
    target = TARGETS[name]
    faults = accepted = volume = 0
    slowest = 0.0
    started = time.perf_counter()
    for number in numbers:
        content = input_of(name, seed, number)
        begun = time.perf_counter()
        fault = outcome(target, content, seconds)
        slowest = max(slowest, time.perf_counter() - begun)
        volume += len(content)
        if isinstance(fault, bool):
            accepted += fault
            continue
        faults += 1
        smaller = shrink(target, content, seconds)
        save.mkdir(parents=True, exist_ok=True)
        path = save / f"{name}-{seed}-{number}"
        path.write_bytes(smaller)
        print(f"FAULT {name}, --seed {seed} --only {number}: {type(fault).__name__}: {fault}"[:2000])
        print(f"  {len(content)} bytes, made {len(smaller)}: {smaller[:400]!r}\n  saved as {path}")
    elapsed = time.perf_counter() - started
    print(
        f"{name}: {len(numbers)} inputs ({accepted / max(1, len(numbers)):.0%} accepted), {volume / 2**20:.1f} MiB "
        f"in {elapsed:.1f} s: {len(numbers) / elapsed:.0f}/s, slowest {slowest * 1e3:.0f} ms, {faults} faults"
    )
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=50_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--target", action="append", choices=sorted(TARGETS), help="this one alone; may be repeated"
    )
    parser.add_argument("--only", type=int, help="run the input of this number alone")
    parser.add_argument("--seconds", type=float, default=5.0, help="that one input may take")
    parser.add_argument("--memory-mib", type=int, default=1024, help="that an input may take")
    parser.add_argument("--save", type=Path, default=Path("fuzz-faults"), help="folder for faulty inputs")
    options = parser.parse_args()
    limit_memory(options.memory_mib)
    names = options.target or sorted(TARGETS)
    shares = sum(TARGETS[name].share for name in names)
    faults = 0
    for name in names:
        count = round(options.inputs * TARGETS[name].share / shares)
        numbers = range(count) if options.only is None else range(options.only, options.only + 1)
        faults += fuzz(name, numbers, seed=options.seed, seconds=options.seconds, save=options.save)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
