"""Nets whose layers share a name or have none: built, trained, saved and loaded as net.cpp does."""

import numpy as np
import pytest
import torch

from sparknet.caffe import CaffeNet, CaffeSolver, NetSpec
from sparknet.caffe.weights.caffemodel import read_weights
from sparknet.errors import NetError

INPUT = 'layer { top: "x" type: "Input" input_param { shape { dim: 2 dim: 3 } } }\n'


def ip(name: str, bottom: str, top: str, outputs: int = 3) -> str:
    name = f'name: "{name}"' if name else ""
    return (
        f'layer {{ {name} type: "InnerProduct" bottom: "{bottom}" top: "{top}" '
        f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }} }}\n'
    )


def net(text: str) -> CaffeNet:
    return CaffeNet.from_prototxt(text, "TRAIN")


@pytest.mark.parametrize("name", ["p", ""])
def test_both_layers_learn_and_are_written_and_the_first_takes_the_last_ones_blobs(name, tmp_path, caplog):
    """CopyTrainedLayersFrom looks for the name of each of the file's layers from the front of the net."""
    text = INPUT + ip(name, "x", "a") + f'layer {{ name: "{name}" type: "ReLU" bottom: "a" top: "a" }}\n'
    text += ip(name, "a", "b")
    made = net(text)
    assert f"layer '{name}' (InnerProduct): a layer before it has the same name" in caplog.messages[0]
    assert len(made.learnable) == 4
    made.save_weights(tmp_path / "w.caffemodel", as_loaded=False)
    layers = read_weights(tmp_path / "w.caffemodel").description.layer
    assert [layer.type for layer in layers] == ["Input", "InnerProduct", "ReLU", "InnerProduct"]
    (first, second) = [blobs for _, blobs in made.layer_blobs() if blobs]
    other = net(text)
    kept = [blob.detach().clone() for _, blobs in other.layer_blobs() for blob in blobs][2:]
    loaded = other.load_weights(tmp_path / "w.caffemodel")
    assert (loaded.layers, loaded.missing, loaded.unused) == ((name,), (), ())
    found = [blob for _, blobs in other.layer_blobs() for blob in blobs]
    assert all(torch.equal(one, two) for one, two in zip(found, [*second, *kept], strict=True))
    assert not torch.equal(found[0], first[0])


def test_every_layer_of_a_file_has_its_own_blobs(tmp_path):
    made = net(INPUT + ip("p", "x", "a") + ip("p", "a", "b") + ip("q", "b", "c"))
    made.save_weights(tmp_path / "w.caffemodel")
    data = (tmp_path / "w.caffemodel").read_bytes()
    for _, blobs in made.layer_blobs():
        assert data.count(blobs[0].detach().numpy().tobytes()) == 1


def test_blobs_of_another_shape_do_not_fit_the_first_layer(tmp_path):
    text = INPUT + ip("p", "x", "a", 6) + ip("p", "a", "b", 6)
    made = net(text)
    made.save_weights(tmp_path / "w.caffemodel")
    with pytest.raises(NetError, match=r"layer 'p', blob 0: expected shape \(6, 3\), got \(6, 6\)"):
        net(text).load_weights(tmp_path / "w.caffemodel")
    with pytest.raises(NetError, match=r"layer 'p': expected shape \(6, 3\), got \(6, 6\)"):
        net(text).share_weights(made)


def test_a_test_net_shares_the_last_layers_tensors_in_its_first(tmp_path):
    """ShareTrainedLayersWith looks for each layer of the training net from the front of the other."""
    spec = NetSpec.from_prototxt(INPUT + ip("p", "x", "a") + ip("p", "a", "b"))
    train, test = CaffeNet(spec, "TRAIN"), CaffeNet(spec, "TEST")
    test.share_weights(train)
    theirs, mine = ([blobs[0] for _, blobs in one.layer_blobs()] for one in (train, test))
    assert mine[0] is theirs[1]
    assert mine[1] is not theirs[0]
    assert mine[1] is not theirs[1]


def test_hdf5_cannot_tell_them_apart(tmp_path):
    made = net(INPUT.replace("{", '{ name: "x"', 1) + ip("p", "x", "a") + ip("p", "a", "b"))
    with pytest.raises(NetError, match=r"2 layers with blobs are named 'p'.*rename them, or write a \.caffemodel"):
        made.save_weights(tmp_path / "w.h5")


def test_a_solver_trains_layers_without_names_and_losses_without_tops(tmp_path):
    text = INPUT.replace("top:", 'top: "y" top:', 1) + ip("", "x", "a") + ip("", "a", "b")
    text += 'layer { type: "EuclideanLoss" bottom: "b" bottom: "y" }\n' * 3
    (tmp_path / "net.prototxt").write_text(text)
    (tmp_path / "solver.prototxt").write_text('net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1')
    solver = CaffeSolver.from_prototxt(tmp_path / "solver.prototxt")
    before = [blob.tensor.detach().clone() for blob in solver.net.learnable]
    batch = {name: np.random.default_rng(1).random((2, 3), np.float32) for name in "xy"}
    assert solver.step([batch]) != solver.step([batch])
    assert not any(torch.equal(one, two.tensor) for one, two in zip(before, solver.net.learnable, strict=True))
    model, _ = solver.snapshot(str(tmp_path / "s"))
    assert len(read_weights(model).description.layer) == 6 + 2  # with the Splits of a and b... of y
