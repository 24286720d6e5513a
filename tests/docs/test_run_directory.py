"""docs/run_directory.md is held to the code: commands parse, and its Python trains into a real store."""

import re

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
    names: dict = {}
    (block,) = blocks("python")
    with s3_server("bucket") as server:
        reach(server, monkeypatch)
        server.empty("bucket")  # what other servers of this process were given
        exec(compile(block, "run_directory.md", "exec"), names)
        keys = [key.removeprefix("runs/first/") for key in server.keys("bucket")]
        server.empty("bucket")
    assert names["accuracy"] >= BAR
    assert sum(parameter.numel() for parameter in names["module"].parameters()) == 33_490
    tops = {key.partition("/")[0] for key in keys if not key.startswith("training_log")} - {""}
    assert tops == {
        "config.toml",
        "events.jsonl",
        "checkpoints",
        "model",
        "result.json",
        "preprocess.safetensors",
        "spark.log",
    }
    told = set(re.findall(r"`([\w.]+)/?", PAGE.partition("`--run-dir` names it")[0]))
    assert tops <= told, "the page's table lacks some"
