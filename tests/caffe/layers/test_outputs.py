"""HDF5Output: what it writes, when, and where it may not."""

import h5py
import numpy as np
import pytest
import torch

from image_rows import image_rows
from one_layer import fault
from sparknet.caffe import CaffeNet, export
from sparknet.caffe.summary import summarise
from sparknet.config import Net
from sparknet.errors import NetError
from sparknet.training.objectives.build_objective import build_objective, build_test_objective
from sparknet.training.objectives.recipe import Recipe

NET = """
name: "features"
layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "out" type: "HDF5Output" bottom: "ip" bottom: "label" hdf5_output_param { file_name: "%s" } %s }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "features.h5"


def net_of(path, rule="", **options):
    return CaffeNet.from_prototxt(NET % (path, rule), **options)


def inputs(rows=4):
    return {"data": torch.randn(rows, 3), "label": torch.arange(rows) % 2}


def arrays(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def test_the_first_pass_is_what_caffe_writes(path):
    net, given = net_of(path), inputs()
    expected = net(given, ["ip"])["ip"].detach().numpy()
    found = arrays(path)
    assert set(found) == {"data", "label"}
    # four axes, whatever the blobs have
    assert found["data"].shape == (4, 2, 1, 1)
    assert found["label"].shape == (4, 1, 1, 1)
    assert found["data"].dtype == found["label"].dtype == np.float32
    np.testing.assert_array_equal(found["data"][:, :, 0, 0], expected)
    assert found["label"].ravel().tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_later_passes_add_their_rows(path, dtype):
    net = net_of(path).to(dtype)
    passes = [net(inputs(rows), ["ip"])["ip"] for rows in (4, 4, 2)]
    found = arrays(path)["data"]
    assert found.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    np.testing.assert_array_equal(found[:, :, 0, 0], torch.cat(passes).detach().numpy())


def test_building_writes_nothing_and_another_net_writes_anew(path):
    path.write_text("of before")
    net = net_of(path)
    assert summarise(net).parameters == 8
    assert path.read_text() == "of before"
    net(inputs())
    net_of(path)(inputs(3))
    assert len(arrays(path)["data"]) == 3


def test_it_changes_no_gradient_and_no_output(path):
    net, plain = net_of(path, phase="TRAIN"), net_of(path, "include { phase: TEST }", phase="TRAIN")
    plain.set_weights(net.weights())
    given = inputs()
    for one in (net, plain):
        outputs = one(given)
        assert set(outputs) == {"loss"}
        one.loss(outputs).backward()
    torch.testing.assert_close(net.get_parameter("ip.weight").grad, plain.get_parameter("ip.weight").grad)


def test_faults(path):
    text = 'type: "HDF5Output" hdf5_output_param { file_name: "x.h5" }'
    assert "file_name is empty; give the file" in fault('type: "HDF5Output"', (2, 3), (2,))
    assert "expected as many rows in both" in fault(text, (2, 3), (3,))
    assert "has shape (2, 1, 1, 1, 1); the file holds one to four axes" in fault(text, (2, 1, 1, 1, 1), (2,))
    with pytest.raises(NetError, match=r"layer 'out' \(HDF5Output\).*nowhere.*cannot be written as HDF5: .*folder"):
        net_of(path.parent / "nowhere" / "x.h5")(inputs())
    # a file that another process cut short
    net = net_of(path)
    net(inputs())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NetError, match="cannot be written as HDF5"):
        net(inputs())


def test_an_onnx_file_does_not_hold_it(path):
    with pytest.raises(NetError, match=r"'out' \(HDF5Output\) cannot be written as ONNX: it writes a file"):
        export.export(net_of(path), path.with_suffix(".onnx"))


def test_runs_refuse_it_in_either_phase_and_take_a_net_without_it(path):
    rows = image_rows((3,), dtype="float32", classes=2)

    def recipe(rule=""):
        return Recipe.read(Net(prototxt=NET % (path, rule)))

    for rule in ("", "include { phase: TRAIN }", "include { phase: TEST }"):
        with pytest.raises(NetError, match=r"layer 'out' \(HDF5Output\) writes a file, and workers .* exclude"):
            build_objective(recipe(rule), rows, batch_size=4, seed=1)
    with pytest.raises(NetError, match="writes a file"):
        build_test_objective(recipe(), rows)
    build_test_objective(recipe("include { phase: TRAIN }"), rows)
    build_objective(recipe('include { stage: "features" }'), rows, batch_size=4, seed=1)
    assert not path.exists()
