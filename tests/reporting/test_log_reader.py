"""Logs of the original, of its fork and ours are read alike, and drawn."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from matplotlib import image

from original_log import parse
from sparknet.cli.main import main
from sparknet.errors import DataError
from sparknet.reporting.log_reader import Accuracy, Entry, accuracies, read_log

ORIGINAL = """\
0.001: loading train data
5.0E-4: loading test data
20.25: repartition data
24.5: numTrainData = 50000
24.5: numTestData = 10000
30.1: trainPartitionSizes = Array(10000, 10000, 10000, 10000, 10000)
31.0: testPartitionSizes = Array(2000, 2000, 2000, 2000, 2000)
31.5, i = 0: broadcasting weights
31.6, i = 0: setting weights on workers
31.9, i = 0: testing
35.2, i = 0: 10.00% accuracy
35.2, i = 0: training
39.2, i = 0: collecting weights
39.9, i = 0: weight = -0.0035
40.0, i = 1: broadcasting weights
40.1, i = 1: setting weights on workers
40.4, i = 1: training
44.4, i = 1: collecting weights
45.1, i = 1: weight = 2.5E-4
45.2, i = 2: broadcasting weights
45.3, i = 2: setting weights on workers
45.4, i = 2: testing
47.0, i = 2: 75.21% accuracy
"""


def sorted_original():
    """The hand-written log without its second line, whose time is only there to show its form."""
    return ORIGINAL.replace("5.0E-4: ", "0.5: ")


def test_the_strict_reader_reads_what_the_original_wrote():
    log = parse(sorted_original())
    assert (log.train_rows, log.test_rows) == (50000, 10000)
    assert log.train_partitions == [10000] * 5
    assert log.accuracy == {0: (35.2, 10.0), 2: (47.0, 75.21)}
    assert log.weight == {0: -0.0035, 1: 0.00025}
    assert log.training_seconds == pytest.approx({0: 4.0, 1: 4.0})


@pytest.mark.parametrize("lost", ["setting weights on workers", "training", "numTestData = 10000"])
def test_the_strict_reader_misses_a_line(lost):
    lines = sorted_original().splitlines(keepends=True)
    without = next(number for number, line in enumerate(lines) if line.endswith(f": {lost}\n"))
    with pytest.raises(AssertionError):
        parse("".join(lines[:without] + lines[without + 1 :]))


def test_tests_are_found_in_the_originals_log_in_its_forks_and_in_older_ones_of_ours(tmp_path):
    log = tmp_path / "training_log_1.txt"
    log.write_text(ORIGINAL)
    assert next(read_log(log)) == Entry(seconds=0.001, round=None, message="loading train data")
    assert [entry.seconds for entry in read_log(log)][1] == 0.0005
    expected = [Accuracy(seconds=35.2, round=0, percent=10.0), Accuracy(seconds=47.0, round=2, percent=75.21)]
    assert accuracies(read_log(log)) == expected
    log.write_text("".join(f"Tue Mar 08 10:11:12 UTC 2016  {line}\n" for line in ORIGINAL.splitlines()))
    assert accuracies(read_log(log)) == expected
    log.write_text(ORIGINAL.replace("% accuracy", " percent accuracy") + "Exception in thread: boom\n")
    assert accuracies(read_log(log)) == expected
    with pytest.raises(DataError, match=r"missing\.txt: cannot be read: No such file or directory; give a"):
        list(read_log(tmp_path / "missing.txt"))


def later(seconds):
    """The log of a run that took longer."""
    return re.sub(r"^(\S+?)(?=[,:])", lambda m: str(float(m[1]) + seconds), ORIGINAL, flags=re.MULTILINE)


def plotted(tmp_path, monkeypatch, *arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text(ORIGINAL)
    run = tmp_path / "runs" / "cifar-2"
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").touch()
    (run / "training_log_7.txt").write_text(later(400))
    return main(["plot", "one.txt", "runs/cifar-2", *arguments])


def test_several_logs_are_drawn_into_one_svg(tmp_path, monkeypatch, capsys):
    assert plotted(tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out == "accuracy.svg\n"
    picture = tmp_path / "accuracy.svg"
    written = picture.read_bytes()
    words = {text.strip() for text in ElementTree.fromstring(written).itertext()}
    assert {"one", "cifar-2", "accuracy (%)", "time (minutes)", "round"} <= words
    assert plotted(tmp_path, monkeypatch) == 0
    assert picture.read_bytes() == written, "the same logs make another picture"


def test_a_png_has_both_curves_in_both_halves(tmp_path, monkeypatch):
    assert plotted(tmp_path, monkeypatch, "-o", "curves.png") == 0
    pixels = image.imread(tmp_path / "curves.png")[:, :, :3]
    for half in (pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]):
        for colour in ((31, 119, 180), (255, 127, 14)):
            hits = abs(half * 255 - colour).max(axis=2) < 2
            assert hits.sum() > 100, "a curve is missing"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "curves.gif"], r"curves\.gif ends in '\.gif'; the picture can be \.svg, \.png, \.pdf"),
        (["-o", "none/curves.svg"], r"none"),
        (["empty.txt"], r"empty: tells of no accuracy; give a training log of a run that was tested"),
        (["missing.txt"], r"missing\.txt: cannot be read"),
        (["."], r"\. holds no training_log_\*\.txt; give a log, or a run directory"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "empty.txt").write_text("1.0: loading train data\n")
    assert plotted(tmp_path, monkeypatch, *arguments) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(rf"^sparknet: error: .*{said}", error), error
    assert not list(tmp_path.glob("*.svg")) + list(tmp_path.glob("*.gif"))


def test_logs_of_one_name_are_told_apart_by_their_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "log.txt").write_text(ORIGINAL)
    assert main(["plot", "a/log.txt", "b/log.txt", "a/log.txt"]) == 0
    words = {text.strip() for text in ElementTree.parse(tmp_path / "accuracy.svg").getroot().itertext()}
    assert {"a/log.txt", "b/log.txt"} <= words
