"""`sparknet data imagenet` as far as it comes without Spark, and how it tells how far it is."""

import io
import re

import pytest

from imagenet_archive import make, make_train, work_for
from sparknet.cli import imagenet as command
from sparknet.cli.imagenet_screen import Screen
from sparknet.cli.main import main
from sparknet.spark.preparing.imagenet import ChunkProgress


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return make_train(tmp_path_factory.mktemp("train"), classes=8, per_class=6)


@pytest.fixture
def no_spark(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("Spark was started")

    monkeypatch.setattr(command, "session_for", refuse)


def arguments(archive, to, *more):
    return ["data", "imagenet", "--labels", str(archive.labels), "--to", str(to), *map(str, more)]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], 2, "--train-tar and --val-tar are missing"),
        (["--train-tar", "TAR", "--val-chunks", 3], 2, "--val-chunks 3 is given without --val-tar"),
        (["--train-tar", "TAR", "--train-chunks", 0], 2, "chunks is 0; it must be from 1"),
        (["--train-tar", "TAR", "--train-chunks", 50], 2, "50 train chunks for 49 images"),
        (["--train-tar", "TAR", "--width", -1], 2, "width is -1"),
        (["--train-tar", "TAR", "--corrupt-share", 2], 2, "--corrupt-share is 2; it is a share"),
        (["--train-tar", "TAR", "--set", "run.rounds=3"], 2, "--set run.rounds=3: only cluster.* settings"),
        (["--train-tar", "TAR", "--set", "cluster.mastr=x"], 2, "cluster.mastr is not a known key"),
        (["--train-tar", "TAR", "--master", "spark://h:1", "--workers", 3], 2, "--workers 3 and the master"),
        (["--train-tar", "/nowhere.tar"], 1, "/nowhere.tar: there is no such file"),
        (["--val-tar", "TAR"], 1, "val.txt"),
    ],
)
def test_what_is_wrong_is_told_before_spark_starts(more, code, message, train, tmp_path, capsys, no_spark):
    more = [train.tar if word == "TAR" else word for word in more]
    assert main(arguments(train, tmp_path / "out", *more)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_destination_that_cannot_be_is_told_before_spark_starts(train, tmp_path, capsys, no_spark):
    file = tmp_path / "file"
    file.write_text("")
    more = ["--train-tar", train.tar, "--train-chunks", 4]
    assert main(arguments(train, file, *more)) == 1
    assert f"{file} is a file; chunks go into a directory: give another --to" in capsys.readouterr().err
    assert main(arguments(train, file / "below", *more)) == 1
    assert f"{file / 'below'}" in capsys.readouterr().err


def test_a_finished_destination_needs_no_spark(train, tmp_path, capsys, no_spark):
    make(work_for(train, "train", tmp_path / "out"))
    given = arguments(train, tmp_path / "out", "--train-tar", train.tar, "--train-chunks", 4, "--seed", 3)
    given += ["--width", "64", "--height", "64"]
    assert main(given) == 1
    assert "3 of 49 train images are corrupt, more than 0.001 of them" in capsys.readouterr().err
    assert main([*given, "--corrupt-share", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "45 of 49 images" in printed
    assert "4 of them kept" in printed
    assert all(name in printed for name in (*train.corrupt, *train.missing, *train.unlabelled))
    assert (tmp_path / "out" / "train.txt").exists()


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "imagenet", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--corrupt-share X" in printed
    assert "SPARK_LOCAL_DIRS" in printed


READING = ChunkProgress(pieces_read=300, pieces=1000, chunks_done=0, chunks=40)
WRITING = ChunkProgress(pieces_read=1000, pieces=1000, chunks_done=7, chunks=40)


def test_plain_lines_come_when_nothing_was_said_for_a_while():
    stream, now = io.StringIO(), [0.0]
    screen = Screen(stream, clock=lambda: now[0])
    screen.note("starting Spark")
    for seconds, progress in ((4, READING), (11, READING), (20, WRITING), (22, WRITING)):
        now[0] = seconds
        screen.watch("train", progress)
    screen.close()
    assert stream.getvalue().splitlines() == [
        "     0.0 s  starting Spark",
        "    11.0 s  train: 300 of 1,000 parts of the archive read",
        "    22.0 s  train: 7 of 40 chunks written",
    ]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    screen = Screen(stream)
    screen.note("a file [red]name")
    screen.watch("train", READING)
    screen.watch("train", WRITING)
    screen.close()
    screen.close()
    drawn = stream.getvalue()
    words = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    assert "a file [red]name" in drawn
    assert "7/40 chunks written" in words
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.parametrize("odd", ["file", "dumb", "latin-1"])
def test_anything_but_a_terminal_that_can_show_it_gets_plain_lines(odd, monkeypatch):
    monkeypatch.setenv("TERM", "dumb" if odd == "dumb" else "xterm")
    stream = io.StringIO() if odd == "file" else Terminal()
    if odd == "latin-1":
        monkeypatch.setattr(Terminal, "encoding", odd)
    now = [0.0]
    screen = Screen(stream, clock=lambda: now[0])
    now[0] = 60.0
    screen.watch("train", READING)
    screen.close()
    assert stream.getvalue() == "    60.0 s  train: 300 of 1,000 parts of the archive read\n"
