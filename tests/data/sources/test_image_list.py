"""Lists of images as Caffe's ImageData reads them: lines `PATH LABEL`, and where their paths begin."""

from pathlib import Path

import pytest

from image_files import jpeg
from sparknet.data.rows.columns import ENCODED_IMAGE
from sparknet.data.sources import image_list
from sparknet.data.sources.files import Location
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError

LINES = [("cat 1.jpg", 3), ("more/dog.jpg", -1), ("cat 1.jpg", 2147483647)]


def made(directory: Path, lines: list[tuple[str, int]] = LINES, *, end: str = "\n") -> Path:
    """The images below `directory`, and a list of them there."""
    for number, name in enumerate(dict.fromkeys(name for name, _ in lines)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(jpeg(number))
    file = directory / "list.txt"
    file.write_text("".join(f"{name} {label}{end}" for name, label in lines))
    return file


def rows_of(where: Location) -> list[dict]:
    source = image_list.open_source(where)
    return [row for part in source.partitions for batch in image_list.read(part) for row in batch.to_pylist()]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_rows_in_the_order_of_the_lines(tmp_path: Path, end: str) -> None:
    rows = rows_of(Location(path=str(made(tmp_path, end=end))))
    assert [row["label"] for row in rows] == [3, -1, 2147483647]
    assert [row["image"] for row in rows] == [jpeg(0), jpeg(1), jpeg(0)]
    assert [row["name"] for row in rows] == [str(tmp_path / name) for name, _ in LINES]
    assert {row["error"] for row in rows} == {None}


def test_where_paths_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the root that is named; else in the current directory, as in Caffe; else beside the list."""
    listed = made(tmp_path / "data")
    elsewhere = tmp_path / "lists" / "l.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text(listed.read_text())
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert len(rows_of(Location(path=str(listed)))) == 3
    assert len(rows_of(Location(path=str(elsewhere), root=str(tmp_path / "data")))) == 3
    with pytest.raises(DataError, match=r"l\.txt: entry 1 names .*lists/cat 1\.jpg, which is no file; paths"):
        rows_of(Location(path=str(elsewhere)))
    monkeypatch.chdir(tmp_path / "data")
    assert len(rows_of(Location(path=str(elsewhere)))) == 3
    absolute = tmp_path / "lists" / "absolute.txt"
    absolute.write_text(f"{tmp_path}/data/more/dog.jpg 1\n")
    assert rows_of(Location(path=str(absolute)))[0]["image"] == jpeg(1)


def test_what_is_known_before_a_row_is_read(tmp_path: Path) -> None:
    source = image_list.open_source(Location(path=str(made(tmp_path))))
    assert source.schema.input == ENCODED_IMAGE
    # The list and each image: a change of any of them makes other rows.
    assert [file.name for file in source.files] == ["list.txt", "cat 1.jpg", "dog.jpg", "cat 1.jpg"]


def test_a_damaged_image_is_told_by_row(tmp_path: Path) -> None:
    listed = made(tmp_path)
    (tmp_path / "more" / "dog.jpg").write_bytes(b"<html>")
    rows = rows_of(Location(path=str(listed)))
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert rows[1]["label"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n", r"line 1 is 'a\.jpg'; it must be PATH LABEL"),
        ("a.jpg 1\nb.jpg one\n", r"line 2 is 'b\.jpg one'; it must be PATH LABEL with a whole number of 32 bits"),
        ("a.jpg 1.5\n", "line 1 is"),
        ("a.jpg 2147483648\n", "line 1 is"),
        ("a.jpg -2147483649\n", "line 1 is"),
        (f"a.jpg {'0' * 20}2147483648\n", "line 1 is"),
        (f"a.jpg {'9' * 5000}\n", "line 1 is"),
        (" \n\n", "the list names no file"),
    ],
)
def test_lines_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        image_list.open_source(Location(path=str(tmp_path / "list.txt")))


def test_labels_at_the_ends_and_with_zeros_in_front(tmp_path: Path) -> None:
    labels = {"-2147483648": -(2**31), "00": 0, "-0": 0, f"{'0' * 5000}7": 7}
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "list.txt").write_text("".join(f"a.jpg {label}\n" for label in labels))
    assert [row["label"] for row in rows_of(Location(path=str(tmp_path / "list.txt")))] == list(labels.values())


def test_what_is_no_list(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(DataError, match="no such list of images; source image_list reads lines PATH LABEL"):
            image_list.open_source(Location(path=str(path)))
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="it is not UTF-8 and so no list of files"):
        image_list.open_source(Location(path=str(tmp_path / "list.txt")))


def test_many_are_cut_into_partitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_list, "_PARTITION_FILES", 2)
    source = image_list.open_source(Location(path=str(made(tmp_path))))
    assert [len(part.names) for part in source.partitions] == [2, 1]
    assert all(size > 0 for part in source.partitions for size in part.sizes)
    rows = [
        row for part in source.partitions for batch in image_list.read(part, LOCAL) for row in batch.to_pylist()
    ]
    assert [row["label"] for row in rows] == [3, -1, 2147483647]
