"""HDF5 files: data sets as columns, lists of files as Caffe's HDF5Data reads them, and what is wrong with them."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from sparknet.data.sources import hdf5
from sparknet.data.sources.files import Location
from sparknet.errors import DataError

SETS = {
    "data": np.arange(60, dtype=np.float64).reshape(5, 3, 2, 2) / 4,
    "label": np.array([0.0, 1.0, 2.0, 1.0, 0.0], np.float32),
    "pixels": np.arange(20, dtype=np.uint8).reshape(5, 4),
    "tokens": np.arange(10, dtype=np.int32).reshape(5, 2),
    "flag": np.array([1, 0, 1, 0, 1], np.uint8),
}


def write(path: Path, **sets: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in sets.items():
            file[name] = values
    return path


def table_of(where: Location) -> dict[str, list]:
    source = hdf5.open_source(where)
    rows = [row for part in source.partitions for batch in hdf5.read(part) for row in batch.to_pylist()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_columns_are_the_data_sets(tmp_path: Path) -> None:
    where = Location(path=str(write(tmp_path / "a.h5", **SETS)))
    columns = hdf5.open_source(where).schema.columns
    assert {one.name: (one.dtype, one.shape, one.classes) for one in columns} == {
        "data": ("float32", (3, 2, 2), None),
        "label": ("float32", (), 0),
        "pixels": ("uint8", (4,), None),
        "tokens": ("int64", (2,), None),
        "flag": ("int64", (), 0),
    }
    found = table_of(where)
    assert found["data"] == SETS["data"].reshape(5, 12).tolist()
    assert found["label"] == SETS["label"].tolist()
    assert found["pixels"] == [row.tobytes() for row in SETS["pixels"]]
    assert found["tokens"] == SETS["tokens"].tolist()
    assert found["flag"] == [1, 0, 1, 0, 1]


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    sets = SETS | {"names": np.array([b"x", b"y"]), "other": np.zeros(3)}
    where = Location(path=str(write(tmp_path / "a.h5", **sets)), columns=("label", "data"))
    assert [one.name for one in hdf5.open_source(where).schema.columns] == ["label", "data"]
    assert list(table_of(where)) == ["label", "data"]


@pytest.mark.parametrize("form", ["list", "directory", "glob"])
def test_several_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    for number in (2, 1):
        write(tmp_path / "rows" / f"{number}.h5", x=np.full((number, 1), number, np.float32))
    (tmp_path / "list.txt").write_text("rows/2.h5\n\nrows/1.h5\n")
    # As in Caffe from the current directory, or beside the list.
    monkeypatch.chdir("/")
    path = {"list": "list.txt", "directory": "rows", "glob": "rows/*.h5"}[form]
    found = table_of(Location(path=str(tmp_path / path)))
    assert found["x"] == ([[2], [2], [1]] if form == "list" else [[1], [2], [2]])
    names = [file.name for file in hdf5.open_source(Location(path=str(tmp_path / path))).files]
    assert names == (["list.txt", "2.h5", "1.h5"] if form == "list" else ["1.h5", "2.h5"])


def test_partitions_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5", x=np.arange(20, dtype=np.float32).reshape(10, 2))
    monkeypatch.setattr(hdf5, "_PARTITION_BYTES", 4 * 8)
    monkeypatch.setattr(hdf5, "_BATCH_BYTES", 3 * 8)
    parts = hdf5.open_source(Location(path=str(path))).partitions
    assert [(part.start, part.stop) for part in parts] == [(0, 4), (4, 8), (8, 10)]
    assert [batch.num_rows for batch in hdf5.read(parts[0])] == [3, 1]
    assert table_of(Location(path=str(path)))["x"] == np.arange(20).reshape(10, 2).tolist()


def bad(directory: Path, case: str) -> Location:
    """A source with something wrong."""
    good = write(directory / "a.h5", **SETS)
    listed = directory / "list.txt"
    match case:
        case "cut short":
            good.write_bytes(good.read_bytes()[:1000])
        case "no such set":
            return Location(path=str(good), columns=("data", "lable"))
        case "rows":
            write(good, a=np.zeros((3, 1)), b=np.zeros((4, 1)))
        case "words":
            write(good, a=np.array([b"x", b"y"]))
        case "unlike":
            write(directory / "b.h5", **SETS | {"data": np.zeros((5, 2))})
            listed.write_text("a.h5\nb.h5\n")
            return Location(path=str(listed), columns=("data",))
        case "missing file":
            listed.write_text("a.h5\nnone.h5\n")
            return Location(path=str(listed))
        case "no list":
            listed.write_text("this is prose\n")
            return Location(path=str(listed))
        case "empty list":
            listed.write_text("\n")
            return Location(path=str(listed))
        case "nothing":
            return Location(path=str(directory / "none.h5"))
    return Location(path=str(good))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cut short", r"a\.h5: it cannot be read as HDF5: .*; give a whole file"),
        ("no such set", r"a\.h5: there is no data set 'lable' whose first axis counts rows; there are data, flag"),
        ("rows", r"a\.h5: the data sets have different numbers of rows \(a 3, b 4\); give files of as many"),
        ("words", r"a\.h5: data set 'a' holds .*; it must hold numbers: leave it out or convert it"),
        (
            "unlike",
            r"b\.h5: data set 'data' holds float32 of shape \(2,\) a row, and that of .*a\.h5 float32",
        ),
        ("missing file", r"list\.txt: line 2 names .*none\.h5, which is no file; .*each line must name one"),
        ("no list", r"list\.txt: line 1 names .*this is prose, which is no file"),
        ("empty list", r"list\.txt: the list names no file"),
        ("nothing", r"none\.h5: no such file, directory or glob match"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, case: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hdf5.open_source(bad(tmp_path, case))


def test_whole_numbers_that_would_turn_negative_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", a=np.array([1, 2**63], np.uint64))
    with pytest.raises(DataError, match=r"a\.h5: data set 'a' holds uint64; whole numbers must fit int64: convert"):
        hdf5.open_source(Location(path=str(path)))


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", x=np.zeros((5, 2)))
    (part,) = hdf5.open_source(Location(path=str(path))).partitions
    write(path, x=np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"data set 'x' has lost rows; files must stay as they are"):
        list(hdf5.read(part))
    path.unlink()
    with pytest.raises(DataError, match=r"it cannot be read as HDF5"):
        list(hdf5.read(part))


def test_an_object_store_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"HDF5 files are read from local and shared disks; .*convert them to"):
        list(hdf5.read(hdf5.Hdf5Partition(path="s3://bucket/a.h5", columns=(), start=0, stop=1)))
