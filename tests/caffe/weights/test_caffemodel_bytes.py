"""Weight files against those that Caffe wrote: every byte of the binary ones, all contents of the HDF5 ones."""

import h5py
import numpy as np
import pytest

from places import REFERENCE
from sparknet.caffe import CaffeNet
from sparknet.caffe.schema import TRAIN, NetParameter
from sparknet.caffe.weights.caffemodel import read_weights

CAFFE = REFERENCE
BINARY = sorted(path for path in CAFFE.rglob("*.caffemodel") if path.name != "weights_v1.caffemodel")
HDF5 = sorted(CAFFE.rglob("*.caffemodel.h5"))
UNION = CAFFE / "nets/rules/weights.caffemodel"
STATES = [
    ("TRAIN", 0, []),
    ("TEST", 0, []),
    ("TEST", 0, ["deploy", "checked"]),
    ("TRAIN", 0, ["aux"]),
    ("TEST", 0, ["always", "aux"]),
    ("TRAIN", 2, ["linear"]),
    ("TEST", 3, ["linear", "deploy"]),
]


def name_of(path):
    return str(path.relative_to(CAFFE))


def phase_of(path):
    net = NetParameter.FromString(path.read_bytes())
    return "TRAIN" if net.layer[0].phase == TRAIN else "TEST"


def other(phase):
    return "TEST" if phase == "TRAIN" else "TRAIN"


def tree(path):
    found = {}

    def take(name, entry):
        found[name] = (entry.dtype, entry[()]) if isinstance(entry, h5py.Dataset) else None

    with h5py.File(path) as file:
        file.visititems(take)
    return found


def same_tree(one, two):
    first, second = tree(one), tree(two)
    assert first.keys() == second.keys()
    for name, entry in first.items():
        if entry is not None:
            assert entry[0] == second[name][0]
            np.testing.assert_array_equal(entry[1], second[name][1])


def test_what_is_written_from_our_own_description_is_what_caffe_wrote(tmp_path):
    assert len(BINARY) > 120
    for path in BINARY:
        if path == UNION:
            continue
        net = CaffeNet.from_prototxt(path.parent / "net.prototxt", phase_of(path))
        loaded = net.load_weights(path)
        assert (loaded.missing, loaded.unused) == ((), ()), path
        net.save_weights(tmp_path / "written.caffemodel", as_loaded=False)
        assert (tmp_path / "written.caffemodel").read_bytes() == path.read_bytes(), path


def test_one_state_of_the_union_of_states_is_its_beginning(tmp_path):
    net = CaffeNet.from_prototxt(UNION.parent / "net.prototxt", "TRAIN", 0, ["aux"])
    net.load_weights(UNION)
    net.save_weights(tmp_path / "written.caffemodel", as_loaded=False)
    written = (tmp_path / "written.caffemodel").read_bytes()
    assert UNION.read_bytes().startswith(written)
    assert len(NetParameter.FromString(written).layer) == 10  # the file has two more, of another state


def test_reading_and_writing_changes_no_byte_in_the_other_phase(tmp_path):
    for path in BINARY:
        net = CaffeNet.from_prototxt(path.parent / "net.prototxt", other(phase_of(path)))
        net.load_weights(path)
        net.save_weights(tmp_path / "written.caffemodel")
        assert (tmp_path / "written.caffemodel").read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(("phase", "level", "stages"), STATES)
def test_reading_and_writing_changes_no_byte_in_any_state(phase, level, stages, tmp_path):
    net = CaffeNet.from_prototxt(UNION.parent / "net.prototxt", phase, level, stages)
    net.load_weights(UNION)
    net.save_weights(tmp_path / "written.caffemodel")
    assert (tmp_path / "written.caffemodel").read_bytes() == UNION.read_bytes()


def test_the_older_layout_comes_out_as_caffe_writes_the_same_net(tmp_path):
    folder = CAFFE / "nets/legacy_v1"
    net = CaffeNet.from_prototxt(folder / "net.prototxt", "TEST")
    assert net.load_weights(folder / "weights_v1.caffemodel").layers == ("a1", "f1", "f2")
    net.save_weights(tmp_path / "written.caffemodel")
    assert (tmp_path / "written.caffemodel").read_bytes() == (folder / "weights.caffemodel").read_bytes()


@pytest.mark.parametrize("path", HDF5, ids=name_of)
def test_hdf5_holds_what_caffe_wrote(path, tmp_path):
    net = CaffeNet.from_prototxt(path.parent / "net.prototxt", "TRAIN")
    loaded = net.load_weights(path)
    assert not loaded.missing
    net.save_weights(tmp_path / "written.caffemodel.h5")
    # Accuracy exists in both phases there, so the phase does not show
    same_tree(tmp_path / "written.caffemodel.h5", path)


@pytest.mark.parametrize("name", ["lenet_like", "shared_params"])
def test_hdf5_and_binary_hold_the_same(name, tmp_path):
    folder = CAFFE / "nets" / name
    binary = folder / "weights.caffemodel"
    net = CaffeNet.from_prototxt(folder / "net.prototxt", phase_of(binary))
    net.load_weights(folder / "weights.caffemodel.h5")
    net.save_weights(tmp_path / "written.caffemodel")
    assert (tmp_path / "written.caffemodel").read_bytes() == binary.read_bytes()


def test_hdf5_leaves_a_shared_blob_to_its_first_layer():
    blobs = read_weights(CAFFE / "nets/shared_params/weights.caffemodel.h5").blobs
    assert set(blobs["conv_l"]) == {0, 1}
    assert blobs["conv_r"] == blobs["turn_2"] == {}
