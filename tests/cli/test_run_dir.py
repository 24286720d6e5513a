"""Run directories as they are typed: what is refused before Spark starts, and what `doctor` says of a store."""

import pytest

from cli_process import CONFIGS, Host, checks_of, sparknet, trap_java
from s3_server import reach, s3_server

DIGITS = CONFIGS / "digits.toml"


@pytest.fixture(scope="module")
def server():
    with s3_server("runs") as server:
        yield server


@pytest.fixture(scope="module")
def host(server, tmp_path_factory):
    """Runs commands that must fail before Spark starts, and leave nothing behind."""
    place = tmp_path_factory.mktemp("host")
    trap = trap_java(place)
    (place / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        reach(server, patch)
        host = Host(place / "files", with_spark=False, JAVA_HOME=str(trap), TMPDIR=str(place / "tmp"))
    yield host
    host.close()
    assert not (trap / "started").exists(), "Spark was started"
    assert not list((place / "tmp").glob("sparknet-*"))
    server.empty("runs")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("s3:bucket/run", r"the run directory is 's3:bucket/run'; .*write s3://bucket/run"),
        ("ftp://host/run", r"the run directory is a ftp:// URI; .*name one of these"),
        ("s3://key:secret@bucket/run", r"credentials never stand in a URI"),
    ],
)
def test_what_is_no_place(host, tmp_path, where, words):
    host.run("train", DIGITS, "--run-dir", where, cwd=tmp_path).refused(2, words)
    for command in ("resume", "test"):
        host.run(command, where, cwd=tmp_path).refused(2, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://nobodys/run", r"s3://nobodys/run cannot be used: s3://nobodys: no such bucket; correct the URI"),
        ("s3://runs/mine", r"holds a run already; go on with `sparknet resume s3://runs/mine`"),
    ],
)
def test_where_no_run_can_begin(host, server, uri, words):
    server.client().put_object(Bucket="runs", Key="mine/config.toml", Body=b"")
    host.run("train", DIGITS, "--run-dir", uri).refused(1, words)


@pytest.mark.parametrize("command", ["resume", "test"])
@pytest.mark.parametrize("named", [True, False])
def test_where_there_is_no_run(host, server, command, named):
    words = ["--set", f"data.s3_endpoint={server.direct}"] if named else []
    server.clear()
    host.run(command, "s3://runs/none", *words).refused(1, r"s3://runs/none holds no run .*give a run's directory")
    assert bool(server.requests) is not named, "the server that was named is another one"


def test_a_store_that_may_not_be_written(host, server):
    server.inject("denied", method="PUT")
    host.run("train", DIGITS, "--run-dir", "s3://runs/new").refused(1, r"s3://runs/new cannot be used.*refused")
    assert server.injected["denied"]
    server.clear()


def test_doctor_looks_at_a_store(server, tmp_path, monkeypatch):
    reach(server, monkeypatch)
    words = ["doctor", "--master", "spark://host:1", "--run-dir", "s3://runs/a"]
    done = sparknet(*words, cwd=tmp_path, JAVA_HOME=str(tmp_path / "nowhere"))
    assert checks_of(done)["disk"][0] in ("ok", "warn")
    assert "s3://runs/a can be written" in checks_of(done)["disk"][1]
    assert not [key for key in server.keys("runs") if "doctor" in key], "it leaves nothing behind"
    server.inject("denied", method="PUT")
    done = sparknet(*words, cwd=tmp_path, JAVA_HOME=str(tmp_path / "nowhere"))
    assert checks_of(done)["disk"][0] == "FAIL"
    assert "access is refused" in checks_of(done)["disk"][1]
    assert not list(tmp_path.iterdir())
    server.clear()
