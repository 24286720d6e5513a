"""Commands as users give them, in processes of their own, and what they printed."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from places import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SPARKNET = [sys.executable, "-m", "sparknet.cli.main"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    def refused(self, code, *words):
        """Hold what a user saw of a failure against the rules: one clear line with a remedy, nothing else."""
        assert self.code == code, self
        lines = self.err.splitlines()
        errors = [line for line in lines if line.startswith("sparknet: error: ")]
        assert len(errors) == 1, self.err
        others = [line for line in lines if not line.startswith("sparknet: ")]
        assert not others, f"besides the error the terminal shows {others}"
        for noise in ("Traceback", "py4j", "java.", "\tat ", 'File "'):
            assert noise not in self.err + self.out, self.err + self.out
        for word in words:
            assert re.search(word, errors[0]), f"{word!r} is not in: {errors[0]}"


def sparknet(*arguments, cwd, **environment):
    """One command in a process of its own."""
    began = time.monotonic()
    done = subprocess.run(
        [*SPARKNET, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


class Host:
    """A process of cli_host.py, beside this file."""

    def __init__(self, place, *, with_spark, **environment):
        place.mkdir(parents=True, exist_ok=True)
        self._files = [place / "out", place / "err"]
        log = [place / "spark.log"] if with_spark else []
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("cli_host.py"), *self._files, *log],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout.readline(), self._files[1].read_text()

    def run(self, *arguments, cwd="/"):
        """Run one command."""
        before = [file.stat().st_size for file in self._files]
        began = time.monotonic()
        code = self._ask(arguments=[str(argument) for argument in arguments], cwd=str(cwd))
        seconds = time.monotonic() - began
        out, err = (file.read_bytes()[start:].decode() for file, start in zip(self._files, before, strict=True))
        return Outcome(code, out, err, seconds)

    def measure(self, run_dir):
        """What `sparknet test` prints, unrounded."""
        return self._ask(measure=str(run_dir), cwd="/")

    def _ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["answer"]

    def close(self):
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        finally:
            self._process.kill()
            self._process.stdout.close()


def result_of(run_dir):
    return json.loads((run_dir / "result.json").read_text())


def table_of(outcome):
    """The table that `sparknet test` printed."""
    lines = outcome.out.splitlines()
    first = max(number for number, line in enumerate(lines) if line.startswith("rows "))
    return {line[:15].strip(): line[15:] for line in lines[first:]}


def checks_of(outcome):
    """What `sparknet doctor` printed: mark and finding of each check."""
    lines = outcome.out.splitlines()
    return {line[6:16].strip(): (line[:6].strip(), line[16:]) for line in lines if line[:1] in "owF-"}


def trap_java(home):
    """Make a JAVA_HOME whose Java tells its version and, when started for anything else, leaves a trace."""
    (home / "bin").mkdir()
    java = home / "bin" / "java"
    java.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] || touch {home}/started\necho \'openjdk version "17.0.1"\' >&2\n'
    )
    java.chmod(0o755)
    return home
