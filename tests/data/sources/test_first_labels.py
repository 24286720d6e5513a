"""Labels that are seen before anything is prepared: of lists all, of others the first, or what is told of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from formats import random_rows, write_cifar
from image_files import jpeg, write_folder, write_tar
from sparknet.config import Data
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.rows.extremes import Extremes
from sparknet.data.sources.datum import write
from sparknet.data.sources.first_labels import first_labels
from sparknet.data.sources.opening import open_source


def seen(source: str, path: Path, *, beyond: int = 4, **settings: Any) -> list[tuple[float, str]]:
    data = Data(source=source, path=str(path), class_values="stored", validation="none", **settings)
    opened = open_source(data)
    found: Extremes = first_labels(opened, data, "label", lambda values: values > beyond)
    return [(one.value, one.row) for one in found.seen]


def test_of_a_list_all_labels_and_their_lines(tmp_path: Path) -> None:
    labels = [1, -7, 3, 1000, 2]
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{number}.jpg {label}\n" for number, label in enumerate(labels)))
    assert seen("image_list", listing) == [
        (-7, f"entry 2 of {listing} (1.jpg)"),
        (1, f"entry 1 of {listing} (0.jpg)"),
        (3, f"entry 3 of {listing} (2.jpg)"),
        (1000, f"entry 4 of {listing} (3.jpg)"),
    ]


def test_of_a_folder_the_numbers_of_its_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, {"cat": ["1.jpg"], "dog": ["2.jpg"], "eel": ["3.jpg"]})
    assert [value for value, _ in seen("image_folder", tmp_path)] == [0, 1, 2]
    assert seen("image_folder", tmp_path)[-1][1].endswith("eel/3.jpg")


@pytest.mark.parametrize("nested", [False, True])
def test_of_archives_labels_of_images_that_are_there(tmp_path: Path, nested: bool) -> None:
    members = {f"{number}.jpg": jpeg(number) for number in range(3)}
    if nested:
        inner = write_tar(tmp_path / "inner" / "class.tar", members)
        members = {"class.tar": inner.read_bytes()}
    write_tar(tmp_path / "rows.tar", members)
    file = tmp_path / "labels.txt"
    file.write_text("0.jpg 1\n1.jpg 2\n2.jpg 4\n99.jpg 1000\n")
    tar = tmp_path / "rows.tar"
    assert seen("image_tar", tar, labels=str(file)) == []  # the one that is too large belongs to no image here
    found = seen("image_tar", tar, labels=str(file), beyond=3)
    assert found == [(1, f"{file}, at 0.jpg"), (4, f"{file}, at 2.jpg")]


def test_of_a_database_those_of_the_first_records(tmp_path: Path) -> None:
    with DatabaseWriter(tmp_path / "rows_lmdb") as database:
        for number, label in enumerate([5, 2, 9]):
            database.append(write(shape=(1, 2, 2), data=bytes(4), label=label), f"{number:04}")
    assert seen("lmdb", tmp_path / "rows_lmdb") == [
        (2, "row 1 of partition 0 (00000001_0001)"),
        (5, "row 0 of partition 0 (00000000_0000)"),
        (9, "row 2 of partition 0 (00000002_0002)"),
    ]


def test_of_bare_pixels_those_of_the_first_and_the_last_part(tmp_path: Path) -> None:
    for batch, label in ((1, 3), (2, 8)):
        images, _ = random_rows(4, (3, 32, 32))
        write_cifar(tmp_path / f"data_batch_{batch}.bin", images, np.full(4, label))
    assert [value for value, _ in seen("cifar10", tmp_path)] == [3, 8]


def test_of_parquet_what_its_statistics_say(tmp_path: Path) -> None:
    table = pa.table({"image": [b"1234"] * 4, "label": [3, 1, 7, 2]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    assert seen("parquet", tmp_path / "rows.parquet", shape=[1, 2, 2]) == [
        (1, f"row group 0 of {tmp_path / 'rows.parquet'}"),
        (2, f"row group 1 of {tmp_path / 'rows.parquet'}"),
        (3, f"row group 0 of {tmp_path / 'rows.parquet'}"),
        (7, f"row group 1 of {tmp_path / 'rows.parquet'}"),
    ]
