"""The registry of formats, each held against its own reader, and directories of images."""

import io
import os

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from formats import cifar_directory, random_rows, write_mnist
from sparknet.data.rows.columns import ENCODED_IMAGE
from sparknet.data.sources import image_batches, image_folder
from sparknet.data.sources.files import Location
from sparknet.data.sources.image_folder import FolderPartition
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.place import LOCAL
from sparknet.errors import DataError


def png(seed=0, size=(6, 5)):
    """Bytes of a PNG of `size` (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_folder(directory, classes):
    """One file for each name in the lists by class, with bytes of its own; gives the bytes by relative name."""
    made = {}
    for number, name in enumerate(f"{kind}/{file}" for kind, files in classes.items() for file in files):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made[name] = png(number)
        path.write_bytes(made[name])
    return made


def rows_of(name, where):
    form = FORMATS[name]
    return [
        row
        for part in form.reader.open_source(where).partitions
        for batch in form.reader.read(part, where.storage)
        for row in batch.to_pylist()
    ]


def test_the_registry_has_every_format():
    assert (
        " ".join(FORMATS)
        == "digits cifar10 mnist lmdb image_tar image_folder image_list windows hdf5 csv parquet net"
    )


def test_cifar_by_location(tmp_path):
    train, test = cifar_directory(tmp_path, rows=4)
    for split, (images, labels) in (("train", train), ("test", test)):
        rows = rows_of("cifar10", Location(path=str(tmp_path), split=split))
        assert [row["image"] for row in rows] == [image.tobytes() for image in images]
        assert [row["label"] for row in rows] == labels.tolist()
    opened = FORMATS["cifar10"].reader.open_source(Location(path=str(tmp_path)))
    described = opened.schema
    assert (described.input.shape, described.input.dtype, described.classes) == ((3, 32, 32), "uint8", 10)
    assert not described.encoded
    names = [file.name for file in opened.files]
    assert names == [f"data_batch_{number}.bin" for number in (1, 2, 3)]


def test_mnist_by_location(tmp_path):
    images, labels = random_rows(7, (28, 28))
    write_mnist(tmp_path, "t10k", images, labels)
    rows = rows_of("mnist", Location(path=str(tmp_path), split="test"))
    assert [row["label"] for row in rows] == labels.tolist()
    opened = FORMATS["mnist"].reader.open_source(Location(path=str(tmp_path), split="test"))
    assert opened.schema.input.shape == (1, 28, 28)
    with pytest.raises(DataError, match="the directory has no MNIST train images"):
        FORMATS["mnist"].reader.open_source(Location(path=str(tmp_path)))


def test_the_digits_have_neither_files_nor_tests():
    where = Location(path="")
    assert FORMATS["digits"].reader.open_source(where).files == ()
    assert len(rows_of("digits", where)) == 1797
    assert FORMATS["digits"].reader.open_source(where).schema.classes == 10
    for wrong in (Location(path="x"), Location(path="", split="test")):
        with pytest.raises(DataError, match="the digits have neither files nor a test split"):
            FORMATS["digits"].reader.open_source(wrong)


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.reader and form.has_path])
def test_a_path_that_is_not_there_is_seen_at_once(name, tmp_path):
    with pytest.raises(DataError, match="nothing"):
        FORMATS[name].reader.open_source(Location(path=str(tmp_path / "nothing")))


def test_a_directory_of_classes(tmp_path):
    made = make_folder(tmp_path, {"dog": ["b.png", "a.PNG"], "cat": ["x y.png", "more/z.png"], ".trash": ["t.png"]})
    (tmp_path / "cat" / "readme.txt").write_text("no image")
    where = Location(path=str(tmp_path))
    rows = rows_of("image_folder", where)
    names = ["cat/more/z.png", "cat/x y.png", "dog/a.PNG", "dog/b.png"]
    assert [row["name"] for row in rows] == names
    assert [row["image"] for row in rows] == [made[name] for name in names]
    assert [row["label"] for row in rows] == [0, 0, 1, 1]
    assert {row["error"] for row in rows} == {None}
    described = FORMATS["image_folder"].reader.open_source(where).schema
    assert described.input == ENCODED_IMAGE
    assert (described.classes, described.class_names, described.encoded) == (2, ("cat", "dog"), True)
    files = FORMATS["image_folder"].reader.open_source(where).files
    assert [(file.uri, file.bytes) for file in files] == [(str(tmp_path / name), len(made[name])) for name in names]


def test_batches_of_a_directory_have_the_schema_of_named_rows(tmp_path):
    make_folder(tmp_path, {"cat": ["1.png"]})
    form = FORMATS["image_folder"]
    (unit,) = form.reader.open_source(Location(path=str(tmp_path))).partitions
    (batch,) = form.reader.read(unit, LOCAL)
    assert [(field.name, field.type) for field in batch.schema] == [
        ("name", pa.string()),
        ("image", pa.binary()),
        ("label", pa.int64()),
        ("error", pa.string()),
    ]


def test_test_images_are_numbered_as_the_training_images(tmp_path):
    make_folder(tmp_path / "train", {"ant": ["1.png"], "bee": ["1.png"], "cow": ["1.png"]})
    make_folder(tmp_path / "val", {"cow": ["1.png"], "bee": ["1.png"]})
    where = Location(path=str(tmp_path / "val"), split="test", labels=str(tmp_path / "train"))
    assert [(row["name"], row["label"]) for row in rows_of("image_folder", where)] == [
        ("bee/1.png", 1),
        ("cow/1.png", 2),
    ]
    assert FORMATS["image_folder"].reader.open_source(where).schema.classes == 3


def test_a_test_class_that_was_not_trained_is_an_error(tmp_path):
    make_folder(tmp_path / "train", {"ant": ["1.png"], "bee": ["1.png"]})
    make_folder(tmp_path / "val", {"wasp": ["1.png"]})
    where = Location(path=str(tmp_path / "val"), labels=str(tmp_path / "train"))
    with pytest.raises(DataError, match=r"'wasp' is no class of .*train, which has 2; both need the same"):
        FORMATS["image_folder"].reader.open_source(where)


def test_images_beside_the_classes_are_an_error(tmp_path):
    make_folder(tmp_path, {"ant": ["1.png"]})
    (tmp_path / "2.png").write_bytes(png())
    with pytest.raises(DataError, match=r"2\.png lies in no class's sub-directory; .* move it"):
        FORMATS["image_folder"].reader.open_source(Location(path=str(tmp_path)))


def test_a_directory_without_images_is_an_error(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no images in it; source image_folder takes a directory with a sub-dir"):
        FORMATS["image_folder"].reader.open_source(Location(path=str(tmp_path)))


def test_a_file_that_is_no_image_is_a_damaged_row(tmp_path):
    make_folder(tmp_path, {"ant": ["1.png", "3.png"]})
    (tmp_path / "ant" / "2.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "ant" / "0.jpg").write_bytes(b"")
    rows = {row["name"]: row for row in rows_of("image_folder", Location(path=str(tmp_path)))}
    for name in ("ant/0.jpg", "ant/2.jpg"):
        assert (rows[name]["image"], rows[name]["label"]) == (None, None)
        assert rows[name]["error"].startswith(f"{tmp_path}/{name}: ")
    assert [rows[f"ant/{number}.png"]["error"] for number in (1, 3)] == [None, None]


def test_a_file_that_vanished_ends_the_reading(tmp_path):
    make_folder(tmp_path, {"ant": ["1.png"]})
    (unit,) = FORMATS["image_folder"].reader.open_source(Location(path=str(tmp_path))).partitions
    (tmp_path / "ant" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        list(FORMATS["image_folder"].reader.read(unit, LOCAL))


def test_many_images_are_cut_into_units_and_batches(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    data = png()
    for number in range(1100):
        (tmp_path / "c" / f"{number:04d}.png").write_bytes(data)
    form = FORMATS["image_folder"]
    units = form.reader.open_source(Location(path=str(tmp_path))).partitions
    assert [len(unit.names) for unit in units] == [512, 512, 76]
    assert all(isinstance(unit, FolderPartition) for unit in units)
    monkeypatch.setattr(image_batches, "_BATCH_BYTES", 50 * len(data))
    assert [batch.num_rows for batch in form.reader.read(units[-1], LOCAL)] == [50, 26]


def test_large_images_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    make_folder(tmp_path, {"c": [f"{number}.png" for number in range(8)]})
    size = max(file.stat().st_size for file in (tmp_path / "c").iterdir())
    monkeypatch.setattr(image_folder, "_READ_AT_ONCE_BYTES", 3 * size)
    (unit,) = image_folder.open_source(Location(path=str(tmp_path))).partitions
    assert list(image_folder._groups(unit.sizes)) == [(0, 3), (3, 6), (6, 8)]
    assert list(image_folder._groups([1, 10**9, 10**9, 1])) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert list(image_folder._groups([1] * 40)) == [(0, 32), (32, 40)]
    assert [row["label"] for batch in image_folder.read(unit) for row in batch.to_pylist()] == [0] * 8


def test_a_file_larger_than_any_image_is_a_damaged_row_and_not_read(tmp_path, monkeypatch):
    made = make_folder(tmp_path, {"c": ["1.png", "2.png"]})
    (tmp_path / "c" / "2.png").write_bytes(png() + bytes(1000))
    monkeypatch.setattr(image_folder, "LARGEST_IMAGE", 900)
    first, second = rows_of("image_folder", Location(path=str(tmp_path)))
    assert first["image"] == made["c/1.png"]
    assert (second["image"], second["label"]) == (None, None)
    assert second["error"] == f"{tmp_path}/c/2.png: more than 900 bytes, which no image has"


def test_a_directory_that_links_to_itself_is_an_error(tmp_path):
    make_folder(tmp_path, {"ant": ["1.png"], "bee": ["1.png"]})
    (tmp_path / "alias").symlink_to(tmp_path / "bee")  # which is no loop
    assert [row["label"] for row in rows_of("image_folder", Location(path=str(tmp_path)))] == [0, 1, 2]
    (tmp_path / "ant" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"ant/up: is a link to .*, which it lies in itself: .*; remove the link"):
        FORMATS["image_folder"].reader.open_source(Location(path=str(tmp_path)))


def test_a_name_that_is_not_utf_8_is_an_error(tmp_path):
    make_folder(tmp_path, {"ant": ["1.png"]})
    (tmp_path / "ant" / os.fsdecode(b"caf\xe9.png")).write_bytes(png())
    with pytest.raises(DataError, match=r"ant/caf\\udce9\.png': the name is not UTF-8, .*: rename it"):
        FORMATS["image_folder"].reader.open_source(Location(path=str(tmp_path)))
