"""Throw damaged files at every parser: nothing may come out but an answer or a documented error.

    python tests/fuzz/fuzz_parsers.py --inputs 50000 --seed 1
    python tests/fuzz/fuzz_parsers.py --target net_text --seed 1 --only 4711     # one input again

Each target names a corpus of good files, the function under test and the errors that it documents. An input is made
from the corpus by a few random mutations that depend on the seed and its number alone. Anything but an answer or a
documented error is a fault, and so are more than `--seconds` for one input and more than `--memory-mib` on top of
what the process held at its start (RLIMIT_AS, which makes it a MemoryError). A faulty input is made smaller and
saved; the exit code is 1.

To add a parser, add an entry to `TARGETS`.
"""

import argparse
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

from google.protobuf.message import DecodeError, Message

from sparknet.errors import NetError
from sparknet.nets.prototxt import format_text, parse_text
from sparknet.nets.rules import select
from sparknet.nets.schema import NetParameter, SolverParameter
from sparknet.nets.spec import NetSpec
from sparknet.nets.upgrade import upgrade_net, upgrade_solver
from sparknet.nets.weights.blobs import array_of
from sparknet.nets.weights.caffemodel import read_weights
from sparknet.nets.weights.mean_image import read_mean
from sparknet.nets.weights.written_form import describes

CASES = Path(__file__).parents[1] / "numerics" / "caffe"
LARGEST = 1 << 16  # bytes of an input

NET_SNIPPETS = [
    # spellings
    b"""name: 'a' "b" # comment
    input: 'data' input_shape: < dim: [1, 2,3] >
    input: "l"; input_shape { dim: 0x1F },""",
    b"layer [ { name: 'x' type: 'ReLU' }, < name: 'y' > ] state { phase: TEST level: -2147483648 }",
    b"""force_backward: t layer { name: '\\101\\x41\\u00e9\\U0001F600\\n\\'' phase: 1
    loss_weight: [1e-1, .5, 1., -inf, nan, 2f, 1e400] }""",
    # forks
    b"layer { type: 'Pool' pooling_param { pool: AVE ceil_mode: false kernel_size: 4294967295 engine: MKL2017 } }",
    b"""default_forward_type: FLOAT16
    layer { forward_math: [1, { a: 'x' 'y' b < > }] type: 'Clip' clip_param { min: 0 max: 1 } }""",
    # blobs
    b"""layer { blobs { shape { dim: 2 } data: 1 data: -2.5e-3 diff: [0, 1] double_data: 1e300 }
    blobs { num: 1 channels: 2 } }""",
    # older notations
    b"""input: 'a' input_dim: [1, 2, 3, 4]
    layers { type: CONVOLUTION name: 'c' bottom: 'a' top: 'c' param: 'w' blob_share_mode: PERMISSIVE
    blobs_lr: 1 blobs_lr: 2 weight_decay: 1 include { stage: 's' not_stage: 'n' min_level: -1 }
    convolution_param { kernel_size: 3 weight_filler { type: 'xavier' variance_norm: AVERAGE } } }""",
    b"""input: 'd' input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
    layers { layer { name: 'p' type: 'padding' pad: 2 } bottom: 'd' top: 'p' }
    layers { layer { name: 'c' type: 'conv' num_output: 3 kernelsize: 5 blobs_lr: 1. } bottom: 'p' top: 'c' }
    layers { layer { name: 'i' type: 'images' source: 'x' batchsize: 2 meanfile: 'm' cropsize: 3 mirror: true
    scale: 0.5 shuffle_images: 1 new_height: 4 } top: 'i' }""",
    b"layers { type: DATA name: 'd' top: 'd' data_param { source: 's' scale: 0.1 mean_file: 'm' crop_size: 2 } }",
    b"layer { type: 'BatchNorm' param { lr_mult: 1 } param { } param { decay_mult: 2 } exclude { phase: TRAIN } }",
]
SOLVER_SNIPPETS = [
    b"""net: "n.prototxt" test_iter: [1, 2] base_lr: 1e-2 lr_policy: 'step'
    stepvalue: 1, stepvalue: 2; random_seed: -1""",
    b"net_param { layer { name: 'a' } } test_net_param [ { }, { name: 'x' } ] solver_mode: GPU snapshot_format: 0",
    b"""solver_type: ADAGRAD train_state { stage: 'a' stage: 'b' } test_state { phase: TEST }
    solver_data_type: FLOAT16""",
    b"type: 'Adam' momentum: 0.9 momentum2: .999 delta: 1e-8 clip_gradients: -1 snapshot_after_train: False",
]
BLOBS = [  # of Caffe's kinds: legacy axes, today's shape, numbers that are not packed, double precision
    b"\x08\1\x10\1\x18\2\x20\1\x2a\x08" + bytes(8),
    b"\x2a\x08" + bytes(8) + b"\x3a\5\x0a\3\1\2\1",
    b"\x08\1\x10\1\x18\2\x20\1" + (b"\x2d" + bytes(4)) * 2,
    b"\x3a\5\x0a\3\1\2\1\x42\x10" + bytes(16),
    b"\x2a\4" + bytes(4) + b"\x2a\4" + bytes(4) + b"\x32\x08" + bytes(8) + b"\x3a\5\x0a\3\2\1\1",
]
BLOB_NETS = [
    *(b"\x0a\1n\xa2\x06" + bytes([len(blob) + 5]) + b"\x0a\1l\x3a" + bytes([len(blob)]) + blob for blob in BLOBS),
    *(b"\x12" + bytes([len(blob) + 5]) + b"\x22\1l\x32" + bytes([len(blob)]) + blob for blob in BLOBS),
    *(
        b"\x12"
        + bytes([len(blob) + 8])
        + b"\x0a"
        + bytes([len(blob) + 6])
        + b"\x0a\1l\x92\3"
        + bytes([len(blob)])
        + blob
        for blob in BLOBS
    ),
]
WORDS = [
    *b"{ } < > [ ] : ; , - . # ' \" \\ \\x \\u \\777 \\ud800 0 1 -1 0x 1e 1e9999 nan inf true ''".split(),
    *b"2147483648 4294967296 18446744073709551616 99999999999999999999999".split(),
    *b"layer layers name type blobs data shape dim include param input input_dim input_shape engine".split(),
    *b"convolution_param pooling_param ceil_mode \xff \xc3\xa9 \xe2\x80\xa8 \xf0\x9f\x98\x80 \xed\xa0\x80".split(),
    *(b"\0", b"\n", b"\r", b" ", b"\xef\xbb\xbf", b"\xff" * 9),
    *(b"{" * 200, b"[" * 200, b"9" * 5000, b"layer {" * 90, b"'\\" + b"1" * 300),
]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser, good input for it, and what it may raise."""

    corpus: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...]
    share: float = 1.0
    """How many of the inputs it gets, in proportion to the others."""


def files(pattern: str, largest: int = LARGEST) -> list[bytes]:
    """The reference files that match a pattern, but for those above `largest` bytes."""
    return [path.read_bytes() for path in sorted(CASES.rglob(pattern)) if path.stat().st_size <= largest]


def run_net_text(content: bytes) -> None:
    net = parse_text(content.decode(errors="surrogateescape"), NetParameter)
    check_round_trip(net.message)
    check_net(net.message)


def run_solver_text(content: bytes) -> None:
    solver = parse_text(content.decode(errors="surrogateescape"), SolverParameter).message
    check_round_trip(solver)
    assert not upgrade_solver(solver).HasField("solver_type")


def run_net_binary(content: bytes) -> None:
    net = NetParameter.FromString(content)
    check_net(net)
    check_round_trip(net)


def run_weights(content: bytes) -> None:
    """Weights are what protobuf says they are, which reads them by another way."""
    weights = read_weights(in_memory(content))
    assert weights.description is not None
    describes(weights.description, NetSpec(weights.description))
    with suppress(DecodeError, NetError):
        net = NetParameter.FromString(content)
        older = [(layer.layer if layer.HasField("layer") else layer) for layer in net.layers]
        expected = {layer.name: [array_of(blob) for blob in layer.blobs] for layer in (*net.layer, *older)}
        for name, arrays in expected.items():
            if arrays:
                assert [array.tobytes() for array in weights.blobs[name].values()] == [a.tobytes() for a in arrays]


def run_mean(content: bytes) -> None:
    mean = read_mean(in_memory(content))
    assert mean.ndim == 3
    assert 0 < mean.nbytes <= len(content)


@cache
def memory_file() -> int:
    return os.memfd_create("fuzz")


def in_memory(content: bytes) -> str:
    """Return the path of a file that holds this and lies on no disk; one at a time."""
    os.truncate(memory_file(), 0)
    os.pwrite(memory_file(), content, 0)
    return f"/proc/self/fd/{memory_file()}"


def check_net(net: NetParameter) -> None:
    """What must hold of every net that parses: its upgrade is modern, and upgrading again changes nothing."""
    upgrade = upgrade_net(net)
    assert not upgrade.net.layers
    assert not upgrade.net.input
    assert len(upgrade.origins) == len(upgrade.net.layer)
    again = upgrade_net(upgrade.net)
    assert again.net.SerializeToString() == upgrade.net.SerializeToString()
    select(upgrade.net, phase="TRAIN")


def check_round_trip(message: Message) -> None:
    """What must hold of every message: its text is a message of the same text."""
    text = format_text(message)
    assert format_text(parse_text(text, type(message)).message) == text


TARGETS = {
    "net_text": Target(
        corpus=lambda: files("net.prototxt") + NET_SNIPPETS, run=run_net_text, allowed=(NetError,), share=2.0
    ),
    "solver_text": Target(
        corpus=lambda: files("solver.prototxt") + SOLVER_SNIPPETS, run=run_solver_text, allowed=(NetError,)
    ),
    "net_binary": Target(
        corpus=lambda: [
            *files("*.caffemodel", largest=1 << 14),
            *(parse_text(text.decode(), NetParameter).message.SerializeToString() for text in NET_SNIPPETS),
        ],
        run=run_net_binary,
        allowed=(NetError, DecodeError),
        share=0.5,
    ),
    "weights": Target(
        corpus=lambda: [*files("*.caffemodel", largest=1 << 14), *BLOB_NETS], run=run_weights, allowed=(NetError,)
    ),
    "mean_image": Target(
        corpus=lambda: files("mean.binaryproto") + BLOBS, run=run_mean, allowed=(NetError,), share=0.5
    ),
}


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
