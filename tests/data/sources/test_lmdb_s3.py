"""LMDB databases in an object store: cut by few small requests, read by few large ones, and faults made good."""

import lmdb
import numpy as np
import pyarrow as pa
import pytest

from opened import partitions
from s3_server import reach, s3_server
from sparknet.data.sources import lmdb as lmdb_source
from sparknet.data.sources.datum import write
from sparknet.data.storage import retry
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError

MB, PAGE = 1 << 20, 4096
BUCKET = "databases"
ROWS = {"large": 500, "small": 20_000, "leaf": 3}
POOL = np.random.default_rng(0).bytes(2 * MB)


def value(row, shape):
    size = int(np.prod(shape))
    start = row * 997 % (len(POOL) - size)
    return write(shape=shape, data=POOL[start : start + size], label=row % 10, encoded=False)


def database(directory, rows, shape):
    """As Caffe's convert_imageset writes it: in the order of the keys, a transaction for each 1000 records."""
    directory.mkdir()
    with lmdb.open(str(directory), map_size=1 << 30, sync=False, lock=False) as environment:
        for begin in range(0, rows, 1000):
            with environment.begin(write=True) as transaction:
                for row in range(begin, min(begin + 1000, rows)):
                    transaction.put(b"%08d_n01440764/%d.JPEG" % (row, row), value(row, shape))
    return directory


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    root = tmp_path_factory.mktemp("databases")
    database(root / "large", ROWS["large"], (3, 256, 256))
    database(root / "small", ROWS["small"], (3, 32, 32))
    database(root / "leaf", ROWS["leaf"], (1, 4, 4))
    return root


@pytest.fixture(scope="module")
def running(local):
    with s3_server(BUCKET) as server:
        for file in local.glob("*/data.mdb"):
            server.client().upload_file(str(file), BUCKET, f"{file.parent.name}/data.mdb")
        yield server


@pytest.fixture
def server(running, monkeypatch):
    reach(running, monkeypatch)
    running.clear()
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    yield running
    running.clear()


def rows_of(units):
    """All rows in order, as one table."""
    return pa.Table.from_batches([batch for unit in units for batch in lmdb_source.read(unit, LOCAL)])


def sizes(server):
    return [last + 1 - first for first, last in server.ranges("data.mdb")]


@pytest.mark.parametrize("name", ["large", "small"])
def test_each_byte_is_read_about_once_in_large_requests(server, local, monkeypatch, name):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 32 * MB)
    size = (local / name / "data.mdb").stat().st_size
    units = partitions(lmdb_source, f"s3://{BUCKET}/{name}")
    assert len(units) == -(-size // (32 * MB))
    driver = sizes(server)
    assert sum(driver) < MB / 2
    assert len(driver) <= len(units) + 6
    asked, rows = list[int](), 0
    for unit in units:
        server.clear()
        rows += sum(batch.num_rows for batch in lmdb_source.read(unit, LOCAL))
        asked += (mine := sizes(server))
        assert unit == units[-1] or sum(part == 8 * MB for part in mine) >= 3
        assert sum(part < 8 * MB for part in mine) <= 12
        assert max(mine) <= 8 * MB
    assert rows == ROWS[name]
    assert sum(asked) < 1.3 * size


@pytest.mark.parametrize("name", ["large", "small", "leaf"])
def test_rows_are_those_of_the_local_database(server, local, monkeypatch, name):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 32 * MB)
    remote = rows_of(partitions(lmdb_source, f"s3://{BUCKET}/{name}"))
    assert remote.equals(rows_of(partitions(lmdb_source, str(local / name))))
    assert remote.num_rows == ROWS[name]
    assert remote.column("error").null_count == ROWS[name]


def test_broken_answers_are_made_good(server, local, monkeypatch):
    monkeypatch.setattr(lmdb_source, "_PARTITION_BYTES", 32 * MB)
    for kind in ("500", "slow_down", "cut"):
        server.inject(kind, probability=0.1, seed=len(kind), method="GET", part="data.mdb")
    units = partitions(lmdb_source, f"s3://{BUCKET}/large")
    rows = rows_of(units)
    assert set(server.injected) == {"500", "slow_down", "cut"}
    assert rows.equals(rows_of(partitions(lmdb_source, str(local / "large"))))


def test_a_database_that_was_replaced_after_it_was_cut_is_refused(server, local):
    (unit,) = partitions(lmdb_source, f"s3://{BUCKET}/leaf")
    copy = server.client().get_object(Bucket=BUCKET, Key="leaf/data.mdb")["Body"].read()
    try:
        server.client().upload_file(str(local / "small" / "data.mdb"), BUCKET, "leaf/data.mdb")
        with pytest.raises(DataError, match=rf"s3://{BUCKET}/leaf/data.mdb: 20000 records; 3 were there"):
            rows_of([unit])
    finally:
        server.client().put_object(Bucket=BUCKET, Key="leaf/data.mdb", Body=copy)


def test_a_damaged_page_is_named(server, local):
    """One that the driver does not look at: the task that meets it names it."""
    content = bytearray((local / "small" / "data.mdb").read_bytes())
    leaves = [at for at in range(0, len(content), PAGE) if content[at + 10 : at + 12] == b"\x02\x00"]
    damaged = [at for at in leaves if b"00015000_" in content[at : at + PAGE]]  # also such as are no longer in use
    for at in damaged:
        content[at + 12] = 15
    server.client().put_object(Bucket=BUCKET, Key="damaged/data.mdb", Body=bytes(content))
    units = partitions(lmdb_source, f"s3://{BUCKET}/damaged")
    with pytest.raises(
        DataError, match=rf"s3://{BUCKET}/damaged/data.mdb: damaged page \d+: keys end at"
    ) as caught:
        rows_of(units)
    assert any(f"damaged page {at // PAGE}:" in str(caught.value) for at in damaged)


def test_a_broken_network_is_named_in_the_end(server, monkeypatch):
    (unit,) = partitions(lmdb_source, f"s3://{BUCKET}/leaf")
    server.inject("500", method="GET", part="data.mdb")
    with pytest.raises(DataError, match=rf"s3://{BUCKET}/leaf/data.mdb: cannot be read"):
        rows_of([unit])
    with pytest.raises(DataError, match=rf"s3://{BUCKET}/leaf/data.mdb: cannot be read"):
        partitions(lmdb_source, f"s3://{BUCKET}/leaf")
