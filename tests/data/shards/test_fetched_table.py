"""Tables over shards that a host fetches: the rows of those in place, from few copies, ahead of time."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from formats import columns, make_table
from s3_server import reach, s3_server
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor
from sparknet.data.loading.shard_order import ShardOrder
from sparknet.data.shards import shard_files
from sparknet.data.shards.delivery import Uploads, temporary_directory
from sparknet.data.shards.host_cache import CacheFull, CachePlace
from sparknet.data.shards.shard_files import Copies, Reach, StoredFiles, files_of
from sparknet.data.shards.shard_table import ShardTable
from sparknet.data.storage import retry
from sparknet.data.storage.place import LOCAL, Storage
from sparknet.errors import ClusterError, DataError

SHAPE = (2, 3)
ROWS = [40] * 12


class Counted:
    """Files of a directory, and which were asked for."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.asked = []
        self.changed = threading.Condition()

    def pieces(self, name):
        with self.changed:
            self.asked.append(name)
            self.changed.notify_all()
        yield (self.directory / name).read_bytes()


@pytest.fixture
def made(tmp_path):
    """Shards, a table of them in place, and its rows."""
    (tmp_path / "store").mkdir()
    table, images, labels = make_table(tmp_path / "store", ROWS, shape=SHAPE)
    return table, images, labels


def fetched(tmp_path, made, source=None, *, shards=12, host="host"):
    """A table over copies, with room for so many shards."""
    size = made[0]._shards[0].bytes
    cache = CachePlace(directory=str(tmp_path / host), gigabytes=(shards + 0.5) * size / 1e9)
    source = source or Counted(tmp_path / "store")
    files = Copies(source, cache, where=str(tmp_path / "store"))
    return ShardTable(files, made[0]._shards, columns(SHAPE)), source


def test_rows_are_those_in_place_and_are_fetched_once(tmp_path, made):
    table, images, labels = made
    rows = np.random.default_rng(0).permutation(len(table))
    copied, source = fetched(tmp_path, made)
    with copied:
        for _ in range(2):
            found = copied.take(rows)
            np.testing.assert_array_equal(found["image"], images[rows])
            np.testing.assert_array_equal(found["label"], labels[rows])
        np.testing.assert_array_equal(copied.slice(30, 130)["image"], images[30:130])
    assert sorted(source.asked) == sorted(shard.path for shard in table._shards)
    other, more = fetched(tmp_path, made)
    with other:
        np.testing.assert_array_equal(other.slice(0, len(table))["image"], images)
    assert more.asked == []  # of the host's other processes, too


def test_consecutive_rows_need_few_shards_at_a_time(tmp_path, made):
    table, images, _ = made
    copied, source = fetched(tmp_path, made, shards=5)
    with copied:
        for at in range(0, len(table), 60):
            np.testing.assert_array_equal(copied.slice(at, at + 60)["image"], images[at : at + 60])
            assert len(copied._opened) <= 5
    assert len(source.asked) == len(ROWS)


def test_views_that_were_given_away_keep_what_they_show(tmp_path, made):
    table, images, _ = made
    copied, _ = fetched(tmp_path, made, shards=5)
    with copied:
        first = copied.slice(0, 40)["image"]
        copied.slice(40, len(table))
        np.testing.assert_array_equal(first, images[:40])


def test_what_is_expected_comes_before_it_is_read(tmp_path, made):
    copied, source = fetched(tmp_path, made)
    names = [shard.path for shard in made[0]._shards]
    with copied:
        copied.expect([(0, 40), (80, 120), (85, 90)])
        with source.changed:
            assert source.changed.wait_for(lambda: len(source.asked) == 2, timeout=30)
        assert sorted(source.asked) == [names[0], names[2]]
        copied.take(np.arange(40))
        assert len(source.asked) == 2
        copied.expect([(80, 120)])
        assert list(copied._opened) == []  # shard 0 is let go of


def test_training_over_a_cache_that_holds_half(tmp_path, made):
    _, images, labels = made
    for slot in range(2):
        order = ShardOrder(3, ROWS, 2, slot, window_shards=1)
        copied, source = fetched(tmp_path, made, shards=6, host=f"host{slot}")
        with copied, Loader(copied, order, batch_size=24, cursor=Cursor(), preprocess=None) as loader:
            for epoch in range(2):
                seen = [next(loader) for _ in range(len(order) // 24)]
                rows = order.rows(epoch, 0, len(order))
                np.testing.assert_array_equal(np.concatenate([one.columns["image"] for one in seen]), images[rows])
                np.testing.assert_array_equal(np.concatenate([one.columns["label"] for one in seen]), labels[rows])
        # A shard is fetched again only when it has left the cache: about one copy of the slot's share each epoch.
        assert len(source.asked) <= 2 * 6 + 3


def test_what_is_needed_has_room_though_others_were_expected(tmp_path, made):
    """Two are being fetched ahead, in a cache for two: they give way, half as they are."""
    begun = threading.Semaphore(0)

    class Stuck(Counted):
        def pieces(self, name):
            if name != made[0]._shards[7].path:
                begun.release()
                while True:  # until it is given up
                    time.sleep(0.01)
                    yield b""
            yield from super().pieces(name)

    copied, _ = fetched(tmp_path, made, Stuck(tmp_path / "store"), shards=2)
    with copied:
        copied.expect([(0, 80)])
        for _ in range(2):
            assert begun.acquire(timeout=30)
        np.testing.assert_array_equal(copied.take(np.arange(280, 300))["image"], made[1][280:300])


def test_what_others_hold_is_waited_for(tmp_path, made):
    copied, _ = fetched(tmp_path, made, shards=2)
    other, _ = fetched(tmp_path, made, shards=2)
    with copied, other, ThreadPoolExecutor(1) as pool:
        other.slice(0, 80)
        reading = pool.submit(copied.take, np.arange(100, 120))
        with pytest.raises(TimeoutError):
            reading.result(timeout=0.5)
        other.expect(())  # as an evaluation ends
        np.testing.assert_array_equal(reading.result(timeout=30)["image"], made[1][100:120])


def test_what_cannot_have_room_is_told_at_last(tmp_path, made, monkeypatch):
    monkeypatch.setattr(shard_files, "_FULL_SECONDS", 0.5)
    copied, _ = fetched(tmp_path, made, shards=2)
    with (
        copied,
        pytest.raises(CacheFull, match=r"GB of the .* are in use, .*room for four shards of each"),
    ):
        copied.take(np.arange(0, 120))


def test_nothing_expected_lets_go_of_everything(tmp_path, made):
    copied, source = fetched(tmp_path, made)
    with copied:
        copied.slice(0, 160)
        assert len(copied._opened) == 4
        copied.expect(())
        assert not copied._opened
        copied.slice(0, 480)
        assert len(copied._opened) <= 4, "as before anybody told what is read next"
    assert len(source.asked) == len(ROWS)


def test_what_arrives_is_counted(tmp_path, made):
    copied, _ = fetched(tmp_path, made)
    with copied:
        assert copied.arrived == 0
        copied.slice(0, 80)
        assert copied.arrived == 2  # pieces
        copied.slice(0, 80)
        assert copied.arrived == 2
    assert made[0].arrived == 0  # in place nothing has to come


def test_an_error_of_the_source_reaches_the_reader(tmp_path, made):
    class Broken:
        def pieces(self, name):
            raise DataError(f"no {name} today")
            yield b""

    copied, _ = fetched(tmp_path, made, Broken())
    with copied:
        copied.expect([(0, 40)])
        with pytest.raises(DataError, match=r"no s0-0000\.arrow today"):
            copied.take(np.arange(3))


def test_closing_gives_up_what_is_being_fetched(tmp_path, made):
    begun, over = threading.Semaphore(0), threading.Event()

    class Endless(Counted):
        def pieces(self, name):
            self.asked.append(name)
            yield b"x"
            begun.release()
            while not over.wait(0.01):  # only who gives up sees the end of this
                yield b""

    copied, source = fetched(tmp_path, made, Endless(tmp_path / "store"))
    copied.expect([(0, 480)])
    for _ in range(2):  # as many as are fetched at once
        assert begun.acquire(timeout=30)
    assert len(list((tmp_path / "host").rglob("*.part"))) == 2
    closing = threading.Thread(target=copied.close)
    closing.start()
    closing.join(30)
    gave_up = not closing.is_alive()
    over.set()
    closing.join()
    assert gave_up
    assert len(source.asked) == 2, "what was only queued was begun"
    assert list((tmp_path / "host").rglob("*.part")) == []
    copied._files._source = Counted(tmp_path / "store")
    np.testing.assert_array_equal(copied.take(np.arange(3))["image"], made[1][:3])  # it can be read again
    copied.close()


def test_who_sees_the_mark_reads_in_place(tmp_path, made):
    reach_of = Reach(source=Counted(tmp_path), cache=CachePlace(directory=str(tmp_path / "host")), mark="")
    directory = str(tmp_path / "store")
    assert files_of(directory, None).fetched is False
    assert files_of(directory, reach_of).fetched is True
    assert files_of(directory, replace(reach_of, mark=str(tmp_path / "mark"))).fetched is True
    (tmp_path / "mark").touch()
    assert files_of(directory, replace(reach_of, mark=str(tmp_path / "mark"))).fetched is False


@pytest.fixture(scope="module")
def server():
    with s3_server("bucket") as running:
        yield running


def test_from_an_object_store_that_breaks(tmp_path, made, server, monkeypatch):
    """Slow, cut, overloaded: the right rows all the same."""
    reach(server, monkeypatch)
    store = Storage(s3_endpoint=server.endpoint).place("s3://bucket/store")
    for shard in made[0]._shards:
        with (tmp_path / "store" / shard.path).open("rb") as file:
            (store / shard.path).upload(file)
    server.clear()
    server.inject("cut", method="GET", times=3)
    server.inject("slow_down", method="GET", times=2)
    server.inject("delay", seconds=0.02, probability=0.9)
    copied, _ = fetched(tmp_path, made, StoredFiles(directory=store), shards=6)
    order = ShardOrder(1, ROWS, 1, 0, window_shards=2)
    with copied, Loader(copied, order, batch_size=48, cursor=Cursor(), preprocess=None) as loader:
        found = np.concatenate([next(loader).columns["image"] for _ in range(10)])
    np.testing.assert_array_equal(found, made[1][order.rows(0, 0, 480)])
    assert server.injected["cut"] == 3
    assert server.injected["slow_down"] == 2


@pytest.fixture
def away(tmp_path, made, server, monkeypatch):
    """A store with the shards, whose server is busy from now on."""
    reach(server, monkeypatch)
    store = Storage(s3_endpoint=server.endpoint).place("s3://bucket/away")
    for shard in made[0]._shards[:1]:
        with (tmp_path / "store" / shard.path).open("rb") as file:
            (store / shard.path).upload(file)
    server.clear()
    monkeypatch.setattr(retry, "pause", lambda seconds: None)
    yield store
    server.clear()


def test_an_outage_is_borne_longer_than_a_request_is_repeated(tmp_path, made, server, away):
    server.inject("slow_down", times=5 * retry.ATTEMPTS)
    copied, _ = fetched(tmp_path, made, StoredFiles(directory=away))
    with copied:
        np.testing.assert_array_equal(copied.take(np.arange(3))["image"], made[1][:3])
    assert server.injected == {"slow_down": 5 * retry.ATTEMPTS}


def test_an_outage_that_lasts_is_the_clusters(tmp_path, made, server, away, monkeypatch):
    monkeypatch.setattr(retry, "OUTAGE_SECONDS", 0.5)
    server.inject("slow_down")
    copied, _ = fetched(tmp_path, made, StoredFiles(directory=away))
    with copied, pytest.raises(ClusterError, match=r"s0-0000\.arrow: cannot be read: the server .* overloaded"):
        copied.take(np.arange(3))
    assert server.injected["slow_down"] > retry.ATTEMPTS


def test_an_upload_bears_an_outage_too(tmp_path, made, server, away, monkeypatch):
    shard = tmp_path / "store" / made[0]._shards[0].path
    server.inject("slow_down", method="PUT", times=4 * retry.ATTEMPTS)
    Uploads(directory=away).deliver(shard, "handed.arrow")
    assert (away / "handed.arrow").read() == shard.read_bytes()
    monkeypatch.setattr(retry, "OUTAGE_SECONDS", 0.2)
    server.inject("slow_down", method="PUT")
    with pytest.raises(ClusterError, match=r"again\.arrow: cannot be written: the server .* overloaded"):
        Uploads(directory=away).deliver(shard, "again.arrow")


def test_who_closes_a_table_does_not_wait_for_the_end_of_an_outage(tmp_path, made, server, away):
    server.inject("slow_down")
    copied, _ = fetched(tmp_path, made, StoredFiles(directory=away))
    copied.expect([(0, 40)])
    server.wait_for("slow_down")
    began = time.monotonic()
    copied.close()
    assert time.monotonic() - began < retry.OUTAGE_SECONDS / 2


def test_a_refusal_ends_it_at_once(tmp_path, made, server, away):
    server.inject("denied")
    copied, _ = fetched(tmp_path, made, StoredFiles(directory=away))
    with copied, pytest.raises(DataError, match="access is refused"):
        copied.take(np.arange(3))
    assert server.injected == {"denied": 1}


def test_a_shard_that_is_gone_from_the_store(tmp_path, made, server, monkeypatch):
    reach(server, monkeypatch)
    server.clear()
    store = LOCAL.place("s3://bucket/nothing")
    copied, _ = fetched(tmp_path, made, StoredFiles(directory=store))
    with (
        copied,
        pytest.raises(DataError, match=r"s3://bucket/nothing/s0-0000\.arrow: cannot be read: no such file"),
    ):
        copied.take(np.arange(3))


def test_directories_of_killed_preparations_go_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, young, others = (tmp_path / name for name in ("sparknet-prepare-old", "sparknet-prepare-new", "theirs"))
    for path in (old, young, others):
        path.mkdir()
        (path / "shard").write_text("rows")
    for path in (old / "shard", old, others / "shard", others, young):
        os.utime(path, (0, 0))
    with temporary_directory() as own:
        assert sorted(tmp_path.iterdir()) == sorted([own, young, others])
    assert sorted(tmp_path.iterdir()) == sorted([young, others])
