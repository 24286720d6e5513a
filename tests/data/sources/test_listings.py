"""A source is listed once: opening, describing, checking and cutting it are one look at its files."""

import io
from collections import Counter

import pytest

from formats import cifar_directory, random_rows, write_mnist
from image_files import jpeg, write_folder, write_tar
from places import REFERENCE
from s3_server import reach, s3_server
from sparknet.config import Data
from sparknet.data.sources.opening import open_source, open_sources
from sparknet.data.sources.registry import FORMATS
from sparknet.data.storage.place import Place

DATABASES = REFERENCE / "datum" / "databases"


def make_cifar10(directory):
    cifar_directory(directory, rows=4)


def make_mnist(directory):
    directory.mkdir()
    for stem in ("train", "t10k"):
        write_mnist(directory, stem, *random_rows(5, (28, 28)))


def make_lmdb(directory):
    for name in ("a", "b"):
        (directory / name).mkdir(parents=True)
        (directory / name / "data.mdb").write_bytes((DATABASES / "uint8" / "data.mdb").read_bytes())


def make_image_tar(directory):
    for split, labels in (("train", "train.txt"), ("val", "val.txt")):
        for number in range(2):
            write_tar(directory / f"ILSVRC2012_img_{split}" / f"{number}.tar", {f"{number}.jpg": jpeg(number)})
        (directory / labels).write_text("0.jpg 0\n1.jpg 1\n")


def make_image_folder(directory):
    write_folder(directory, {"a": ["1.jpg", "2.jpg"], "b": ["1.jpg", "more/2.jpg"]})


MADE = {
    "cifar10": make_cifar10,
    "mnist": make_mnist,
    "lmdb": make_lmdb,
    "image_tar": make_image_tar,
    "image_folder": make_image_folder,
}


def test_every_format_with_files_is_made_here():
    """But those that a list names, which lists no directory: test_image_list.py and test_hdf5.py."""
    assert set(MADE) == {
        name for name, form in FORMATS.items() if form.reader and form.has_path and not form.has_root
    }


def ask_everything(data):
    """Open both sides and ask all that a run asks of them; gives how many rows there are to read."""
    sources = open_sources(data)
    for side in sources.sides:
        assert side.schema(data).input.shape
        assert side.listed.files
        assert side.column_plan(data, "image").name == "image"
    parts = [(side, part) for side in sources.sides for part in side.listed.partitions]
    return sum(batch.num_rows for side, part in parts for batch in side.reader.read(part, side.where.storage))


@pytest.fixture
def listed(monkeypatch):
    """How often each directory was listed."""
    count, files = Counter(), Place.files

    def record(place, *arguments, **options):
        count[place.uri] += 1
        return files(place, *arguments, **options)

    monkeypatch.setattr(Place, "files", record)
    return count


@pytest.mark.parametrize("kind", MADE)
def test_a_directory_is_listed_once(kind, tmp_path, listed):
    path = tmp_path / "rows"
    MADE[kind](path)
    validation = tmp_path / "held"
    MADE[kind](validation)
    listed.clear()
    assert ask_everything(Data(source=kind, path=str(path), validation_path=str(validation)))
    assert listed
    assert max(listed.values()) == 1, listed


def test_a_tree_that_is_both_sides_numbers_its_own_classes(tmp_path, listed):
    make_image_folder(tmp_path)
    data = Data(source="image_folder", path=str(tmp_path), validation_path=str(tmp_path))
    assert open_source(data, validation=True).listed.schema.class_names == ("a", "b")
    assert listed == {str(tmp_path): 1}


@pytest.mark.parametrize("kind", MADE)
def test_an_object_store_is_asked_for_each_listing_once(kind, tmp_path, monkeypatch):
    MADE[kind](tmp_path / "rows")
    MADE[kind](tmp_path / "held")
    with s3_server("bucket") as server:
        reach(server, monkeypatch)
        for file in (file for file in tmp_path.rglob("*") if file.is_file()):
            server.client().upload_fileobj(io.BytesIO(file.read_bytes()), "bucket", str(file.relative_to(tmp_path)))
        server.requests.clear()
        roots = {"path": "s3://bucket/rows", "validation_path": "s3://bucket/held"}
        assert ask_everything(Data(source=kind, s3_endpoint=server.endpoint, **roots))
        paths = [request.path for request in server.requests if "list-type=2" in request.path]
    # One key is asked for to see whether there is such a directory; the others list it.
    listings = Counter(path for path in paths if "max-keys=1&" not in path)
    assert len(listings) == 2, "one for each side"
    assert max(listings.values()) == 1, listings
