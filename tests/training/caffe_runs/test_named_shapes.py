"""Shapes that a net's file does not tell, from the rows that its data layers name."""

import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from sparknet.caffe import CaffeNet, NetSpec
from sparknet.config import Data
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources.datum import write
from sparknet.data.sources.opening import open_sources
from sparknet.errors import DataError
from sparknet.training.caffe_runs.named_shapes import named_shapes

NET = """
layer { name: "images" type: "Data" top: "data" data_param { source: "images" batch_size: 4 backend: LMDB }
  transform_param { crop_size: 3 } }
layer { name: "goals" type: "HDF5Data" top: "goal" hdf5_data_param { source: "goals.txt" batch_size: 4 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "goal" top: "loss" }
"""


@pytest.fixture
def spec(tmp_path: Path) -> NetSpec:
    with DatabaseWriter(tmp_path / "images") as writer:
        writer.append(write(shape=(1, 4, 5), data=bytes(20), label=0, encoded=False), "")
    with h5py.File(tmp_path / "goals.h5", "w") as file:
        file["goal"] = np.zeros((1, 2), np.float32)
    (tmp_path / "goals.txt").write_text("goals.h5\n")
    (tmp_path / "net.prototxt").write_text(NET)
    return NetSpec.from_prototxt(tmp_path / "net.prototxt")


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_they_are_those_of_the_rows_behind_the_layers_own_cut(spec: NetSpec, tmp_path: Path, phase) -> None:
    shapes = named_shapes(spec, phase, tmp_path)
    assert shapes == {"data": (4, 1, 3, 3), "goal": (4, 2)}
    assert CaffeNet(spec, phase, input_shapes=shapes).shapes["ip"] == (4, 2)


def test_what_is_given_wins_and_tells_the_others_their_rows(spec: NetSpec, tmp_path: Path) -> None:
    assert named_shapes(spec, "TEST", tmp_path, given={"data": (7, 1, 3, 3)}) == {
        "data": (7, 1, 3, 3),
        "goal": (7, 2),
    }


@pytest.mark.parametrize(
    ("stored", "said", "channels"),
    [(1, "", 1), (3, "", 3), (4, "", 4), (1, "force_color: true", 3), (4, "force_gray: true", 1)],
)
def test_encoded_images_have_the_channels_of_their_files(
    spec: NetSpec, tmp_path: Path, stored, said, channels
) -> None:
    image = cv2.imencode(".png", np.zeros((4, 5, stored), np.uint8))[1].tobytes()
    shutil.rmtree(tmp_path / "images")
    with DatabaseWriter(tmp_path / "images") as writer:
        writer.append(write(data=image, label=0, encoded=True), "")
    spec = NetSpec.from_text(NET.replace("crop_size: 3", said), str(tmp_path / "net.prototxt"))
    assert named_shapes(spec, "TRAIN", tmp_path)["data"] == (4, channels, 4, 5)


def test_deep_images_are_refused_as_caffe_refuses_them(spec: NetSpec, tmp_path: Path) -> None:
    image = cv2.imencode(".png", np.zeros((4, 5), np.uint16))[1].tobytes()
    shutil.rmtree(tmp_path / "images")
    with DatabaseWriter(tmp_path / "images") as writer:
        writer.append(write(data=image, label=0, encoded=True), "")
    data = Data(source="lmdb", path=str(tmp_path / "images"), validation_fraction=0.5, channels="stored")
    with pytest.raises(
        DataError, match=r"images: the first image has 16 bits; .* it must have 8: convert the images"
    ):
        open_sources(data).schema(data)


def test_a_net_of_somebody_elses_files_tells_none(spec: NetSpec, tmp_path: Path) -> None:
    (tmp_path / "goals.txt").unlink()
    assert named_shapes(spec, "TEST", tmp_path) == {}


def test_nothing_is_opened_where_the_file_tells_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = NetSpec.from_prototxt(
        'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: 2 dim: 3 } } }'
    )
    monkeypatch.setattr("sparknet.training.caffe_runs.named_shapes.open_sources", None)
    assert named_shapes(spec, "TEST", tmp_path) == {}
