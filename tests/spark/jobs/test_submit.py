"""What spark-submit and Spark's own files say counts: real submissions to a real standalone cluster."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyspark
import pytest

from digits import read_events
from formats import cifar_directory
from original_log import parse
from places import REPOSITORY
from standalone import Standalone

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(1800)]

APPS = REPOSITORY / "apps"
DIGITS = str(REPOSITORY / "configs" / "digits.toml")
SUBMIT = str(Path(sys.executable).with_name("spark-submit"))
OWN = {"PYSPARK_PYTHON": sys.executable, "SPARK_HOME": str(Path(pyspark.__file__).parent)}
PATIENCE_SECONDS = 400.0
SMALL = ("--conf", "spark.executor.memory=512m")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Standalone(tmp_path_factory.mktemp("cluster"), workers=[2]) as started:
        yield started


def run(*command, cwd, **environment):
    """One command from a directory that is not the repository's."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **OWN, **environment},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )


def applications(cluster):
    state = cluster.state()
    return [one["name"] for one in [*state["activeapps"], *state["completedapps"]]]


def warnings_of(run_dir):
    return [event["message"] for event in read_events(run_dir) if event.get("level") == "warning"]


def test_the_originals_program_runs_where_it_is_submitted_to(cluster, tmp_path):
    cifar_directory(tmp_path / "home" / "data" / "cifar10", rows=40, batches=5)
    submitted = (SUBMIT, "--master", cluster.url, "--name", "mine", *SMALL)
    # As the original took it: options before or after the number, data below SPARKNET_HOME.
    app = (APPS / "cifar_app.py", f"--master={cluster.url}", 2, "--rounds", 6, "--run-dir", tmp_path / "run")
    settings = ("--set", "solver.batch_size=10", "--set", "sync.local_steps=2")
    done = run(*submitted, *app, *settings, cwd=tmp_path, SPARKNET_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert applications(cluster).count("mine") == 1
    (log,) = (tmp_path / "run").glob("training_log_*.txt")
    read = parse(log.read_text())
    assert (read.train_rows, read.test_rows) == (200, 15)
    assert read.train_partitions == [100, 100]
    assert list(read.accuracy) == [0, 5, 6], "tested every fifth round from the first on, and at the end"
    assert sorted(read.weight) == list(range(6))
    assert len(set(read.weight.values())) == 6
    assert all(abs(weight) < 0.01 for weight in read.weight.values()), "the net's first weights are of 0.0001"
    assert all(seconds > 0 for seconds in read.training_seconds.values())


def test_a_master_of_sparks_own_file_counts_without_spark_submit(cluster, tmp_path):
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "spark-defaults.conf").write_text(f"spark.master {cluster.url}\nspark.executor.memory 512m\n")
    command = (sys.executable, APPS / "train.py", DIGITS, "--run-dir", tmp_path / "run", "--set", "run.rounds=1")
    done = run(*command, cwd=tmp_path, SPARK_CONF_DIR=str(conf))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sparknet digits" in applications(cluster)
    assert not warnings_of(tmp_path / "run")


def test_another_master_of_ours_is_refused_by_both_names(cluster, tmp_path):
    command = (APPS / "train.py", DIGITS, "--run-dir", tmp_path / "run", "--master", "local[2]")
    done = run(SUBMIT, "--master", cluster.url, *command, cwd=tmp_path)
    assert done.returncode != 0
    # spark-submit puts a Python program's standard error into its own standard output.
    (error,) = [line for line in done.stdout.splitlines() if line.startswith("sparknet: error: ")]
    assert "--master is local[2] and spark-submit" in error
    assert f"says {cluster.url}; there can be one" in error


def test_ctrl_c_ends_a_submitted_run_which_can_be_resumed(tmp_path):
    """A terminal's Ctrl-C reaches spark-submit's Java machine and the program at once."""
    run_dir = tmp_path / "run"
    app = (
        APPS / "train.py",
        DIGITS,
        "--run-dir",
        run_dir,
        "--set",
        "run.rounds=100000",
        "--set",
        "run.checkpoint_every=1",
    )
    with (tmp_path / "screen").open("wb") as screen:
        process = subprocess.Popen(
            [str(word) for word in (SUBMIT, *app)],
            cwd=tmp_path,
            env={**os.environ, **OWN},
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )
        try:
            events = run_dir / "events.jsonl"
            until = time.monotonic() + PATIENCE_SECONDS
            while not (events.exists() and '"event": "checkpoint"' in events.read_text()):
                assert process.poll() is None, (tmp_path / "screen").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) != 0
            until = time.monotonic() + PATIENCE_SECONDS
            while members_of(process.pid):
                assert time.monotonic() < until, "something of the run lives on"
                time.sleep(0.2)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    # The Java machine ends at once, and with it the screen: the files tell.
    assert read_events(run_dir)[-1]["event"] == "run_stopped"
    (log,) = run_dir.glob("training_log_*.txt")
    assert log.read_text().splitlines()[-1].endswith(": stopped: interrupted")
    resumed = run(
        *(sys.executable, "-m", "sparknet.cli.main", "resume", run_dir, "--set", "run.rounds=50"), cwd=tmp_path
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert read_events(run_dir)[-1]["event"] == "run_finished"


def members_of(group):
    """Processes of a process group, zombies aside."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_who_submits_without_a_master_gets_an_embedded_session(tmp_path):
    command = (APPS / "train.py", DIGITS, "--run-dir", tmp_path / "run", "--set", "run.rounds=1")
    done = run(SUBMIT, "--conf", "spark.log.level=ERROR", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not warnings_of(tmp_path / "run")
