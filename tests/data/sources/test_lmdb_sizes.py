"""LMDB databases whose pixels are of several sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.own_size import pack
from sparknet.data.sources import lmdb as lmdb_source
from sparknet.data.sources.datum import write
from sparknet.data.sources.files import Location
from sparknet.data.sources.lmdb import read
from sparknet.errors import DataError

SHAPE = (3, 5, 4)


def pixels(row: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, shape, dtype=np.uint8)


def datum(row: int, **changes: Any) -> bytes:
    given: dict[str, Any] = {"shape": SHAPE, "data": pixels(row).tobytes(), "label": row % 10, "encoded": False}
    return write(**(given | changes))


def database(directory: Path, values: list[bytes]) -> Path:
    with DatabaseWriter(directory) as writer:
        for value in values:
            writer.append(value)
    return directory


def test_pixels_of_other_sizes_say_their_own_where_that_is_asked(tmp_path: Path) -> None:
    other = pixels(1, (3, 7, 6))
    strange = pixels(2, (1, 5, 12))
    begins_alike = np.frombuffer(pack(pixels(3))[:8] + pixels(3).tobytes()[8:], np.uint8).reshape(SHAPE)
    values = [
        datum(0),
        datum(1, shape=other.shape, data=other.tobytes()),
        datum(2, shape=strange.shape, data=strange.tobytes()),
        datum(3, data=begins_alike.tobytes()),
        datum(4, shape=(3, 2, 2)),
    ]
    where = database(tmp_path / "d", values)
    source = lmdb_source.open_source(Location(path=str(where), several_sizes=True))
    (rows,) = [batch for part in source.partitions for batch in read(part)]
    cells, errors = rows.column("image").to_pylist(), rows.column("error").to_pylist()
    assert cells[0] == pixels(0).tobytes()
    assert cells[1] == pack(other)
    assert cells[3] == pack(begins_alike)
    assert [error is None for error in errors] == [True, True, False, True, False]
    assert "shape (1, 5, 12) with 60 values" in errors[2]
    assert "shape (3, 2, 2) with 60 values" in errors[4]
    assert "crop" not in errors[2] + errors[4]
    # Where nothing cuts them, that is what is said of what is whole and only of another size.
    source = lmdb_source.open_source(Location(path=str(where)))
    (rows,) = [batch for part in source.partitions for batch in read(part)]
    error = rows.column("error").to_pylist()[1]
    assert (
        "(3, 7, 6) with 126 values; the first record has shape (3, 5, 4) (images of several sizes take a" in error
    )


def test_databases_of_several_sizes_are_read_together_where_that_is_asked(tmp_path: Path) -> None:
    other = pixels(1, (3, 7, 6))
    database(tmp_path / "d/a", [datum(0)])
    database(tmp_path / "d/b", [datum(1, shape=other.shape, data=other.tobytes())])
    source = lmdb_source.open_source(Location(path=str(tmp_path / "d"), several_sizes=True))
    found = [batch.column("image").to_pylist() for part in source.partitions for batch in read(part)]
    assert found == [[pixels(0).tobytes()], [pack(other)]]
    grey = pixels(2, (1, 5, 4))
    database(tmp_path / "d/c", [datum(2, shape=grey.shape, data=grey.tobytes())])
    with pytest.raises(DataError, match=r"pixels of shape \(1, 5, 4\)"):
        _ = lmdb_source.open_source(Location(path=str(tmp_path / "d"), several_sizes=True)).partitions
