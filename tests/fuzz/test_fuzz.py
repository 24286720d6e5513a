"""A share of the fuzzing that runs every day, and a check that the fuzzer sees what it looks for."""

import os
import resource
import subprocess
import sys
import time

import pytest

import fuzz_parsers
from fuzz_parsers import fuzz, input_of, limit_memory, outcome, shrink
from fuzz_targets import TARGETS, Target

INPUTS = 50_000  # of all targets together; a million at night


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_damaged_file_gives_an_answer_or_a_documented_error(name, tmp_path):
    count = round(INPUTS * TARGETS[name].share / sum(target.share for target in TARGETS.values()))
    run = subprocess.run(
        [sys.executable, fuzz_parsers.__file__, f"--target={name}", f"--inputs={count}", f"--save={tmp_path}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # a thread's stack counts as memory of the input
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{name}: {count} inputs" in run.stdout
    assert run.stdout.rstrip().endswith(" 0 faults")


def target(run, *allowed: type[Exception]) -> Target:
    return Target(corpus=lambda: [b"abc"], run=run, allowed=allowed)


def recurse(content: bytes) -> None:
    recurse(content)


def raise_from(error: BaseException):
    def run(content: bytes) -> None:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (raise_from(KeyError("x")), KeyError),
        (raise_from(SystemExit(3)), SystemExit),
        (raise_from(ValueError("")), ValueError),  # allowed, but without a message
        (recurse, RecursionError),
        (lambda content: time.sleep(10), fuzz_parsers.TooSlow),
    ],
    ids=["undocumented", "exit", "no message", "recursion", "slow"],
)
def test_the_fuzzer_sees_a_fault(run, kind):
    assert isinstance(outcome(target(run, ValueError), b"", 0.05), kind)


def test_the_fuzzer_sees_an_input_that_takes_too_much_memory():
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(64)
    try:
        found = outcome(target(lambda content: bytearray(1 << 28)), b"", 5)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert isinstance(found, MemoryError)


def test_an_answer_and_a_documented_error_are_no_faults():
    assert outcome(target(len), b"", 5) is True
    assert outcome(target(raise_from(ValueError("x")), ValueError), b"", 5) is False


def test_a_faulty_input_is_made_smaller_saved_and_can_be_had_again(tmp_path, monkeypatch, capsys):
    def run(content: bytes) -> None:
        if b"b" in content:
            raise KeyError("b")

    monkeypatch.setitem(TARGETS, "broken", target(run))
    assert fuzz("broken", range(1), seed=7, seconds=5, save=tmp_path) == 1
    assert (tmp_path / "broken-7-0").read_bytes() == b"b"
    assert "--seed 7 --only 0: KeyError" in capsys.readouterr().out
    assert shrink(target(run), b"aaaaabaaaaaaaa", 5) == b"b"


def test_an_input_depends_on_seed_and_number_alone():
    assert [input_of("net_text", 3, number) for number in range(500, 600)] == [
        input_of("net_text", 3, number) for number in range(500, 600)
    ]
    assert input_of("net_text", 3, 500) != input_of("net_text", 4, 500)


def test_every_target_has_good_input_that_it_accepts():
    for name, entry in TARGETS.items():
        corpus = entry.corpus()
        assert len(corpus) > 5, name
        assert [index for index, content in enumerate(corpus) if outcome(entry, content, 30) is not True] == []
