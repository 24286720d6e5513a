"""docs/run_directory.md is held to the code: commands parse, and its Python trains into a real store."""

import re
import subprocess
import sys

import pytest

from digits import BAR
from places import REPOSITORY
from s3_server import reach, s3_server
from sparknet.cli import main
from sparknet.training.run_files.ownership import RENEW_SECONDS, STALE_SECONDS
from sparknet.training.run_files.remote_run import SEND_SECONDS

PAGE = (REPOSITORY / "docs" / "run_directory.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_every_command_parses():
    commands = [line for block in blocks("") for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        assert main._parser().parse_args(command.split()[1:]).module


def test_times_are_those_of_the_code():
    assert f"again every {RENEW_SECONDS:.0f} s" in PAGE
    assert f"older than {STALE_SECONDS:.0f} s" in PAGE
    assert f"every {SEND_SECONDS:.0f} s while" in PAGE


@pytest.mark.spark
def test_the_python_block_runs(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (block,) = blocks("python")
    with s3_server("bucket") as server:
        reach(server, monkeypatch)
        server.empty("bucket")  # what other servers of this process were given
        # In a process of its own: tasks have the environment with which this one's Java machine was started, by
        # whichever test, and so the way to another server.
        told = "print('TOLD', accuracy, sum(parameter.numel() for parameter in module.parameters()))"
        done = subprocess.run(
            [sys.executable, "-c", f"{block}\n{told}"], capture_output=True, text=True, timeout=240, check=False
        )
        keys = [key.removeprefix("runs/first/") for key in server.keys("bucket")]
        server.empty("bucket")
    assert done.returncode == 0, done.stderr
    _, accuracy, parameters = next(line for line in done.stdout.splitlines() if line.startswith("TOLD ")).split()
    assert float(accuracy) >= BAR
    assert int(parameters) == 33_490
    tops = {key.partition("/")[0] for key in keys if not key.startswith("training_log")} - {""}
    assert tops == {
        "config.toml",
        "events.jsonl",
        "checkpoints",
        "model",
        "result.json",
        "preprocess.safetensors",
        "spark.log",
        "store",
    }
    told = set(re.findall(r"`([\w.]+)/?", PAGE.partition("`--run-dir` names it")[0]))
    assert tops <= told, "the page's table lacks some"
