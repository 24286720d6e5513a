"""Tar archives of images become rows; damage is a row with an error, whatever it is."""

import io
import itertools
import os
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pytest

from sparknet.data.rows.image_codec import encode_jpeg
from sparknet.data.sources import image_batches, image_tar
from sparknet.data.sources.files import Location
from sparknet.data.storage.place import LOCAL, Place
from sparknet.errors import DataError

JPEG = encode_jpeg(np.zeros((4, 4, 3), np.uint8))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def image(seed, size=300):
    """Bytes that begin as a JPEG and differ by `seed`."""
    return JPEG[:4] + np.random.default_rng(seed).bytes(size - 4)


def tar_bytes(entries):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(entries))
    return path


def write_text(path, labels):
    path.write_text("".join(f"{name} {label}\n" for name, label in labels.items()))
    return path


def where(path, **fields):
    return Location(path=str(path), **fields)


def batches(location):
    return [
        batch
        for unit in image_tar.open_source(location).partitions
        for batch in image_tar.read(unit, location.storage)
    ]


def rows(location):
    return [row for batch in batches(location) for row in batch.to_pylist()]


def good(location):
    found = rows(location)
    assert all(row["error"] is None for row in found)
    return {row["name"]: (row["image"], row["label"]) for row in found}


def errors(location):
    """Errors by name; their rows have neither image nor label."""
    bad = [row for row in rows(location) if row["error"] is not None]
    assert all(row["image"] is None and row["label"] is None for row in bad)
    return {row["name"]: row["error"] for row in bad}


@pytest.fixture
def shards(tmp_path):
    """Two tar files of three images and their label file."""
    images = {f"c{i % 2}/i{i}.JPEG": image(i, 500 + i) for i in range(6)}
    write_tar(tmp_path / "data" / "a.tar", list(images.items())[:3])
    write_tar(tmp_path / "data" / "b.tar", list(images.items())[3:])
    write_text(tmp_path / "data" / "train.txt", {name: number for number, name in enumerate(images)})
    return tmp_path / "data", {name: (data, number) for number, (name, data) in enumerate(images.items())}


@pytest.mark.parametrize("path", ["", "*.tar", "[ab].tar"])
def test_reads_a_directory_and_a_glob(shards, path):
    directory, expected = shards
    assert good(where(directory / path)) == expected
    (first, *_) = batches(where(directory))
    assert first.schema.names == ["name", "image", "label", "error"]
    assert [str(kind) for kind in first.schema.types] == ["string", "binary", "int64", "string"]
    first.validate(full=True)


def test_reads_one_file_and_a_file_uri(shards):
    directory, expected = shards
    third = dict(list(expected.items())[:3])
    assert good(where(directory / "a.tar")) == third
    assert good(where((directory / "a.tar").as_uri())) == third


def test_says_what_the_rows_are_and_which_files_they_come_from(shards):
    directory, _ = shards
    told = image_tar.open_source(where(directory)).schema
    assert (told.encoded, told.classes) == (True, None)
    assert (told.input.name, told.input.dtype, told.input.shape) == ("image", "uint8", ())
    assert (told.label.name, told.label.dtype) == ("label", "int64")
    assert [file.name for file in image_tar.open_source(where(directory)).files] == ["a.tar", "b.tar", "train.txt"]


def test_partitions_are_small_and_travel(shards):
    directory, expected = shards
    units = image_tar.open_source(where(directory)).partitions
    assert len(pickle.dumps(units)) < 600
    again = pickle.loads(pickle.dumps(units))
    assert again == units
    assert sum(batch.num_rows for unit in again for batch in image_tar.read(unit)) == len(expected)


def test_a_standard_directory_has_both_splits(tmp_path):
    write_tar(tmp_path / "ILSVRC2012_img_train" / "train.00000.tar", [("x.JPEG", image(1))])
    write_tar(tmp_path / "ILSVRC2012_img_val" / "val.000.tar", [("x.JPEG", image(2))])
    write_text(tmp_path / "train.txt", {"x.JPEG": 1})
    write_text(tmp_path / "val.txt", {"x.JPEG": 2})
    assert good(where(tmp_path)) == {"x.JPEG": (image(1), 1)}
    assert good(where(tmp_path, split="test")) == {"x.JPEG": (image(2), 2)}
    assert good(where(tmp_path / "ILSVRC2012_img_val", split="test")) == {"x.JPEG": (image(2), 2)}


def test_imagenet_is_read_as_it_is_distributed(tmp_path):
    classes = {f"n{c}.tar": tar_bytes([(f"n{c}_{i}.JPEG", image(10 * c + i)) for i in range(3)]) for c in range(2)}
    write_tar(tmp_path / "ILSVRC2012_img_train.tar", classes.items())
    write_tar(tmp_path / "ILSVRC2012_img_val.tar", [("v.JPEG", image(99))])
    write_text(tmp_path / "train.txt", {f"n{c}/n{c}_{i}.JPEG": c for c in range(2) for i in range(3)})
    write_text(tmp_path / "val.txt", {"v.JPEG": 7})
    train = {f"n{c}_{i}.JPEG": (image(10 * c + i), c) for c in range(2) for i in range(3)}
    assert good(where(tmp_path)) == train
    assert good(where(tmp_path, split="test")) == {"v.JPEG": (image(99), 7)}
    (tmp_path / "ILSVRC2012_img_train.tar").unlink()
    with pytest.raises(DataError, match=r"only ILSVRC2012_img_val.tar; split train needs ILSVRC2012_img_train.tar"):
        image_tar.open_source(where(tmp_path))
    named = where(tmp_path / "ILSVRC2012_img_val.tar", labels=str(tmp_path / "val.txt"))
    assert good(named) == {"v.JPEG": (image(99), 7)}


def test_an_inner_archive_that_is_cut_short_gives_what_it_has(tmp_path):
    inner = tar_bytes([(f"{i}.JPEG", image(i, 700)) for i in range(3)])
    whole = write_tar(tmp_path / "outer.tar", [("inner.tar", inner)])
    whole.write_bytes(whole.read_bytes()[: 512 + 1536 + 700])
    write_text(tmp_path / "train.txt", {f"{i}.JPEG": i for i in range(3)})
    found = rows(where(whole))
    assert [row["name"] for row in found if row["error"] is None] == ["0.JPEG"]
    told = errors(where(whole))
    assert "cut short" in told["inner.tar"]
    assert "cut short: 188 of 700 bytes" in told["1.JPEG"]


def test_labels_are_looked_for_beside_and_above(shards, tmp_path):
    directory, expected = shards
    (directory / "train.txt").rename(tmp_path / "train.txt")
    assert good(where(directory)) == expected
    (tmp_path / "train.txt").rename(tmp_path / "other.txt")
    assert good(where(directory, labels=str(tmp_path / "other.txt"))) == expected
    with pytest.raises(DataError) as error:
        _ = image_tar.open_source(where(directory)).partitions
    for looked in (directory / "train.txt", tmp_path / "train.txt", "set data.labels"):
        assert str(looked) in str(error.value)
    with pytest.raises(DataError, match=r"no label file .*val.txt or .*val.txt"):
        image_tar.open_source(where(directory, split="test"))
    with pytest.raises(DataError, match=r"no label file .*nowhere.txt"):
        _ = image_tar.open_source(where(directory, labels=str(tmp_path / "nowhere.txt"))).partitions


def test_a_changed_label_file_is_read_again(shards):
    directory, expected = shards
    assert good(where(directory)) == expected
    write_text(directory / "train.txt", {name: 5 for name in expected})
    os.utime(directory / "train.txt", ns=(1, 1))
    assert {label for _, label in good(where(directory)).values()} == {5}


def test_the_label_file_is_read_once_in_a_process(shards, monkeypatch):
    directory, expected = shards
    opened = []
    original = Place.open
    monkeypatch.setattr(Place, "open", lambda place: opened.append(place.name) or original(place))
    assert good(where(directory)) == expected
    assert good(where(directory)) == expected
    assert sorted(opened) == ["a.tar", "a.tar", "b.tar", "b.tar", "train.txt"]


def test_what_is_missing_or_compressed_is_refused(shards, tmp_path):
    directory, _ = shards
    with pytest.raises(DataError, match="no such file"):
        image_tar.open_source(where(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no tar files"):
        image_tar.open_source(where(tmp_path / "empty"))
    (directory / "c.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"c.tar.gz: is compressed"):
        _ = image_tar.open_source(where(directory / "c.tar.gz")).partitions


def test_damage_is_rows_with_errors(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("good.JPEG", image(1)),
            ("text.JPEG", b"no image at all"),
            ("empty.jpg", b""),
            ("stranger.png", PNG),
            ("no_suffix", b"labelled, but no image"),
            ("last.JPEG", image(2, 2000)),
        ],
    )
    path.write_bytes(path.read_bytes()[: 512 * 12])
    labels = write_text(
        tmp_path / "train.txt", {name: 3 for name in ("good.JPEG", "text.JPEG", "no_suffix", "last.JPEG")}
    )
    told = errors(where(path))
    assert set(told) == {"text.JPEG", "empty.jpg", "stranger.png", "no_suffix", "last.JPEG"}
    assert told["text.JPEG"] == f"{path}: at offset 1536: text.JPEG: its bytes are no image"
    assert "its bytes are no image" in told["empty.jpg"]
    assert "its bytes are no image" in told["no_suffix"]
    assert told["stranger.png"].endswith(f"no label in {labels}")
    assert "cut short" in told["last.JPEG"]
    assert str(path) in told["last.JPEG"]


def test_links_to_images_are_damaged_rows(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(image(1))
    (tmp_path / "in" / "b.jpg").hardlink_to(tmp_path / "in" / "a.jpg")
    for name, target in (("labelled", "a.jpg"), ("c.PNG", "a.jpg"), ("readme", "a.jpg"), ("more.tar", "x.tar")):
        (tmp_path / "in" / name).symlink_to(target)
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "in", "in")
    labels = write_text(tmp_path / "l.txt", {"a.jpg": 0, "b.jpg": 1, "labelled": 2})
    found = errors(where(path, labels=str(labels)))
    assert set(found) == {"in/b.jpg", "in/labelled", "in/c.PNG", "in/more.tar"}
    assert [row["name"] for row in rows(where(path, labels=str(labels))) if row["image"]] == ["in/a.jpg"]
    assert all(": a link, whose bytes stand elsewhere: pack the file itself" in error for error in found.values())


def test_small_images_between_large_files_do_not_hold_the_pieces_that_they_lie_in(tmp_path, monkeypatch):
    monkeypatch.setattr(image_tar, "_LOCAL_READ_BYTES", 100_000)
    monkeypatch.setattr(image_tar, "_MOST_HELD_BYTES", 500_000)
    entries = [entry for i in range(40) for entry in ((f"{i}.jpg", image(i)), (f"{i}.npy", bytes(150_000)))]
    path = write_tar(tmp_path / "x.tar", entries)
    labels = write_text(tmp_path / "l.txt", {f"{i}.jpg": i for i in range(40)})
    before, most, found = pa.total_allocated_bytes(), 0, []
    for unit in image_tar.open_source(where(path, labels=str(labels))).partitions:
        for batch in image_tar.read(unit):
            most = max(most, pa.total_allocated_bytes() - before)
            found += [(row["name"], row["image"], row["label"]) for row in batch.to_pylist()]
    assert found == [(f"{i}.jpg", image(i), i) for i in range(40)]
    assert most < 900_000  # and not the 4 MB of all pieces


def test_what_is_no_image_by_name_is_passed_over(tmp_path):
    others = [("README.txt", b"text"), ("meta.json", b"{}"), ("no_suffix", b"x"), ("d/._good.JPEG", b"\0\5\x16\7")]
    path = write_tar(tmp_path / "a.tar", [*others, ("good", image(1)), ("also.bin", image(2))])
    write_text(tmp_path / "train.txt", {"good": 1, "also.bin": 2})
    assert good(where(path)) == {"good": (image(1), 1), "also.bin": (image(2), 2)}


def test_garbage_and_empty_files_are_rows_with_errors(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.JPEG", image(1)), ("2.JPEG", image(2))])
    path.write_bytes(path.read_bytes()[:1024] + b"\xff" * 1024 + path.read_bytes()[1024:])
    (tmp_path / "b.tar").write_bytes(b"")
    write_text(tmp_path / "train.txt", {"1.JPEG": 1, "2.JPEG": 2})
    found = rows(where(tmp_path))
    assert [(row["name"], row["label"]) for row in found] == [("1.JPEG", 1), ("", None), ("2.JPEG", 2), ("", None)]
    assert found[1]["error"] == f"{path}: at offset 1024: 1024 bytes without a header: a negative number"
    assert str(tmp_path / "b.tar") in found[3]["error"]


def test_an_absurdly_large_image_is_a_damaged_row(shards, monkeypatch):
    directory, _ = shards
    monkeypatch.setattr(image_tar, "LARGEST_IMAGE", 502)
    assert set(errors(where(directory))) == {"c1/i3.JPEG", "c0/i4.JPEG", "c1/i5.JPEG"}


def test_a_member_that_claims_exabytes_costs_no_memory(shards):
    directory, _ = shards
    path = directory / "a.tar"
    content = bytearray(path.read_bytes())
    content[124:136] = b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    assert "cut short" in errors(where(path))["c0/i0.JPEG"]


def test_a_file_that_became_shorter_is_an_error(shards):
    directory, _ = shards
    (unit, _) = image_tar.open_source(where(directory)).partitions
    os.truncate(directory / "a.tar", 700)
    with pytest.raises(DataError, match=r"a.tar: .*has become shorter"):
        list(image_tar.read(unit))
    (directory / "a.tar").unlink()
    with pytest.raises(DataError, match=r"a.tar"):
        list(image_tar.read(unit))


class Broken(io.RawIOBase):
    """A file on a disk that fails."""

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        return offset

    def readinto(self, buffer):
        raise OSError(5, "Input/output error")


def test_a_disk_that_fails_is_an_error_that_names_the_file(shards, monkeypatch):
    directory, expected = shards
    assert good(where(directory)) == expected  # the label file is known now
    units = image_tar.open_source(where(directory)).partitions
    monkeypatch.setattr(Place, "open", lambda place: io.BufferedReader(Broken()))
    with pytest.raises(DataError, match=r"a.tar: cannot be read: .*Input/output error"):
        list(image_tar.read(units[0]))
    monkeypatch.setattr(image_tar, "_PARTITION_BYTES", 1)
    with pytest.raises(DataError, match=r"a.tar: cannot be read: .*Input/output error"):
        _ = image_tar.open_source(where(directory)).partitions


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("unit_bytes", [1, 3000, 20_000])
def test_units_are_cut_between_members_and_lose_none(tmp_path, monkeypatch, unit_bytes, damaged):
    entries = [(f"{'d/' * (60 * (i % 3))}{i}.JPEG", image(i, 100 + 700 * (i % 4))) for i in range(30)]
    path = write_tar(tmp_path / "a.tar", entries)
    if damaged:
        content = bytearray(path.read_bytes())
        for at in range(5000, len(content) - 4000, 9000):
            content[at // 512 * 512 : at // 512 * 512 + 1024] = b"\xee" * 1024 if at % 2000 else bytes(1024)
        path.write_bytes(content)
    write_text(tmp_path / "train.txt", {f"{i}.JPEG": i for i in range(30)})
    whole = rows(where(path))
    monkeypatch.setattr(image_tar, "_PARTITION_BYTES", unit_bytes)
    units = image_tar.open_source(where(path)).partitions
    assert (units[0].start, units[-1].stop) == (0, path.stat().st_size)
    assert all(one.stop == two.start for one, two in itertools.pairwise(units))
    assert len(units) > 1
    if not damaged:
        assert all(unit.stop - unit.start <= unit_bytes + 6000 for unit in units[:-1])
        assert [row["image"] for row in whole] == [data for _, data in entries]
    else:
        assert any(row["error"] for row in whole)
    assert rows(where(path)) == whole


@pytest.mark.parametrize("batch_bytes", [1, 1200, 1 << 20])
@pytest.mark.parametrize("read_bytes", [512, 1000, 4096])
def test_batches_are_bounded_and_nothing_is_read_twice(shards, monkeypatch, batch_bytes, read_bytes):
    directory, expected = shards
    monkeypatch.setattr(image_batches, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(image_tar, "_LOCAL_READ_BYTES", read_bytes)
    read = []
    original = image_tar._Pieces._fetch

    def fetch(pieces, offset, size):
        known = range(pieces._start, pieces._start + len(pieces._piece))
        original(pieces, offset, size)
        read.append(size - (known.stop - offset if offset in known else 0))

    monkeypatch.setattr(image_tar._Pieces, "_fetch", fetch)
    found = batches(where(directory))
    assert {row["name"]: (row["image"], row["label"]) for batch in found for row in batch.to_pylist()} == expected
    assert all(batch.num_rows == 1 or batch["image"].nbytes <= batch_bytes + 64 for batch in found)
    assert sum(read) <= sum(file.stat().st_size for file in directory.glob("*.tar"))


def test_rows_of_a_batch_are_bounded(shards, monkeypatch):
    directory, _ = shards
    monkeypatch.setattr(image_batches, "_BATCH_ROWS", 2)
    assert [batch.num_rows for batch in batches(where(directory))] == [2, 1, 2, 1]


def test_batches_own_their_bytes(shards):
    """A batch outlives the pieces of the file that it was made of."""
    directory, expected = shards
    (unit, _) = image_tar.open_source(where(directory)).partitions
    kept = list(image_tar.read(unit, LOCAL))
    (directory / "a.tar").write_bytes(bytes(5000))
    assert [row["image"] for batch in kept for row in batch.to_pylist()] == [data for data, _ in expected.values()][
        :3
    ]
