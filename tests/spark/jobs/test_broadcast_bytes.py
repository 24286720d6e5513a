"""Bytes for tasks: whole again in every task, in pieces meanwhile, and gone afterwards."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from digits import open_test_session
from sparknet.spark.jobs import broadcast_bytes as room
from sparknet.spark.jobs.broadcast_bytes import Whole, broadcast_bytes
from sparknet.spark.jobs.jobs import collect_reports, numbered

pytestmark = pytest.mark.spark


class Repeated:
    """Bytes that are nowhere as a whole."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def pieces(self, most_bytes: int) -> Iterator[bytes]:
        for at in range(0, self._size, most_bytes):
            yield bytes([at // most_bytes % 251]) * min(most_bytes, self._size - at)

    def sha(self, most_bytes: int) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces(most_bytes):
            digest.update(piece)
        return digest.hexdigest()


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2,4]")
    yield session
    session.stop()


def digest_task() -> Callable[[Whole, Iterator[object]], Iterator[dict[str, object]]]:
    """A task that travels by value: workers know nothing of this module."""

    def digest_of(data: Whole, batches: Iterator[object]) -> Iterator[dict[str, object]]:
        for _ in batches:
            whole = data.whole()
            yield {"size": len(whole), "sha": hashlib.sha256(whole).hexdigest()}

    return digest_of


def test_every_task_has_them_whole(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_PIECE_BYTES", 1000)
    data = Repeated(3500)
    with broadcast_bytes(spark, data) as sent:
        files = [Path(piece._path) for piece in sent.pieces]
        assert len(files) == 4
        reports = collect_reports(
            numbered(spark, 2, tasks=2), functools.partial(digest_task(), sent), doing="testing"
        )
        assert [report.values for report in reports] == [{"size": 3500, "sha": data.sha(1000)}] * 2
    assert not any(file.exists() for file in files)


def test_nothing_of_them_stays_behind_an_error(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Repeated):
        def pieces(self, most_bytes: int) -> Iterator[bytes]:
            yield from super().pieces(most_bytes)
            raise OSError("the file is gone")

    monkeypatch.setattr(room, "_PIECE_BYTES", 1000)
    folder = Path(spark.sparkContext._temp_dir)
    before = set(folder.iterdir())
    with pytest.raises(OSError, match="the file is gone"), broadcast_bytes(spark, Broken(3500)):
        pass
    assert set(folder.iterdir()) == before


@pytest.mark.slow
def test_more_than_the_java_machine_has_room_for(spark: SparkSession) -> None:
    size = 2_200_000_000
    data = Repeated(size)
    assert spark.sparkContext._jvm.java.lang.Runtime.getRuntime().maxMemory() < size
    with broadcast_bytes(spark, data) as sent:
        (report,) = collect_reports(
            numbered(spark, 1, tasks=1), functools.partial(digest_task(), sent), doing="testing"
        )
    assert report.values == {"size": size, "sha": data.sha(room._PIECE_BYTES)}
