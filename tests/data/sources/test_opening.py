"""From settings to an opened source: what is found at once, what the rows will be, and what is refused."""

from dataclasses import replace

import pytest

from formats import cifar_directory
from image_files import jpeg, write_folder, write_tar
from places import REFERENCE
from sparknet.config import Data, Windows
from sparknet.data.rows.columns import MOST_CLASSES
from sparknet.data.sources.opening import open_source, open_sources
from sparknet.data.sources.registry import FORMATS
from sparknet.errors import ConfigError, DataError

DATABASES = REFERENCE / "datum" / "databases"


def at(path, source="cifar10", **settings):
    settings = settings if "validation_path" in settings else {"validation_fraction": 0.5, **settings}
    return Data(source=source, path=str(path), **settings)


@pytest.mark.parametrize("source", [name for name, form in FORMATS.items() if form.has_path])
def test_a_path_that_is_not_there_is_found_at_once(source, tmp_path):
    more = {"windows": Windows(size=8)} if FORMATS[source].has_windows else {}
    with pytest.raises(DataError, match="nothing"):
        open_source(at(tmp_path / "nothing", source, **more))


@pytest.mark.parametrize("path", ["s3a://bucket/x.csv", "hdfs://host/x.csv", "s3://bucket/*.csv", "/no/such/*.csv"])
def test_globs_and_remote_tables_are_left_to_spark(path):
    assert open_source(at(path, "csv")).source is None


def test_a_source_that_is_no_format():
    with pytest.raises(ConfigError, match=r"data\.source is 'cifar'; .*did you mean 'cifar10'\?"):
        open_source(at("x", "cifar"))
    with pytest.raises(ConfigError, match=r"data\.path is ''; source mnist needs it"):
        open_source(at("", "mnist"))
    with pytest.raises(ConfigError, match=r"data\.path is 'x'; digits comes without files"):
        open_source(at("x", "digits"))
    with pytest.raises(ConfigError, match=r"source lmdb has its labels with its rows"):
        open_source(at("x", "lmdb", labels="train.txt"))
    with pytest.raises(ConfigError, match=r"data\.features is \['a'\]; source lmdb has one input"):
        open_source(at("x", "lmdb", features=("a",)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image": "pixels"}, r"column pixels is not in the data, which has image, label: set data\.image"),
        ({"label": "y"}, r"column y is not in the data, which has image, label: set data\.label"),
        ({"validation_column": "held"}, r"column held is not in the data"),
    ],
)
def test_columns_that_a_format_of_ours_has_not(settings, words):
    settings = {"validation_fraction": 0.0 if "validation_column" in settings else 0.2, **settings}
    with pytest.raises(DataError, match=words):
        open_source(Data(source="digits", **settings))


def test_a_second_source_needs_a_path():
    with pytest.raises(DataError, match=r"data\.validation_path is ''; a second source needs one"):
        open_source(Data(source="digits", validation_fraction=0.1), validation=True)


def test_the_two_sides_of_a_run(tmp_path):
    for side, number in (("t", 3), ("v", 4)):
        write_tar(tmp_path / side / "a.tar", {"x.jpg": jpeg(number)})
        (tmp_path / f"{side}.txt").write_text("x.jpg 0\n")
    data = at(
        tmp_path / "t",
        "image_tar",
        labels=str(tmp_path / "t.txt"),
        validation_path=str(tmp_path / "v"),
        validation_labels=str(tmp_path / "v.txt"),
        s3_endpoint="http://h:1",
    )
    sources = open_sources(data)
    assert [side.where.split for side in sources.sides] == ["train", "test"]
    assert [[file.name for file in side.listed.files] for side in sources.sides] == [
        ["a.tar", "t.txt"],
        ["a.tar", "v.txt"],
    ]
    assert {side.where.storage.s3_endpoint for side in sources.sides} == {"http://h:1"}


def test_the_training_images_number_the_classes(tmp_path):
    write_folder(tmp_path / "train", {"a": ["1.jpg"], "b": ["1.jpg"], "c": ["1.jpg"]})
    write_folder(tmp_path / "val", {"c": ["1.jpg"]})
    data = at(tmp_path / "train", "image_folder", validation_path=str(tmp_path / "val"))
    for validation in (open_sources(data).validation, open_source(data, validation=True)):
        assert validation.listed.schema.class_names == ("a", "b", "c")
        assert validation.listed.partitions[0].labels == (2,)


def test_the_first_whole_image_tells_the_size_of_all(tmp_path):
    write_folder(tmp_path / "images", {"a": ["1.jpg", "2.jpg"]})
    (tmp_path / "images" / "a" / "0.jpg").write_bytes(jpeg(1)[:40])
    data = at(tmp_path / "images", "image_folder")
    opened = open_source(data)
    assert opened.schema(data).input.shape == (3, 4, 6)
    assert opened.schema(replace(data, resize=(8, 9))).input.shape == (3, 8, 9)
    assert not opened.schema(data).encoded
    assert opened.schema(replace(data, keep="encoded")).encoded, "what is kept as files can be asked for"
    write_tar(tmp_path / "tar" / "ILSVRC2012_img_val" / "a.tar", {"x.jpg": jpeg(2)})
    (tmp_path / "tar" / "val.txt").write_text("x.jpg 1\n")
    held_out = at(tmp_path / "tar", "image_tar", validation_path=str(tmp_path / "tar"))
    opened = open_source(held_out, validation=True)
    assert opened.schema(held_out).input.shape == (3, 4, 6), "there are no training rows"


def test_files_behind_a_source(tmp_path):
    cifar_directory(tmp_path, rows=4)
    opened = open_source(at(tmp_path, validation_path=str(tmp_path)), validation=True)
    assert [file.name for file in opened.listed.files] == ["test_batch.bin"]
    (only,) = open_source(at(DATABASES / "float", "lmdb")).listed.files
    assert (only.name, only.bytes) == ("data.mdb", 32768)


def expected(data):
    rows = open_source(data).schema(data)
    return rows and (rows.input.name, rows.input.dtype, rows.input.shape, rows.label_bound)


def test_what_will_come_of_a_source(tmp_path):
    cifar_directory(tmp_path / "cifar", rows=4)
    write_folder(tmp_path / "folder", {"a": ["1.jpg"], "b": ["1.jpg"], "c": ["1.jpg"]})
    write_tar(tmp_path / "a.tar", {"n1.jpg": jpeg(1)})
    (tmp_path / "train.txt").write_text("n1.jpg 0\n")
    (tmp_path / "x.csv").touch()
    folder, tar = at(tmp_path / "folder", "image_folder"), at(tmp_path / "a.tar", "image_tar")
    assert expected(at(tmp_path / "cifar")) == ("image", "uint8", (3, 32, 32), 10)
    assert expected(Data(source="digits", validation_fraction=0.1)) == ("image", "uint8", (1, 8, 8), 10)
    assert expected(at(DATABASES / "uint8", "lmdb")) == ("image", "uint8", (3, 12, 10), MOST_CLASSES)
    assert expected(at(DATABASES / "float", "lmdb", classes=7)) == ("image", "float32", (2, 6, 7), 7)
    assert expected(folder) == ("image", "uint8", (3, 4, 6), 3)
    assert expected(replace(folder, resize=(8, 9))) == ("image", "uint8", (3, 8, 9), 3)
    assert expected(tar) == ("image", "uint8", (3, 4, 6), MOST_CLASSES)
    assert expected(replace(tar, resize=(8, 9))) == ("image", "uint8", (3, 8, 9), MOST_CLASSES)
    assert expected(replace(tar, shape=(1, 8, 9), resize=(8, 9))) == ("image", "uint8", (1, 8, 9), MOST_CLASSES)
    table = at(tmp_path / "x.csv", "csv")
    assert expected(table) is None
    assert expected(replace(table, shape=(14,), classes=2)) == ("image", "float32", (14,), 2)
