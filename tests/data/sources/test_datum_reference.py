"""LMDB databases as the real Caffe wrote them, and the batches that its Data layer made of them."""

from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest

from opened import opened
from places import REFERENCE
from sparknet.caffe.layers import input_blobs
from sparknet.caffe.prototxt import parse_text
from sparknet.caffe.schema import Datum, LayerParameter, NetParameter
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.loading.transform import Normalise
from sparknet.data.sources import lmdb as lmdb_source
from sparknet.data.sources.datum import parse, write
from sparknet.data.sources.lmdb import read
from sparknet.data.storage.place import LOCAL
from sparknet.training.objectives.input_binding import transform_of
from sparknet.training.objectives.preprocessing import mean_in_file

ROOT = REFERENCE / "datum"
SHAPES = {"uint8": (3, 12, 10), "float": (2, 6, 7)}
TOLERANCE = 1e-6
CASES = {  # the phase in which Caffe ran each
    "float_test": "TEST",
    "float_train": "TRAIN",
    "test_crop_mean_value_scale": "TEST",
    "test_crop_odd": "TEST",
    "test_mean_file_crop": "TEST",
    "test_plain": "TEST",
    "train_mean_file": "TRAIN",
    "train_mean_value_scale": "TRAIN",
}


def records(name: str) -> tuple[np.ndarray, np.ndarray]:
    """What Caffe's databases hold: values [40, channels, height, width] and labels [40]."""
    with np.load(ROOT / "databases" / "records.npz") as arrays:
        return arrays[f"{name}/data"], arrays[f"{name}/label"]


def rows_read(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, values and labels as our reader gives them."""
    source = opened(lmdb_source, path)
    kind = source.schema.input
    batches = [batch for unit in source.partitions for batch in read(unit, LOCAL)]
    cells = [cell.as_py() for batch in batches for cell in batch.column("image")]
    assert all(batch.column("error").null_count == batch.num_rows for batch in batches)
    values = [
        np.frombuffer(cell, np.uint8) if kind.dtype == "uint8" else np.array(cell, np.float32) for cell in cells
    ]
    labels = [label for batch in batches for label in batch.column("label").to_pylist()]
    keys = [key for batch in batches for key in batch.column("name").to_pylist()]
    return keys, np.stack(values).reshape(-1, *kind.shape), np.array(labels)


def stored(path: Path) -> list[tuple[bytes, bytes]]:
    """Keys and values, as the library reads them."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return list(transaction.cursor())


@pytest.mark.parametrize("name", SHAPES)
def test_caffes_databases_are_read_exactly(name):
    keys, values, labels = rows_read(ROOT / "databases" / name)
    expected, expected_labels = records(name)
    assert keys == [f"{row:08d}" for row in range(40)]
    assert values.shape == (40, *SHAPES[name])
    assert values.dtype == expected.dtype
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(labels, expected_labels)


def data_layer(case: str) -> LayerParameter:
    text = (ROOT / case / "net.prototxt").read_text()
    (layer,) = parse_text(text, NetParameter).message.layer
    assert layer.type == "Data"
    return layer


def normalise(layer: LayerParameter, *, phase: str, shape: tuple[int, ...], folder: Path) -> Normalise:
    """The preprocessing of a layer, derived as for a run; its mean_file is relative to the case."""
    blob = input_blobs(layer)[0]
    if blob.transform.mean_file:
        mean_file = str(folder / blob.transform.mean_file)
        blob = replace(blob, transform=replace(blob.transform, mean_file=mean_file))
    said = transform_of(blob, phase)
    assert said is not None
    return replace(said.normalise, mean=mean_in_file(said, shape))


def test_every_case_is_listed():
    assert {path.parent.name for path in ROOT.glob("*/net.prototxt")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_that_caffe_delivered(case):
    layer = data_layer(case)
    _, values, labels = rows_read(ROOT / case / layer.data_param.source)
    transform = normalise(layer, phase=CASES[case], shape=values.shape[1:], folder=ROOT / case)
    with np.load(ROOT / case / "delivered.npz") as arrays:
        delivered = dict(arrays)
    size, count = layer.data_param.batch_size, len(delivered) // 2
    assert count * size > len(values), "the last batch wraps round"
    for batch in range(count):
        rows = np.arange(batch * size, (batch + 1) * size) % len(values)
        data, expected = transform(values[rows]), delivered[f"{batch + 1}/data"]
        assert data.shape == expected.shape
        assert np.abs(data - expected).max() <= TOLERANCE * np.abs(expected).max()
        np.testing.assert_array_equal(labels[rows], delivered[f"{batch + 1}/label"])


@pytest.mark.parametrize("name", SHAPES)
def test_a_database_written_here_holds_caffes_bytes(tmp_path, name):
    values, labels = records(name)
    with DatabaseWriter(tmp_path / "db") as writer:
        for row, label in zip(values, labels, strict=True):
            content = {"data": row.tobytes()} if name == "uint8" else {"float_data": row}
            writer.append(write(shape=SHAPES[name], label=int(label), **content))
    assert stored(tmp_path / "db") == stored(ROOT / "databases" / name)


@pytest.mark.parametrize("name", SHAPES)
def test_caffes_records_are_what_protobuf_reads(name):
    for _, value in stored(ROOT / "databases" / name):
        ours, theirs = parse(value), Datum.FromString(value)
        assert ours.shape == (theirs.channels, theirs.height, theirs.width) == SHAPES[name]
        assert (bytes(ours.data), ours.label, ours.encoded) == (theirs.data, theirs.label, theirs.encoded)
        floats = ours.float_data if ours.float_data is not None else np.empty(0)
        np.testing.assert_array_equal(floats, np.array(theirs.float_data, np.float32))
