"""LMDB databases of Datum records: what was written is read, what is damaged is named, what is written is whole."""

import os
import pickle
import re
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.fs as arrow_fs
import pytest

from opened import opened, partitions
from sparknet.data.export import lmdb_writer
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.columns import ENCODED_IMAGE, Column
from sparknet.data.sources import lmdb as lmdb_source
from sparknet.data.sources import registry
from sparknet.data.sources.datum import parse, write
from sparknet.data.sources.files import Location
from sparknet.data.sources.lmdb import LmdbPartition, Records, read
from sparknet.data.sources.lmdb_pages import Tree
from sparknet.data.storage import place as storage
from sparknet.data.storage.place import LOCAL, Storage
from sparknet.errors import DataError

SHAPE = (3, 5, 4)
PAGE = 4096


def pixels(row, shape=SHAPE):
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def datum(row, **changes):
    return write(**{"shape": SHAPE, "data": pixels(row).tobytes(), "label": row % 10, "encoded": False} | changes)


def database(directory, values, name=""):
    with DatabaseWriter(directory) as writer:
        for value in values:
            writer.append(value, name)
    return directory


def units(path, at=LOCAL):
    return partitions(lmdb_source, path, storage=at)


def files(path, at=LOCAL):
    return opened(lmdb_source, path, storage=at).files


def describe(path, at=LOCAL):
    return opened(lmdb_source, path, storage=at).schema


def rows_of(path, at=LOCAL):
    """All rows of all units as dictionaries, and the units."""
    found = units(path, at)
    batches = [batch for unit in found for batch in read(unit, at)]
    for batch in batches:
        batch.validate(full=True)
    return [row for batch in batches for row in batch.to_pylist()], found


def in_library(file):
    """Keys and values, as the library reads them."""
    with (
        lmdb.open(str(file), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        return list(transaction.cursor())


def in_pages(file, first_key=b"", stop_key=b""):
    """Keys and values, as this package reads them."""
    content = file.read_bytes()
    tree = Tree(lambda offset, size: content[offset : offset + size], size=len(content), where=str(file))
    return [
        (key, content[offset : offset + size])
        for leaf in tree.leaves(first_key, stop_key)
        for key, offset, size in zip(leaf.keys, leaf.offsets.tolist(), leaf.sizes.tolist(), strict=True)
    ]


# -- rows --


def test_pixels_come_out_as_they_were_written(tmp_path):
    rows, found = rows_of(database(tmp_path / "db", map(datum, range(50)), "cat.jpg"))
    assert [row["name"] for row in rows] == [f"{row:08d}_cat.jpg" for row in range(50)]
    assert [row["image"] for row in rows] == [pixels(row).tobytes() for row in range(50)]
    assert [row["label"] for row in rows] == [row % 10 for row in range(50)]
    assert {row["error"] for row in rows} == {None}
    assert len(found) == 1, "a small database is one unit"
    assert describe(tmp_path / "db").input == Column(name="image", dtype="uint8", shape=SHAPE)


def test_batches_have_the_columns_of_named_rows(tmp_path):
    path = str(database(tmp_path / "db", [datum(0)]))
    (batch,) = read(units(path, LOCAL)[0], LOCAL)
    expected = {"name": pa.string(), "image": pa.binary(), "label": pa.int64(), "error": pa.string()}
    assert dict(zip(batch.schema.names, batch.schema.types, strict=True)) == expected


def test_float_data_come_out_as_lists(tmp_path):
    values = np.random.default_rng(0).normal(size=(9, 60)).astype(np.float32)
    path = database(tmp_path / "db", [write(shape=SHAPE, label=-3, float_data=row) for row in values])
    rows, _ = rows_of(path)
    np.testing.assert_array_equal(np.array([row["image"] for row in rows], np.float32), values)
    assert {row["label"] for row in rows} == {-3}
    assert describe(path).input == Column(name="image", dtype="float32", shape=SHAPE)
    (batch,) = read(units(path)[0], LOCAL)
    assert batch.schema.field("image").type == pa.list_(pa.float32())


def test_encoded_images_come_out_as_files_of_any_size(tmp_path):
    images = [b"\xff\xd8\xff" + bytes(row) for row in (5, 1, 4000)]
    path = database(tmp_path / "db", [write(data=image, label=1, encoded=True) for image in images])
    rows, _ = rows_of(path)
    assert [row["image"] for row in rows] == images
    assert describe(path).input == ENCODED_IMAGE


def test_where_a_record_has_both_caffe_takes_the_bytes(tmp_path):
    both = datum(0, float_data=np.zeros(60, np.float32))
    rows, _ = rows_of(database(tmp_path / "db", [both]))
    assert rows[0]["image"] == pixels(0).tobytes()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (datum(7)[:-9], r"offset 7: a field of 60 bytes, and the record ends after 55"),
        (b"", r"it has 0 bytes of data; a record has 1 to "),
        (datum(7, data=bytes(59)), r"shape \(3, 5, 4\) with 59 values; the first record has shape \(3, 5, 4\)"),
        (datum(7, shape=(3, 4, 5)), r"shape \(3, 4, 5\) with 60 values"),
        (datum(7, shape=(-3, -5, 4)), r"shape \(-3, -5, 4\)"),
        (datum(7, encoded=True), r"an encoded image among pixels"),
        (write(shape=SHAPE, float_data=np.zeros(60, np.float32)), r"it has 0 bytes of data"),
    ],
    ids=["cut", "empty", "short", "turned", "negative", "encoded", "floats"],
)
def test_a_damaged_record_is_a_row_with_an_error(tmp_path, bad, words):
    path = database(tmp_path / "db", [*map(datum, range(7)), bad, *map(datum, range(8, 20))])
    rows, _ = rows_of(path)
    assert [row["name"] for row in rows if row["error"]] == ["00000007"]
    assert (rows[7]["image"], rows[7]["label"]) == (None, None)
    assert rows[7]["error"].startswith(f"{path / 'data.mdb'}: record 7 (key '00000007'): ")
    assert [row["image"] for row in rows if not row["error"]] == [
        pixels(row).tobytes() for row in range(20) if row != 7
    ]
    assert re.search(words, rows[7]["error"]), rows[7]["error"]


def test_records_of_another_kind_among_floats_and_encoded_images(tmp_path):
    floats = write(shape=SHAPE, float_data=np.ones(60, np.float32), label=1)
    rows, _ = rows_of(database(tmp_path / "floats", [floats, datum(1), floats]))
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "it has no float_data" in rows[1]["error"]
    assert rows[1]["image"] is None
    image = write(data=b"\xff\xd8", encoded=True)
    rows, _ = rows_of(database(tmp_path / "encoded", [image, datum(1), image]))
    assert "no encoded image as the first is" in rows[1]["error"]


def test_a_damaged_first_record_does_not_decide_the_kind(tmp_path):
    rows, _ = rows_of(database(tmp_path / "db", [b"\x00", datum(1), datum(2)]))
    assert [row["error"] is None for row in rows] == [False, True, True]


def test_other_values_than_datum_are_refused(tmp_path):
    path = database(tmp_path / "db", [b"\x00hello"] * 3)
    with pytest.raises(DataError, match=r"no Caffe Datum among the first records \(record '00000002': offset 0"):
        units(path)
    with pytest.raises(DataError, match="no Caffe Datum"):
        describe(path)


def test_batches_are_bounded(tmp_path):
    big = (3, 700, 700)
    values = [write(shape=big, data=pixels(row, big).tobytes(), label=row) for row in range(8)]
    found = units(database(tmp_path / "db", values))
    batches = [batch for unit in found for batch in read(unit, LOCAL)]
    assert max(batch.nbytes for batch in batches) < 6_000_000
    assert [label for batch in batches for label in batch.column("label").to_pylist()] == list(range(8))
    assert batches[-1].column("image")[-1].as_py() == pixels(7, big).tobytes()


def test_rows_outlive_the_reading(tmp_path):
    """Nothing in a batch views the file, which a task may remove."""
    path = database(tmp_path / "db", map(datum, range(5)))
    (batch,) = read(units(path)[0], LOCAL)
    (path / "data.mdb").write_bytes(bytes(PAGE * 4))
    assert batch.column("image")[3].as_py() == pixels(3).tobytes()


def test_the_format_lmdb_is_this_reader(tmp_path):
    where, form = Location(path=str(database(tmp_path / "db", map(datum, range(5))))), registry.FORMATS["lmdb"]
    source = form.reader.open_source(where)
    (unit,) = source.partitions
    (batch,) = form.reader.read(unit, LOCAL)
    assert form.names_rows
    assert batch.num_rows == 5
    assert source.schema.input.shape == SHAPE
    assert source.files == files(where.path)


# -- units --


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 1000])
def test_units_cover_each_record_once(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(lmdb_source, "_SMALLEST_PARTITION_BYTES", PAGE)
    path = database(tmp_path / "db", map(datum, range(rows)))
    read_rows, found = rows_of(path)
    assert [row["name"] for row in read_rows] == [f"{row:08d}" for row in range(rows)]
    assert [unit.first_row for unit in found] == [int(name) for name in (unit.first_key.decode() for unit in found)]
    assert [unit.stop_key for unit in found] == [*(unit.first_key for unit in found[1:]), b""]
    pages = (path / "data.mdb").stat().st_size // PAGE
    assert len(found) == min(4, pages, rows)
    assert max(unit.rows for unit in found) - min(unit.rows for unit in found) <= 1


def test_units_have_about_64_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 10 * PAGE)
    path = database(tmp_path / "db", [datum(row, shape=(1, 60, 60), data=bytes(3600)) for row in range(200)])
    found = units(path)
    assert 20 <= len(found) <= 23
    assert sum(unit.rows for unit in found) == 200


def test_units_travel_and_are_read_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_source, "_SMALLEST_PARTITION_BYTES", PAGE)
    path = database(tmp_path / "db", map(datum, range(100)))
    *_, last = pickle.loads(pickle.dumps(units(path)))
    (batch,) = read(last, LOCAL)
    assert batch.column("name").to_pylist() == [f"{row:08d}" for row in range(75, 100)]


def test_a_damaged_record_of_a_later_unit_has_its_number_in_the_database(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_source, "_SMALLEST_PARTITION_BYTES", PAGE)
    path = database(tmp_path / "db", [*map(datum, range(90)), b"\x00", *map(datum, range(91, 100))])
    rows, found = rows_of(path)
    assert len(found) == 4
    assert "record 90 (key '00000090'): offset 0" in rows[90]["error"]


def test_a_database_that_changed_since_it_was_listed_is_refused(tmp_path):
    path = database(tmp_path / "db", map(datum, range(10)))
    (unit,) = units(path)
    with pytest.raises(DataError, match=r"10 records from key '00000000' on; 11 are needed.*has changed"):
        list(read(replace(unit, rows=11), LOCAL))
    with pytest.raises(DataError, match=r"data.mdb: 10 records; 12 were there: the database has changed"):
        next(read(replace(unit, entries=12), LOCAL))
    with pytest.raises(DataError, match=r"0 records from key '1' on; some are needed.*has changed"):
        list(read(replace(unit, first_key=b"1", rows=None), LOCAL))


def test_two_units_of_one_database_are_read_at_once(tmp_path):
    """As threads of one local Spark process do."""
    path = database(tmp_path / "db", map(datum, range(10)))
    (unit,) = units(path)
    first, second = read(unit, LOCAL), read(unit, LOCAL)
    assert next(first).equals(next(second))
    with lmdb.open(str(path), readonly=True, lock=False):
        assert next(read(unit, LOCAL)).num_rows == 10


# -- which databases --


def test_a_path_means_databases_in_the_order_of_their_names(tmp_path):
    for part in (2, 0, 1):
        database(tmp_path / f"part-{part:05d}", [datum(part)])
    for path in (tmp_path, tmp_path / "part-*", tmp_path / "*" / "data.mdb", tmp_path / "part-0000[012]"):
        rows, _ = rows_of(path)
        assert [row["label"] for row in rows] == [0, 1, 2], path
        assert [Path(file.uri).parent.name[-1] for file in files(path)] == list("012")
    rows, _ = rows_of(tmp_path / "part-00001")
    assert [row["label"] for row in rows] == [1]
    rows, _ = rows_of((tmp_path / "part-00002" / "data.mdb").as_uri())
    assert [row["label"] for row in rows] == [2]


def test_files_of_any_name_in_one_directory(tmp_path):
    for part in (1, 0):
        shutil.move(database(tmp_path / "db", [datum(part)]) / "data.mdb", tmp_path / f"{part}.mdb")
        (tmp_path / "db").rmdir()
    assert [row["label"] for row in rows_of(tmp_path)[0]] == [0, 1]
    assert [row["label"] for row in rows_of(tmp_path / "*.mdb")[0]] == [0, 1]


@pytest.mark.parametrize("path", ["missing", "missing*", "."])
def test_nothing_there_is_refused(tmp_path, path):
    for action in (units, files, describe):
        with pytest.raises(DataError, match=r"no LMDB database; name a directory with data\.mdb"):
            action(tmp_path / path)


def test_databases_that_are_read_together_must_be_alike(tmp_path):
    database(tmp_path / "a", [datum(0)])
    database(tmp_path / "b", [write(data=b"\xff\xd8", encoded=True)])
    with pytest.raises(DataError, match=r"b/data.mdb: encoded .*a/data.mdb has pixels of shape \(3, 5, 4\)"):
        units(tmp_path)


# -- remote databases --


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A directory that `s3://` names; temporary files cannot be made."""
    root = tmp_path / "cloud"
    (root / "bucket").mkdir(parents=True)
    inside = arrow_fs.SubTreeFileSystem(str(root), arrow_fs.LocalFileSystem())
    monkeypatch.setattr(storage, "file_system", lambda uri, **_: (inside, uri.split("://", 1)[1]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    return root / "bucket"


@pytest.fixture
def taken(monkeypatch):
    """Offset and size of each request for bytes of a remote file."""
    found = []
    whole = storage.RemoteFile.take
    monkeypatch.setattr(
        storage.RemoteFile, "take", lambda self, at, size: found.append((at, size)) or whole(self, at, size)
    )
    return found


@pytest.fixture
def small_units(monkeypatch):
    """Remote databases are cut into units of a few pages."""
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 8 * PAGE)


def with_history(directory, seed, value):
    """Random keys, values of all sizes, deletions, many transactions; returns the live keys."""
    random = np.random.default_rng(seed)
    live: set[bytes] = set()
    with lmdb.open(str(directory), map_size=1 << 28, sync=False, lock=False) as environment:
        for _ in range(6):
            with environment.begin(write=True) as transaction:
                for _ in range(300):
                    if live and random.random() < 0.3:
                        transaction.delete(live.pop())
                    else:
                        key = random.bytes(int(random.choice([1, 8, 21, 200, 511])))
                        transaction.put(
                            key, value(random.bytes(int(random.choice([1, 10, 500, 2000, 5000, 70_000]))))
                        )
                        live.add(key)
        bytes_in_use = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    # pages at the end that the last transaction both took and freed were never written
    os.truncate(directory / "data.mdb", max(bytes_in_use, (directory / "data.mdb").stat().st_size))
    return live


def encoded(content):
    return write(data=content, label=len(content) % 7, encoded=True)


def test_remote_databases_are_read_without_a_copy(bucket):
    for part in range(2):
        database(bucket / "train" / f"part-{part}", map(datum, range(40 * part, 40 * part + 40)))
    for path in ("s3://bucket/train", "s3://bucket/train/part-*", "s3://bucket/train/part-?"):
        rows, found = rows_of(path, Storage(s3_endpoint="http://127.0.0.1:1"))
        assert [(unit.uri, unit.first_row, unit.rows) for unit in found] == [
            (f"s3://bucket/train/part-{part}/data.mdb", 0, 40) for part in range(2)
        ]
        assert [row["image"] for row in rows] == [pixels(row).tobytes() for row in range(80)]


@pytest.mark.parametrize("seed", range(4))
def test_a_remote_database_with_a_history_is_read_as_a_local_one(bucket, small_units, monkeypatch, seed):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 64 * PAGE)
    live = with_history(bucket, seed, encoded)
    rows, _ = rows_of(bucket)
    remote, found = rows_of("s3://bucket/data.mdb")
    assert remote == rows
    assert [row["error"] for row in rows] == [None] * len(live)
    assert len(found) > 30
    assert {unit.rows for unit in found} == {None}
    assert [unit.stop_key for unit in found] == [*(unit.first_key for unit in found[1:]), b""]
    assert found[0].first_key == b"" < min(unit.first_key for unit in found[1:])


def test_a_remote_unit_of_any_keys_is_read_alone(bucket, small_units):
    live = sorted(with_history(bucket, 9, encoded))
    (unit, *_), random = units("s3://bucket/data.mdb"), np.random.default_rng(0)
    for first, stop in np.sort(random.choice(len(live), (30, 2), replace=False)).tolist():
        part = replace(unit, first_key=live[first], stop_key=live[stop], rows=None)
        names = [name for batch in read(part, LOCAL) for name in batch.column("name").to_pylist()]
        assert names == [key.decode(errors="backslashreplace") for key in live[first:stop]]


@pytest.mark.parametrize(("rows", "fewest"), [(1, 1), (3, 2), (20, 8), (300, 99)])
def test_a_remote_database_of_few_pages_is_cut_between_rows(bucket, small_units, rows, fewest):
    """One leaf page, or few with large values: cutting between them would make units too large."""
    image = bytes(3 * 60 * 60)
    database(bucket / "db", [datum(row, shape=(3, 60, 60), data=image) for row in range(rows)])
    read_rows, found = rows_of("s3://bucket/db")
    assert [row["name"] for row in read_rows] == [f"{row:08d}" for row in range(rows)]
    assert len(found) >= fewest
    assert sum(unit.rows for unit in found) == rows
    assert max(unit.rows for unit in found) - min(unit.rows for unit in found) <= 1


def test_an_error_of_a_remote_database_counts_from_the_first_key_of_its_unit(bucket, small_units):
    database(bucket / "db", [*map(datum, range(890)), b"\x00", *map(datum, range(891, 1000))])
    rows, found = rows_of("s3://bucket/db")
    assert [row["name"] for row in rows if row["error"]] == ["00000890"]
    unit = max((unit for unit in found if unit.first_key <= b"00000890"), key=lambda unit: unit.first_key)
    first = unit.first_key.decode()
    assert 0 < int(first) <= 890
    assert rows[890]["error"].startswith(
        f"s3://bucket/db/data.mdb: record {890 - int(first)} from key {first!r} on (key '00000890'): offset 0"
    )


def test_describing_a_remote_database_reads_a_few_pages(bucket, taken):
    database(bucket / "db", [datum(row, shape=(1, 300, 300), data=bytes(90_000)) for row in range(300)])
    assert describe("s3://bucket/db").input.shape == (1, 300, 300)
    assert 90_000 < sum(size for _, size in taken) < 90_000 + 10 * PAGE


def test_a_remote_database_is_cut_by_its_branch_pages_alone(bucket, taken, monkeypatch):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 64 * PAGE)
    file = database(bucket / "db", map(datum, range(30_000)), "x" * 200) / "data.mdb"
    content = file.read_bytes()
    found = units("s3://bucket/db")
    assert len(found) == -(-len(content) // (64 * PAGE))
    pages = [content[at + 10] for at, size in taken if size == PAGE]
    assert pages.count(2) == 1, "the first record's leaf page"
    assert len(pages) < len(found)
    assert len(set(taken)) == len(taken)
    sizes = [sum(batch.num_rows for batch in read(unit, LOCAL)) for unit in found]
    assert sum(sizes) == 30_000
    assert max(sizes) < 2.1 * min(sizes)


def test_a_unit_is_read_in_large_pieces_and_no_byte_twice(bucket, taken, monkeypatch):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 30 << 20)
    values = [datum(row, shape=(1, 300, 300), data=bytes(90_000)) for row in range(900)]
    file = database(bucket / "db", values) / "data.mdb"
    found = units("s3://bucket/db")
    assert len(found) == 3
    taken.clear()
    assert sum(batch.num_rows for unit in found for batch in read(unit, LOCAL)) == 900
    assert sum(size for _, size in taken) < 1.3 * file.stat().st_size
    assert sum(size < 8 << 20 for _, size in taken) <= 7 * len(found)


def test_jumps_through_a_database_cost_little(bucket, taken):
    """Written in a random order: what lies beside a record belongs to others."""
    order = np.random.default_rng(0).permutation(2000)
    (bucket / "db").mkdir()
    with lmdb.open(str(bucket / "db"), map_size=1 << 28, sync=False, lock=False) as environment:
        for row in order.tolist():
            with environment.begin(write=True) as transaction:
                transaction.put(b"%08d" % row, datum(row, shape=(1, 100, 100), data=bytes(10_000)))
    (unit,) = units("s3://bucket/db")
    part = replace(unit, first_key=b"00000700", stop_key=b"00000800", first_row=700, rows=100)
    taken.clear()
    assert sum(batch.num_rows for batch in read(part, LOCAL)) == 100
    assert len(taken) <= 120
    assert max(size for _, size in taken) <= 8 << 20


def test_a_record_larger_than_a_piece_is_read_whole(bucket, monkeypatch, taken):
    monkeypatch.setattr(lmdb_source, "_PIECE_BYTES", 30_000)
    contents = [np.random.default_rng(row).bytes(size) for row, size in enumerate((10, 100_000, 29_000, 64_000, 1))]
    database(bucket / "db", map(encoded, contents))
    rows, _ = rows_of("s3://bucket/db")
    assert [row["image"] for row in rows] == contents
    assert max(size for _, size in taken) > 64_000


def test_a_remote_database_that_is_missing_or_truncated_is_refused(bucket):
    with pytest.raises(DataError, match="s3://bucket/none: no LMDB database"):
        units("s3://bucket/none")
    file = database(bucket / "db", map(datum, range(200))) / "data.mdb"
    (unit,) = units("s3://bucket/db")
    os.truncate(file, file.stat().st_size - 1)
    for action in (lambda: units("s3://bucket/db"), lambda: list(read(unit, LOCAL))):
        with pytest.raises(DataError, match=r"s3://bucket/db/data\.mdb: truncated"):
            action()
    file.write_bytes(b"")
    with pytest.raises(DataError, match="ends within its first two pages"):
        units("s3://bucket/db")
    file.unlink()
    with pytest.raises(DataError, match=r"s3://bucket/db/data\.mdb: "):
        list(read(unit, LOCAL))


# -- damaged files --


def test_a_file_that_is_no_database_is_refused(tmp_path):
    file = tmp_path / "data.mdb"
    for content, words in (
        (b"", "no LMDB file: it is empty|ends within its first two pages"),
        (b"x" * 100, "ends within its first two pages"),
        (b"x" * 10_000, "does not begin with LMDB's meta pages"),
        (bytes(10_000), "does not begin with LMDB's meta pages"),
    ):
        file.write_bytes(content)
        form = Records(dtype="uint8", shape=(), encoded=True)
        unit = LmdbPartition(uri=str(file), form=form, entries=1)
        for action in (lambda: units(tmp_path), lambda unit=unit: list(read(unit, LOCAL))):
            with pytest.raises(DataError, match=words):
                action()


@pytest.mark.parametrize("cut", [1, PAGE, 3 * PAGE])
def test_a_truncated_file_is_refused_with_its_sizes(tmp_path, cut):
    file = database(tmp_path / "db", map(datum, range(300))) / "data.mdb"
    size = file.stat().st_size
    os.truncate(file, size - cut)
    with pytest.raises(DataError, match=rf"data.mdb: truncated: {size - cut} bytes; its \d+ pages .* take {size}"):
        units(tmp_path / "db")


def test_an_empty_database_is_refused(tmp_path):
    lmdb.open(str(tmp_path / "db")).close()
    with pytest.raises(DataError, match=r"no Caffe Datum among the first records \(it is empty"):
        units(tmp_path / "db")


def test_databases_of_other_kinds_are_refused(tmp_path):
    with lmdb.open(str(tmp_path / "named"), max_dbs=2) as environment:
        environment.open_db(b"inside")
    with pytest.raises(DataError, match="databases within the database"):
        units(tmp_path / "named")


def patched(file, at, form, *numbers):
    content = bytearray(file.read_bytes())
    struct.pack_into(form, content, at, *numbers)
    file.write_bytes(content)


META = (0, PAGE)


@pytest.mark.parametrize(
    ("places", "form", "number", "words"),
    [
        ([at + 20 for at in META], "<I", 2, "LMDB data version 2"),
        ([at + 92 for at in META], "<H", 4, r"flags 0x4 \(duplicate"),
        ([at + 40 for at in META], "<I", 3, "damaged meta page: pages of 3 bytes"),
        ([at + 94 for at in META], "<H", 200, "200 levels"),
        ([at + 128 for at in META], "<Q", 10**6, "damaged page 1000000: only pages 2 to"),
        ([at + 128 for at in META], "<Q", 0, "damaged page 0: only pages 2 to"),
        ([at + 120 for at in META], "<Q", 5, "more keys than the 5 of the meta page"),
        ([at + 120 for at in META], "<Q", 500, "300 keys in all leaf pages, 500 by the meta page"),
        ([at + 94 for at in META], "<H", 0, "says it is page"),
        ([at + 94 for at in META], "<H", 1, "says it is page"),
        ([at + 94 for at in META], "<H", 3, "says it is page"),
    ],
)
def test_a_damaged_meta_page_is_named(tmp_path, places, form, number, words):
    file = database(tmp_path / "db", map(datum, range(300))) / "data.mdb"
    for place in places:
        patched(file, place, form, number)
    with pytest.raises(DataError, match=words):
        units(tmp_path / "db")


def leaf_and_branch(file, *, last=False):
    """Numbers of the first leaf page (or the last) and of the root, the only branch page."""
    content = file.read_bytes()
    flags = [struct.unpack_from("<H", content, at + 10)[0] for at in range(0, len(content), PAGE)]
    leaves = [number for number, flag in enumerate(flags) if flag == 2]
    return leaves[-1 if last else 0], flags.index(1)


@pytest.mark.parametrize(
    ("page", "at", "form", "number", "words"),
    [
        ("leaf", 0, "<Q", 99, "says it is page 99"),
        ("leaf", 10, "<H", 4, "flags 0x4"),
        ("leaf", 12, "<H", 16, "keys end at 16"),
        ("leaf", 12, "<H", 5000, "keys end at 5000"),
        ("leaf", 14, "<H", 60000, "nodes begin at 60000"),
        ("leaf", 16, "<H", 65534, "a node lies outside"),
        ("leaf", 16, "<H", 3, "a node lies outside"),
        ("leaf", "key", "<H", 60000, "a key goes beyond its end"),
        ("leaf", "value", "<H", 60000, "a value goes beyond its end"),
        ("leaf", "flags", "<H", 1, "a value lies outside the pages in use"),
        ("leaf", "flags", "<H", 4, "duplicate keys"),
        ("leaf", "name", "<B", 255, "not in order"),
        ("branch", "value", "<I", 10**6, r"damaged page 1000000: only pages 2 to"),
        ("branch", "value", "<I", "itself", "says it is page"),
        ("branch", 12, "<H", 18, "a branch page with 1 children"),
    ],
)
def test_a_damaged_page_is_named_and_kills_nothing(tmp_path, page, at, form, number, words):
    file = database(tmp_path / "db", map(datum, range(300))) / "data.mdb"
    numbers = dict(zip(("leaf", "branch"), leaf_and_branch(file), strict=True))
    begin = numbers[page] * PAGE
    if isinstance(at, str):
        (node,) = struct.unpack_from("<H", file.read_bytes(), begin + 16)
        at = node + {"value": 0, "flags": 4, "key": 6, "name": 8}[at]
    patched(file, begin + at, form, numbers["branch"] if number == "itself" else number)
    with pytest.raises(DataError, match=words):
        units(tmp_path / "db")


@pytest.mark.parametrize(
    ("page", "at", "form", "number", "words"),
    [
        ("branch", 0, "<Q", 99, r"db/data.mdb: damaged page \d+: it says it is page 99"),
        ("branch", 12, "<H", 18, r"damaged page \d+: a branch page with 1 children"),
        ("leaf", 0, "<Q", 99, r"db/data.mdb: damaged page \d+: it says it is page 99"),
        ("leaf", 12, "<H", 16, r"damaged page \d+: keys end at 16"),
    ],
)
def test_a_damaged_page_of_a_remote_database_is_named(bucket, small_units, page, at, form, number, words):
    file = database(bucket / "db", map(datum, range(3000))) / "data.mdb"
    places = dict(zip(("leaf", "branch"), leaf_and_branch(file, last=True), strict=True))
    patched(file, places[page] * PAGE + at, form, number)
    with pytest.raises(DataError, match=words) as caught:
        rows_of("s3://bucket/db")
    assert f"page {places[page]}:" in str(caught.value)


def test_children_of_a_remote_database_in_another_order_are_refused(bucket, small_units):
    """When it is cut, and when only a leaf page shows it."""
    file = database(bucket / "db", map(datum, range(3000))) / "data.mdb"
    whole, begin = file.read_bytes(), leaf_and_branch(file)[1] * PAGE
    _, first, second, third = (begin + at for at in struct.unpack_from("<4H", whole, begin + 16))
    keys, pages = bytearray(whole), bytearray(whole)
    keys[second + 8 : second + 16], keys[third + 8 : third + 16] = (
        whole[third + 8 : third + 16],
        whole[second + 8 : second + 16],
    )
    pages[first : first + 4], pages[second : second + 4] = whole[second : second + 4], whole[first : first + 4]
    for content in (keys, pages):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged page .*keys"):
            rows_of("s3://bucket/db")


def test_a_branch_page_that_leads_back_to_itself_does_not_go_on_for_ever(tmp_path):
    file = database(tmp_path / "db", map(datum, range(300))) / "data.mdb"
    newest = max(META, key=lambda at: struct.unpack_from("<Q", file.read_bytes(), at + 144)[0])  # by transaction
    root = struct.unpack_from("<Q", file.read_bytes(), newest + 128)[0]
    first = struct.unpack_from("<H", file.read_bytes(), root * PAGE + 16)[0]
    patched(file, root * PAGE + first, "<H", root)  # the low part of the first child's number
    for at in META:
        patched(file, at + 94, "<H", 0)
    with pytest.raises(DataError, match="says it is page"):
        units(tmp_path / "db")


def test_children_in_another_order_are_refused(tmp_path):
    """Each page is sound, the tree is not: nothing is read twice or left out in silence."""
    file = database(tmp_path / "db", map(datum, range(300))) / "data.mdb"
    begin, content = leaf_and_branch(file)[1] * PAGE, bytearray(file.read_bytes())
    _, first, second = (begin + at for at in struct.unpack_from("<3H", content, begin + 16))
    swapped = content[second : second + 4], content[first : first + 4]
    content[first : first + 4], content[second : second + 4] = swapped
    file.write_bytes(content)
    with pytest.raises(DataError, match="keys"):
        units(tmp_path / "db")


@pytest.mark.parametrize("seed", range(4))
def test_the_pages_are_read_as_the_library_reads_them(tmp_path, seed):
    live = with_history(tmp_path, seed, bytes)
    expected = in_library(tmp_path / "data.mdb")
    assert {key for key, _ in expected} == live
    assert in_pages(tmp_path / "data.mdb") == expected
    for key in sorted(live)[:: max(1, len(live) // 20)]:
        found = in_pages(tmp_path / "data.mdb", key)
        assert found == expected[len(expected) - len(found) :]
        assert found[0][0] <= key <= found[-1][0]


@pytest.mark.parametrize("seed", range(2))
def test_leaf_pages_end_where_keys_are_to_stop(tmp_path, seed):
    live = sorted(with_history(tmp_path, seed, bytes))
    everything = in_pages(tmp_path / "data.mdb")
    for first, stop in ((0, 1), (0, 99), (50, 51), (50, 200), (len(live) - 2, len(live) - 1)):
        found = in_pages(tmp_path / "data.mdb", live[first], live[stop])
        start = everything.index(found[0])
        assert found == everything[start : start + len(found)]
        assert found[0][0] <= live[first]
        assert live[stop - 1] <= found[-1][0]
        following = everything[start + len(found) :]
        assert len(found) < stop - first + 200, "one leaf page more at either end, at most"
        assert all(key >= live[stop] for key, _ in following)


# -- writing --


def test_the_library_reads_what_is_written(tmp_path):
    values = [datum(row) for row in range(3000)]
    path = database(tmp_path / "a" / "db", values, "n01440764_18.JPEG")
    assert in_library(path / "data.mdb") == [
        (b"%08d_n01440764_18.JPEG" % row, value) for row, value in enumerate(values)
    ]
    with lmdb.open(str(path)) as environment:  # as Caffe does: default flags
        assert environment.stat()["entries"] == 3000


def test_the_file_grows_with_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_writer, "_COMMIT_BYTES", 1 << 20)
    image = bytes(3 * 100 * 100)
    values = [datum(row, shape=(3, 100, 100), data=image) for row in range(400)]
    path = database(tmp_path / "db", values)
    assert [file.name for file in path.iterdir()] == ["data.mdb"]
    facts = (path / "data.mdb").stat()
    assert facts.st_size < 1.15 * 400 * len(image)
    assert facts.st_blocks * 512 <= facts.st_size + PAGE
    (map_bytes,) = struct.unpack_from("<Q", (path / "data.mdb").read_bytes(), 32)
    assert map_bytes < 4 * facts.st_size
    assert in_library(path / "data.mdb") == [(b"%08d" % row, value) for row, value in enumerate(values)]


@pytest.mark.parametrize("size", [0, 1, 500, 1990, 2030, 2100, 4000, 4096, 5000, 100_000])
def test_the_map_is_large_enough_for_records_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr(lmdb_writer, "_COMMIT_BYTES", 3 << 20)
    count = 1000 if size < 5000 else 200
    assert len(in_pages(database(tmp_path / "db", [bytes(size)] * count, "x" * 400) / "data.mdb")) == count


def test_nothing_is_left_of_a_database_that_was_not_finished(tmp_path):
    def broken():
        yield datum(0)
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        database(tmp_path / "db", broken())
    with pytest.raises(DataError, match="no records were written"), DatabaseWriter(tmp_path / "db"):
        pass
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path):
    path = database(tmp_path / "db", [datum(0)])
    with pytest.raises(DataError, match="there is something already"):
        DatabaseWriter(path)
    (tmp_path / "empty").mkdir()
    assert len(rows_of(database(tmp_path / "empty", [datum(0)]))[0]) == 1


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    class Full:
        def info(self):
            raise lmdb.DiskError("No space left on device")

        def close(self):
            pass

    def fill():
        with DatabaseWriter(tmp_path / "db") as writer:
            writer.append(datum(0))
            writer._environment.close()
            monkeypatch.setattr(writer, "_environment", Full())

    with pytest.raises(DataError, match=r"db: cannot be written: No space left.*free space"):
        fill()
    assert not list(tmp_path.iterdir())


def test_keys_stay_in_order_and_within_lmdb(tmp_path, monkeypatch):
    with DatabaseWriter(tmp_path / "db") as writer:
        writer.append(datum(0), "x" * 502)
        with pytest.raises(DataError, match="has 512 bytes; LMDB takes at most 511"):
            writer.append(datum(1), "x" * 503)
        monkeypatch.setattr(lmdb_writer, "_MOST_RECORDS", 1)
        with pytest.raises(DataError, match=r"more than 1 records; keys have eight digits.*several databases"):
            writer.append(datum(1))
    assert len(in_pages(tmp_path / "db" / "data.mdb")) == 1


def test_records_written_are_parsed_alike(tmp_path):
    path = database(tmp_path / "db", map(datum, range(3)))
    assert [parse(value).label for _, value in in_pages(path / "data.mdb")] == [0, 1, 2]
