"""The manifest: written and read back equal; a damaged one is refused with its file and the remedy."""

import json
from dataclasses import replace

import numpy as np
import pytest

from a_manifest import MANIFEST
from sparknet.data.rows.columns import ImageForm
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.data.shards.manifest import Manifest, save_mean_image
from sparknet.data.storage.fingerprint import describe_files, fingerprint
from sparknet.errors import ConfigError, DataError

IMAGE, LABEL = MANIFEST.columns


def test_round_trip(tmp_path):
    path = MANIFEST.save(tmp_path)
    assert path == tmp_path / "manifest.json"
    assert Manifest.load(tmp_path) == MANIFEST
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_encoded_images_words_and_what_was_left_out_survive(tmp_path):
    manifest = replace(
        MANIFEST,
        columns=(
            replace(IMAGE, column=replace(IMAGE.column, image=ImageForm(order="bgr", resize_mode="shorter_side"))),
            LABEL,
        ),
        table=TableEncoding(
            features=(Feature(name="colour", words=("blue", "red"), width=2), Feature(name="size")),
            categories={"label": Category(words=("cat", "dog"))},
        ),
        skipped=3,
        skipped_examples=("row 7 of partition 0: the JPEG of 10 bytes is cut short", "key 00000012: no Datum"),
    )
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    assert MANIFEST.table is None
    assert MANIFEST.skipped == 0


def test_what_it_says():
    assert (MANIFEST.train_rows, MANIFEST.validation_rows) == (7, 2)
    assert [column.name for column in MANIFEST.rows.columns] == ["image", "label"]


def test_tables_are_those_of_the_shards(tmp_path):
    assert len(MANIFEST.train_table(tmp_path)) == 7
    assert MANIFEST.validation_table(tmp_path).shard_rows == (2,)


def test_label_counts_must_fit():
    with pytest.raises(ConfigError, match="column label has 3 counts of 6 values; it must have 3 counts of 7"):
        replace(MANIFEST, columns=(IMAGE, replace(LABEL, counts=(3, 0, 3))))


def changed(**keys):
    def change(path):
        values = json.loads(path.read_text())
        for key, value in keys.items():
            if value is None:
                del values[key]
            else:
                values[key] = value
        path.write_text(json.dumps(values))

    return change


DAMAGE = {
    "missing": (lambda path: path.unlink(), "cannot be read: no such file"),
    "truncated": (lambda path: path.write_text(path.read_text()[:50]), "cannot be read"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "no table": (lambda path: path.write_text("[1]"), "version None; this release reads 5"),
    "other version": (changed(version=1), "version 1; this release reads 5"),
    "missing key": (changed(inputs=None), "damaged: inputs is missing"),
    "unknown key": (changed(colour="red"), "damaged: colour is not a known key"),
    "wrong type": (changed(seed="x"), "damaged: seed is 'x'"),
    "contradiction": (changed(targets=["other"]), r"damaged: columns are \['image', 'label'\]; inputs, targets"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(tmp_path, damage):
    spoil, message = DAMAGE[damage]
    spoil(MANIFEST.save(tmp_path))
    with pytest.raises(DataError, match=rf"manifest.json: {message}.*delete .* to prepare the data again"):
        Manifest.load(tmp_path)


def test_mean_image(tmp_path):
    mean = np.arange(12, dtype=np.float64).reshape(3, 2, 2)
    save_mean_image(tmp_path, 0, mean)
    loaded = IMAGE.load_mean_image(tmp_path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, mean)


def test_damaged_mean_image(tmp_path):
    with pytest.raises(DataError, match=r"mean-0.npy: cannot be read: .*delete"):
        IMAGE.load_mean_image(tmp_path)
    save_mean_image(tmp_path, 0, np.zeros((3, 2)))
    with pytest.raises(DataError, match=r"float32 of shape \(3, 2\); the manifest says float32 of \(3, 2, 2\)"):
        IMAGE.load_mean_image(tmp_path)
    (tmp_path / "mean-0.npy").write_bytes((tmp_path / "mean-0.npy").read_bytes()[:90])
    with pytest.raises(DataError, match=r"mean-0.npy: cannot be read"):
        IMAGE.load_mean_image(tmp_path)


def test_fingerprint_depends_on_values_not_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 64


def test_files_are_described_by_name_size_and_time(tmp_path):
    (tmp_path / "b").write_bytes(b"xyz")
    (tmp_path / "a").write_bytes(b"")
    described = describe_files([tmp_path / "b", tmp_path / "a", tmp_path / "b"])
    assert [entry[:2] for entry in described] == [[str(tmp_path / "a"), 0], [str(tmp_path / "b"), 3]]
    with pytest.raises(DataError, match=r"c: cannot be reached: .*restore the file"):
        describe_files([tmp_path / "c"])


@pytest.mark.parametrize("path", ["../other.arrow", "/etc/passwd", "draft/../../x.arrow", ""])
@pytest.mark.parametrize("of", ["train", "validation", "mean"])
def test_a_path_that_leads_out_of_the_directory(tmp_path, path, of):
    values = json.loads(MANIFEST.save(tmp_path).read_text())
    if of == "mean":
        values["columns"][0]["mean_image"] = path or "/mean"
    else:
        values[of][0]["path"] = path
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"damaged: .*it must be relative to the manifest's directory, without"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("digest", ["ab" * 31, "AB" * 32, "../" + "a" * 61, "g" * 64])
def test_a_checksum_that_is_none(tmp_path, digest):
    values = json.loads(MANIFEST.save(tmp_path).read_text())
    values["train"][1]["sha256"] = digest
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"damaged: .*train-00001\.arrow is .*; it must be 64 hexadecimal digits"):
        Manifest.load(tmp_path)
