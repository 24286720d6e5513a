"""The copies of a host: fetched once, whole, bounded, never taken from who uses them, whoever is killed when."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sparknet.data.shards.host_cache import CacheFull, CachePlace, HostCache
from sparknet.data.shards.shard import Shard
from sparknet.errors import DataError

SIZE = 100_000


def content(number, size=SIZE):
    return bytes([number]) * size


def shard_of(number, size=SIZE):
    data = content(number, size)
    return Shard(path=f"train-{number}", rows=1, bytes=size, sha256=hashlib.sha256(data).hexdigest())


class Source:
    """Gives contents by the shard's number, and counts how often."""

    def __init__(self):
        self.asked = []

    def __call__(self, shard):
        self.asked.append(number := int(shard.path.removeprefix("train-")))
        data = content(number, shard.bytes)
        yield data[: len(data) // 2]
        yield data[len(data) // 2 :]


@pytest.fixture
def place(tmp_path):
    return CachePlace(directory=str(tmp_path / "cache"), gigabytes=3.5 * SIZE / 1e9)


@pytest.fixture
def source():
    return Source()


def copies(cache):
    return sorted(path.name for path in cache.directory.iterdir())


def names(*numbers):
    return sorted(shard_of(number).sha256 for number in numbers)


def test_a_shard_is_fetched_once_and_private(place, source):
    first, second = HostCache(place), HostCache(place)
    for cache in (first, second, first):
        with cache.hold(shard_of(1), source) as held:
            assert held.path.read_bytes() == content(1)
    assert source.asked == [1]
    assert copies(first) == names(1)
    assert first.directory.name == f"sparknet-{os.getuid()}"
    assert first.directory.stat().st_mode & 0o777 == 0o700
    assert held.path.stat().st_mode & 0o777 == 0o600


def test_least_recently_used_go_first_and_never_what_is_held(place, source):
    cache = HostCache(place)
    for number in (1, 2, 3):
        cache.hold(shard_of(number), source).close()
    oldest = cache.hold(shard_of(1), source)  # used again: 2 is the oldest now
    cache.hold(shard_of(4), source).close()
    assert copies(cache) == names(1, 3, 4)
    cache.hold(shard_of(5), source).close()
    cache.hold(shard_of(6), source).close()
    assert copies(cache) == names(1, 5, 6)
    assert oldest.path.read_bytes() == content(1)
    oldest.close()
    cache.hold(shard_of(7), source).close()
    assert copies(cache) == names(5, 6, 7)
    assert source.asked == [1, 2, 3, 4, 5, 6, 7]


def test_no_room_beside_what_is_held(place, source):
    cache = HostCache(place)
    held = [cache.hold(shard_of(number), source) for number in (1, 2, 3)]
    with pytest.raises(
        CacheFull, match=r"0\.0003 GB of the 0\.00035 GB .* are in use, and shard train-4 has 0\.0001"
    ):
        HostCache(place).hold(shard_of(4), source)
    held[1].close()
    HostCache(place).hold(shard_of(4), source).close()
    assert copies(cache) == names(1, 3, 4)


def test_a_shard_larger_than_the_cache(place, source):
    with pytest.raises(DataError, match=r"shard train-1 has 0\.0004 GB, and .* may hold 0\.00035 GB; .*raise data"):
        HostCache(place).hold(shard_of(1, 4 * SIZE), source)
    assert source.asked == []


def test_half_of_what_is_free_is_the_bound_by_default(tmp_path, source, monkeypatch):
    cache = HostCache(CachePlace(directory=str(tmp_path)))
    cache.hold(shard_of(1), source).close()
    usage = type("usage", (), {"free": SIZE})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    cache.hold(shard_of(2), source).close()  # (free + held) / 2 is one shard: the first gives way
    assert copies(cache) == names(2)


@pytest.mark.parametrize("same_size", [True, False])
def test_a_damaged_copy_is_fetched_again(place, source, same_size):
    HostCache(place).hold(shard_of(1), source).close()
    path = HostCache(place).directory / shard_of(1).sha256
    path.write_bytes(content(2) if same_size else content(1)[:-1])
    with HostCache(place).hold(shard_of(1), source) as held:
        assert held.path.read_bytes() == content(1)
    assert source.asked == [1, 1]


def test_who_has_mapped_a_copy_keeps_it_when_it_is_replaced(place, source):
    first = HostCache(place).hold(shard_of(1), source)
    with first.path.open("rb") as mapped:
        other = first.path.with_name("other")
        other.write_bytes(content(9))
        other.rename(first.path)
        HostCache(place).hold(shard_of(1), source).close()
        assert mapped.read() == content(1)


def test_other_bytes_than_the_manifest_says(place):
    cache, tries = HostCache(place), []

    def wrong(shard):
        tries.append(shard)
        yield content(2)

    with pytest.raises(
        DataError, match=r"shard train-1: 100000 bytes with SHA-256 \w+ arrived twice; the manifest"
    ):
        cache.hold(shard_of(1), wrong)
    assert len(tries) == 2
    assert copies(cache) == []


def test_bytes_that_were_spoilt_on_their_way_are_asked_for_again(place, source):
    answers = iter([[content(1)[:-5]], [content(1)]])
    with HostCache(place).hold(shard_of(1), lambda shard: next(answers)) as held:
        assert held.path.read_bytes() == content(1)


def test_a_fetch_that_fails_leaves_nothing(place, source):
    def broken(shard):
        yield content(1)[:10]
        raise DataError("gone")

    cache = HostCache(place)
    with pytest.raises(DataError, match="gone"):
        cache.hold(shard_of(1), broken)
    assert copies(cache) == []
    cache.hold(shard_of(1), source).close()


def test_threads_and_processes_fetch_a_shard_once(place, tmp_path):
    log = tmp_path / "asked"
    program = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from concurrent.futures import ThreadPoolExecutor
        from test_host_cache import *

        def fetch(shard):
            with open({str(log)!r}, "a") as file:
                file.write(shard.path + "\\n")
            yield from Source()(shard)

        def work(number):
            cache = HostCache(CachePlace(directory={place.directory!r}, gigabytes=1))
            with cache.hold(shard_of(number), fetch) as held:
                assert held.path.read_bytes() == content(number)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, [1, 2, 3, 1, 2, 3, 4, 5] * 4))
    """)
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == [f"train-{number}" for number in (1, 2, 3, 4, 5)]


def test_a_small_cache_serves_many_who_want_different_things(place, tmp_path):
    """Room for three, three threads of one process, eight shards: right bytes, and never over the bound."""
    errors = []

    def work(seed):
        cache, source = HostCache(place), Source()
        for at in range(30):
            number = (seed * 7 + at * 3) % 8
            try:
                with cache.hold(shard_of(number), source) as held:
                    assert held.path.read_bytes() == content(number)
                total = 0
                for path in cache.directory.iterdir():
                    with suppress(FileNotFoundError):  # removed while it was counted
                        total += path.stat().st_size
                # One that gets its name while it is counted may be counted twice.
                assert total <= 4 * SIZE
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_killed_in_the_middle_of_a_fetch_the_next_one_takes_over(place, source):
    program = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_host_cache import *

        def stuck(shard):
            yield content(1)[:1000]
            print("half", flush=True)
            time.sleep(600)

        HostCache(CachePlace(directory={place.directory!r}, gigabytes={place.gigabytes!r})).hold(shard_of(1), stuck)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    cache, found = HostCache(place), []
    waiting = threading.Thread(target=lambda: found.append(cache.hold(shard_of(1), source)))
    waiting.start()
    assert any(".part" in name for name in copies(cache))
    waiting.join(0.3)
    assert waiting.is_alive()  # the other one may yet finish it
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    waiting.join(30)
    assert found[0].path.read_bytes() == content(1)
    assert source.asked == [1]
    assert copies(cache) == names(1)  # the draft of the dead is gone
    found[0].close()


def test_who_waits_for_anothers_fetch_sees_that_it_gets_on(place):
    """So that a worker behind a slow line is not taken for one that hangs."""
    more, stalled = threading.Semaphore(0), threading.Semaphore(0)

    def slow(shard):
        for at in range(0, SIZE, SIZE // 10):
            stalled.release()
            assert more.acquire(timeout=60)
            yield content(1)[at : at + SIZE // 10]

    first, second, found = HostCache(place), HostCache(place), []
    threads = [
        threading.Thread(target=lambda cache=cache: found.append(cache.hold(shard_of(1), slow)), daemon=True)
        for cache in (first, second)
    ]
    threads[0].start()
    assert stalled.acquire(timeout=60)
    threads[1].start()
    seen = 0
    for _ in range(3):
        more.release()
        assert stalled.acquire(timeout=60)  # the piece is written
        until = time.monotonic() + 60
        while second.arrived == seen:
            assert time.monotonic() < until
            time.sleep(0.01)
        seen = second.arrived
    assert first.arrived == 3
    more.release(10)
    for thread in threads:
        thread.join(60)
    assert [held.path.read_bytes() == content(1) for held in found] == [True, True]
    for held in found:
        held.close()


def test_locks_of_the_dead_go(place, source):
    cache = HostCache(place)
    (cache.directory / f"{shard_of(7).sha256}.lock").touch()
    cache.hold(shard_of(1), source).close()
    assert copies(cache) == names(1)


def test_a_held_copy_outlives_its_holder_only_until_it_is_killed(place, source):
    program = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_host_cache import *
        cache = HostCache(CachePlace(directory={place.directory!r}, gigabytes={place.gigabytes!r}))
        held = [cache.hold(shard_of(number), Source()) for number in (1, 2, 3)]
        print("held", flush=True)
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    cache = HostCache(place)
    with pytest.raises(CacheFull):
        cache.hold(shard_of(4), source)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            cache.hold(shard_of(4), source).close()
            break
        except CacheFull:  # the system has not yet closed the dead one's files
            continue
    assert shard_of(4).sha256 in copies(cache)


def test_a_directory_that_is_anothers_is_refused(tmp_path):
    directory = tmp_path / f"sparknet-{os.getuid()}"
    directory.mkdir(mode=0o755)
    with pytest.raises(
        DataError, match=r"must be a directory of user \d+ .*mode 0755: remove it, or set data.cache"
    ):
        HostCache(CachePlace(directory=str(tmp_path)))
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"remove it, or set data\.cache"):
        HostCache(CachePlace(directory=str(tmp_path)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be used: .*set data.cache to a directory that can be written"):
        HostCache(CachePlace(directory=str(tmp_path / "file")))


def test_where_it_is_when_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert HostCache(CachePlace()).directory.parent == tmp_path / "xdg"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert HostCache(CachePlace()).directory.parent == tmp_path / "tmp"


def test_a_full_disk_is_told(tmp_path, source, monkeypatch):
    def full(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    cache = HostCache(CachePlace(directory=str(tmp_path), gigabytes=1))
    with pytest.raises(DataError, match=r"cannot be used: No space left on device; free space, or set data.cache"):
        cache.hold(shard_of(1), source)
    assert copies(cache) == []
