"""Label files are read by base name, quickly and in little memory; bad lines are named."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparknet.data.rows.columns import MOST_CLASSES
from sparknet.data.sources.label_file import Labels, write_labels
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError


@pytest.fixture
def place(tmp_path):
    return LOCAL.place(str(tmp_path / "train.txt"))


def labels(place, text):
    place.write(text if isinstance(text, bytes) else text.encode())
    return Labels.read(place)


def test_reads_the_originals_form(place):
    read = labels(place, "n01440764/n01440764_10026.JPEG 0\nn01443537/n01443537_2.JPEG 1\nval_3.JPEG 999\n")
    assert len(read) == 3
    assert read.of("n01440764_10026.JPEG") == 0
    assert read.of("n01443537/n01443537_2.JPEG") == 1
    assert read.of("other/directory/val_3.JPEG") == 999
    assert [read.of(name) for name in ("", "n01440764", "n01440764_1002", "n01440764_10026.JPEGx", "zz")] == [
        None
    ] * 5
    assert dict(read.items()) == {
        "n01440764/n01440764_10026.JPEG": 0,
        "n01443537/n01443537_2.JPEG": 1,
        "val_3.JPEG": 999,
    }
    assert read.file == place.uri
    assert read.values.dtype == np.int32


@pytest.mark.parametrize(
    "text",
    [
        "a b.jpg 1\nc.jpg 2\n",
        "a b.jpg 1\r\nc.jpg 2\r\n",
        "\n\na b.jpg 1\n  \n\r\nc.jpg 2",
        "\ufeffa b.jpg\t1\nc.jpg \t 2  \n",
        "a b.jpg 1\nc.jpg 2\na b.jpg 1\nd/c.jpg 2\n",
        "a b.jpg 001\nc.jpg 2\n",
    ],
    ids=["blank", "crlf", "empty lines", "mark and tabs", "repeated", "zeros"],
)
def test_reads_other_forms(place, text):
    read = labels(place, text)
    assert len(read) == 2
    assert (read.of("a b.jpg"), read.of("c.jpg"), read.of("b.jpg")) == (1, 2, None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("a.jpg -1", "a.jpg -1"),
        ("a.jpg 1.5", "a.jpg 1.5"),
        ("a.jpg one", "a.jpg one"),
        ("a.jpg", "a.jpg"),
        ("7", "'7'"),
        ("a.jpg ٣", "٣"),
        ("a.jpg 1_0", "1_0"),
        ("a.jpg +1", "+1"),
        ("directory/ 1", "directory/ 1"),
        (f"a.jpg {MOST_CLASSES}", str(MOST_CLASSES)),
        ("a.jpg 99999999999999999999", "99999999999999999999"),
    ],
)
def test_bad_lines_are_named(place, line, told):
    with pytest.raises(DataError) as error:
        labels(place, f"x.jpg 1\n\n{line}\ny.jpg 2\n")
    assert f"{place.uri}: line 3 is " in str(error.value)
    assert told in str(error.value)


def test_a_bad_line_far_down_is_counted_right(place):
    good = "".join(f"{i}.jpg {i % 7}\n" for i in range(70_000))
    with pytest.raises(DataError, match=r"line 70001 is 'bad'"):
        labels(place, good + "bad\n")
    with pytest.raises(DataError, match=r"line 70002 is not UTF-8"):
        labels(place, good.encode() + b"a 1\n\xff 2\n")


def test_two_labels_for_a_base_name_are_refused(place):
    with pytest.raises(DataError, match=r"train.txt: 1.jpg has the labels 0 and 5; .*without directories"):
        labels(place, "a/1.jpg 0\na/2.jpg 1\nb/1.jpg 5\n")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(place, text):
    with pytest.raises(DataError, match=r"train.txt: no lines"):
        labels(place, text)


def test_a_missing_file_is_named(place):
    with pytest.raises(DataError, match=r"train.txt"):
        Labels.read(place)


words = st.text(st.characters(codec="utf-8", exclude_characters="/\n", exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=100, deadline=None)
@given(entries=st.dictionaries(words.map(lambda word: f"{word}.j"), st.integers(0, MOST_CLASSES - 1), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, entries):
    place = LOCAL.place(str(tmp_path_factory.mktemp("labels") / "val.txt"))
    entries = {f"d/{name}": label for name, label in entries.items()}
    write_labels(place, entries.items())
    read = Labels.read(place)
    assert dict(read.items()) == entries
    assert all(read.of(name) == label for name, label in entries.items())
    assert [name.split("/", 1)[1].encode() for name, _ in read.items()] == sorted(
        name.split("/", 1)[1].encode() for name in entries
    )


def test_lines_are_written_in_order(place):
    write_labels(place, iter([("b c.jpg", 3), ("a.jpg", 0)]))
    assert place.read() == b"b c.jpg 3\na.jpg 0\n"


@pytest.mark.parametrize(
    ("name", "label"), [("a\nb", 1), ("a ", 1), ("", 1), ("a", -1), ("a", 1.5), ("a", MOST_CLASSES), ("a/", 1)]
)
def test_what_could_not_be_read_again_is_not_written(place, name, label):
    with pytest.raises(DataError, match="is no line of a label file"):
        write_labels(place, [("good", 0), (name, label)])
    assert place.facts() is None


def test_many_names_are_found_among_their_neighbours(place):
    names = [f"n{i:05d}.JPEG" for i in range(1000)]
    read = labels(place, "".join(f"{name} {i}\n" for i, name in reversed(list(enumerate(names)))))
    assert [read.of(name) for name in names] == list(range(1000))
    assert all(read.of(name[:-1]) is None and read.of(f"{name}x") is None for name in names)


MEASURE = """
import pyarrow as pa, resource, sys
from sparknet.data.sources.label_file import Labels
from sparknet.data.storage.place import LOCAL
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = Labels.read(LOCAL.place(sys.argv[1]))
print(labels.names.nbytes + labels.values.nbytes + sum(map(sys.getsizeof, labels.steps)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_small(place):
    lines = 300_000
    place.write("".join(f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG {i % 1000}\n" for i in range(lines)).encode())
    command = [sys.executable, "-c", MEASURE, place.uri]
    kept, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert kept < 60 * lines  # a dictionary takes 140
    assert peak < 500 * lines
