"""Weight files: every layout that is read, what fits a net, what is written, and every way of being broken."""

import copy
import pickle
import resource
import struct
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from google.protobuf.message import DecodeError

from sparknet.caffe import CaffeNet, NetSpec
from sparknet.caffe.prototxt import parse_text
from sparknet.caffe.schema import BlobProto, LooseBlobProto, NetParameter
from sparknet.caffe.weights import caffemodel
from sparknet.caffe.weights.blobs import array_of, blob_of
from sparknet.caffe.weights.caffemodel import read_weights, upgrade_binary
from sparknet.caffe.weights.trained import load_listed, load_weights
from sparknet.caffe.weights.wire import cut_numbers, layer_bytes
from sparknet.caffe.weights.written_form import written_form
from sparknet.errors import NetError

NET = """
name: "small"
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 4
  weight_filler { type: "xavier" } } }
layer { name: "act" type: "ReLU" bottom: "fc" top: "fc" }
layer { name: "score" type: "InnerProduct" bottom: "fc" top: "score" inner_product_param { num_output: 2
  weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" include { phase: TEST } }
"""
LOSSES = """
name: "losses"
layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" loss_weight: 2.5
  inner_product_param { num_output: 3 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "data" top: "loss" loss_weight: 3 }
layer { name: "own" type: "EuclideanLoss" bottom: "fc" bottom: "label" top: "own" phase: TEST }
layer { name: "quiet" type: "Silence" bottom: "loss" }
"""
TWO = np.arange(6, dtype=np.float32).reshape(2, 3)


def make(text=NET, phase="TEST"):
    torch.manual_seed(0)
    return CaffeNet.from_prototxt(text, phase)


@pytest.fixture
def saved(tmp_path):
    """Another net of the same description, its file and its weights."""
    torch.manual_seed(1)
    net = CaffeNet.from_prototxt(NET)
    path = tmp_path / "saved.caffemodel"
    net.save_weights(path)
    return net, path


def equal(one, two):
    first, second = one.weights(), two.weights()
    return first.keys() == second.keys() and all(
        torch.equal(a, b) for name in first for a, b in zip(first[name], second[name], strict=True)
    )


def write(path, net):
    path.write_bytes(net.SerializeToString())
    return path


def varint(number):
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def unpacked(numbers, field=5, code="f"):
    """One field for each number, as writers that do not pack them do."""
    tag = varint(field << 3 | (5 if code == "f" else 1))
    return b"".join(tag + struct.pack(f"<{code}", number) for number in numbers)


# Blobs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3, 1, 2), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_blob_comes_back_with_shape_type_and_bits(shape, dtype):
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    again = array_of(BlobProto.FromString(blob_of(array).SerializeToString()))
    assert again.shape == array.shape
    assert again.dtype == (array.dtype if array.size else np.float32)  # no numbers tell no type
    np.testing.assert_array_equal(again, array)


def test_a_blob_is_what_a_schema_with_numbers_reads():
    loose = LooseBlobProto.FromString(blob_of(TWO).SerializeToString())
    assert list(loose.data) == [0, 1, 2, 3, 4, 5]
    assert list(loose.shape.dim) == [2, 3]


def test_a_strided_or_swapped_array_is_written_in_order():
    assert list(LooseBlobProto.FromString(blob_of(TWO.T).SerializeToString()).data) == [0, 3, 1, 4, 2, 5]
    assert blob_of(TWO.astype(">f4")) == blob_of(TWO)


def test_legacy_axes_win_over_the_shape_as_in_caffe():
    blob = BlobProto(num=1, channels=1, height=2, width=3, data=[TWO.tobytes()])
    blob.shape.dim.append(6)
    assert array_of(blob).shape == (1, 1, 2, 3)


def test_numbers_that_are_not_packed_are_read():
    message = BlobProto(num=1, channels=1, height=2, width=3).SerializeToString() + unpacked(range(6))
    np.testing.assert_array_equal(array_of(BlobProto.FromString(message)), TWO.reshape(1, 1, 2, 3))


def test_packed_and_single_numbers_in_one_blob_are_refused_for_their_order_is_lost():
    message = BlobProto.FromString(BlobProto(data=[TWO.tobytes()[:16]]).SerializeToString() + unpacked([4, 5]))
    message.shape.dim.extend([6])
    with pytest.raises(NetError, match="asks for 6 numbers and there are 4"):
        array_of(message)


def test_pieces_of_packed_numbers_are_joined():
    blob = BlobProto(data=[TWO.tobytes()[:8], TWO.tobytes()[8:]])
    blob.shape.dim.extend([2, 3])
    np.testing.assert_array_equal(array_of(blob), TWO)


def test_double_precision_is_kept_packed_or_not():
    numbers = [0.1, 1e300]
    loose = BlobProto.FromString(unpacked(numbers, field=8, code="d"))
    packed = BlobProto(double_data=[np.array(numbers).tobytes()])
    for blob in (loose, packed):
        assert list(array_of(blob)) == numbers
        assert array_of(blob).dtype == np.float64


def test_a_blob_without_shape_is_flat():
    assert array_of(BlobProto(data=[TWO.tobytes()])).shape == (6,)


@pytest.mark.parametrize("dims", [(10**12,), (10**9, 10**9), (-1, 6), (-2, -3), (7,), (5,), (0,)])
def test_a_shape_that_does_not_fit_the_numbers_is_an_error_and_allocates_nothing(dims):
    blob = blob_of(TWO)
    blob.shape.dim[:] = dims
    with pytest.raises(NetError, match=r"its shape .* asks for -?\d+ numbers and there are 6"):
        array_of(blob)


def test_numbers_cut_in_the_middle_are_an_error():
    with pytest.raises(NetError, match="3 bytes, and each takes 4"):
        array_of(BlobProto(data=[b"123"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (300, 70), (2, 3, 1, 4)])
def test_a_layer_is_written_without_protobuf_as_protobuf_writes_it(shape, dtype):
    spec = NetSpec.from_prototxt(LOSSES)
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for layer in spec.parameters.layer:
        layer.include.add(stage=["x"])
        net = NetParameter()
        net.layer.add().CopyFrom(layer)
        net.layer[0].blobs.extend([blob_of(array), blob_of(TWO)])
        assert b"".join(layer_bytes(layer, [array, TWO])) == net.SerializeToString()


def test_numbers_are_cut_out_and_the_rest_is_left(tmp_path):
    net = NetParameter(name="x")
    blob = BlobProto(data=[TWO.tobytes(), b"", TWO.tobytes()], diff=[b"1234"])
    net.layer.add(name="modern").blobs.extend([blob, BlobProto(double_data=[TWO.tobytes()])])
    net.layers.add(name="first").blobs.append(blob)
    net.layers.add().layer.blobs.append(blob)
    rest, pieces = cut_numbers(net.SerializeToString())
    assert sum(len(piece) for piece in pieces) == 7 * TWO.nbytes
    cut = NetParameter.FromString(rest)
    for found in (cut.layer[0].blobs[0], cut.layers[0].blobs[0], cut.layers[1].layer.blobs[0]):
        assert found.diff == [b"1234"]
        assert b"".join(pieces[int.from_bytes(index, "little")] for index in found.data) == TWO.tobytes() * 2


@pytest.mark.parametrize(
    "data",
    [
        b"\x0b",  # a group
        b"\x0d\1",  # four bytes that are one
        b"\x80",  # numbers without end
        b"\xff" * 11,
        b"\xa2\x06\xff\xff\xff\xff\x0f",  # layers longer than the message
        b"\xa2\x06\x02\x3a\x05",  # blobs longer than their layer
    ],
)
def test_what_is_no_message_is_refused_before_protobuf_sees_it(data):
    with pytest.raises(DecodeError):
        cut_numbers(data)


# Layouts -----------------------------------------------------------------------------------------------------


def test_all_three_generations_are_read(tmp_path):
    blob = blob_of(TWO)
    modern, first, oldest = NetParameter(), NetParameter(), NetParameter()
    modern.layer.add(name="fc", type="InnerProduct").blobs.append(blob)
    first.layers.add(name="fc", type=14).blobs.append(blob)
    oldest.layers.add().layer.blobs.append(blob)
    oldest.layers[0].layer.name = "fc"
    for net in (modern, first, oldest):
        weights = read_weights(write(tmp_path / "w.caffemodel", net))
        np.testing.assert_array_equal(weights.blobs["fc"][0], TWO)
        assert weights.is_modern == (net is modern)
        assert weights.description is not None
        assert not any(layer.blobs for layer in weights.description.layer)


def test_of_layers_with_one_name_the_last_with_blobs_counts(tmp_path):
    net = NetParameter()
    for factor in (1, 2):
        net.layer.add(name="fc").blobs.append(blob_of(TWO * factor))
    net.layer.add(name="fc")
    np.testing.assert_array_equal(read_weights(write(tmp_path / "w.caffemodel", net)).blobs["fc"][0], TWO * 2)


def test_layers_without_blobs_are_listed(saved):
    assert read_weights(saved[1]).blobs["act"] == {}


# Into a net --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_what_is_saved_is_loaded(suffix, saved, tmp_path):
    path = tmp_path / f"again{suffix}"
    saved[0].save_weights(path)
    net = make()
    loaded = net.load_weights(path)
    assert (loaded.layers, loaded.missing, loaded.unused) == (("fc", "score"), (), ())
    assert equal(net, saved[0])
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_a_net_of_double_precision_is_kept_so(suffix, tmp_path):
    net = make().double()
    with torch.no_grad():
        net.weights()["fc"][1].fill_(0.1)
    net.save_weights(tmp_path / f"w{suffix}")
    other = make().double()
    other.load_weights(tmp_path / f"w{suffix}")
    assert equal(net, other)
    make().load_weights(tmp_path / f"w{suffix}")


def test_layers_go_by_name_and_the_rest_is_told(saved):
    net = make(NET.replace('name: "score"', 'name: "score_of_pets"'))
    before = [blob.clone() for blob in net.weights()["score_of_pets"]]
    loaded = net.load_weights(saved[1])
    assert loaded.layers == ("fc",)
    assert loaded.missing == ("score_of_pets",)
    assert loaded.unused == ("score",)
    assert all(torch.equal(*pair) for pair in zip(before, net.weights()["score_of_pets"], strict=True))


def test_layers_that_no_file_of_several_has_are_told(saved, tmp_path):
    whole = NetParameter.FromString(saved[1].read_bytes())
    paths = []
    for name in ("fc", "score"):
        part = NetParameter(name=name)
        part.layer.extend(layer for layer in whole.layer if layer.name == name)
        paths.append(str(write(tmp_path / f"{name}.caffemodel", part)))
    assert load_listed(make(), paths[0]) == ("score",)
    net = make()
    assert load_listed(net, f"{paths[0]}, {paths[1]},") == ()
    assert equal(net, saved[0])
    with pytest.raises(NetError, match="none"):
        load_listed(net, f"{paths[0]}, none")


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_a_layer_whose_blobs_another_one_shares_is_not_missing(suffix, tmp_path):
    """As in the second branch of a siamese net, where the file is of a net with one."""

    def named(name):
        return f'name: "{name}" param {{ name: "w" }} param {{ name: "b" }}'

    one = NET.replace('name: "fc"', named("fc"))
    branch = 'type: "InnerProduct" bottom: "data" top: "twin" inner_product_param { num_output: 4 } }'
    make(one).save_weights(tmp_path / f"w{suffix}")
    two = make(f"{one} layer {{ {named('twin')} {branch}")
    loaded = two.load_weights(tmp_path / f"w{suffix}")
    assert (loaded.layers, loaded.missing) == (("fc", "score"), ())
    own = make(f'{one} layer {{ name: "twin" param {{ name: "w" }} {branch}')
    assert own.load_weights(tmp_path / f"w{suffix}").missing == ("twin",)  # its bias


def test_a_file_that_must_be_whole_is_refused_before_it_changes_anything(saved):
    saved[1].write_bytes(saved[1].read_bytes()[: _end_of_layer(saved[1], "act")])
    net = make()
    before = copy.deepcopy(net)
    assert net.load_weights(saved[1]).missing == ("score",)
    net = copy.deepcopy(before)
    with pytest.raises(NetError, match=r"saved\.caffemodel has no weights for layers score; .*cut"):
        load_weights(net, saved[1], whole=True)
    assert equal(net, before)


def _end_of_layer(path, name):
    """Where in the file the layer ends: it is cut there, between two layers."""
    net = NetParameter.FromString(path.read_bytes())
    del net.layer[[layer.name for layer in net.layer].index(name) + 1 :]
    return net.ByteSize()


def test_legacy_axes_fit_from_the_right(tmp_path, saved):
    old = NetParameter.FromString(saved[1].read_bytes())
    for layer in old.layer:
        for blob in layer.blobs:
            shape = (1,) * (4 - len(blob.shape.dim)) + tuple(blob.shape.dim)
            blob.ClearField("shape")
            blob.num, blob.channels, blob.height, blob.width = shape
    net = make()
    net.load_weights(write(tmp_path / "old.caffemodel", old))
    assert equal(net, saved[0])
    net.save_weights(tmp_path / "new.caffemodel")
    assert (tmp_path / "new.caffemodel").read_bytes() == saved[1].read_bytes()  # the shapes of today


def test_a_shape_that_does_not_fit_names_everything_and_changes_nothing(saved):
    net = make(NET.replace("num_output: 2", "num_output: 5"))
    before = copy.deepcopy(net)
    with pytest.raises(
        NetError, match=r"saved.caffemodel: layer 'score', blob 0: expected shape \(5, 4\), got \(2, 4\)"
    ):
        net.load_weights(saved[1])
    assert equal(net, before)


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_a_layer_with_other_blobs_is_refused(suffix, saved, tmp_path):
    path = tmp_path / f"w{suffix}"
    saved[0].save_weights(path)
    without = make(NET.replace("num_output: 2", "num_output: 2 bias_term: false"))
    with pytest.raises(NetError, match="layer 'score': expected 1 blobs, got 2"):
        without.load_weights(path)
    without.save_weights(path)
    with pytest.raises(NetError, match="layer 'score': expected 2 blobs, got 1"):
        make().load_weights(path)


def test_a_net_with_its_frame_is_copied_and_pickled(saved, tmp_path):
    net = make(phase="TRAIN")
    net.load_weights(saved[1])
    assert net.frame is not None
    for number, again in enumerate((copy.deepcopy(net), pickle.loads(pickle.dumps(net)))):
        again.save_weights(tmp_path / f"{number}.caffemodel")
        assert (tmp_path / f"{number}.caffemodel").read_bytes() == saved[1].read_bytes()


# What is written ---------------------------------------------------------------------------------------------


def types_of(path):
    return [layer.type for layer in NetParameter.FromString(path.read_bytes()).layer]


def test_the_file_keeps_its_description_where_it_is_of_this_net(saved, tmp_path):
    net = make(phase="TRAIN")
    net.load_weights(saved[1])
    with torch.no_grad():
        net.weights()["fc"][1].fill_(7)
    net.save_weights(tmp_path / "as_loaded.caffemodel")
    net.save_weights(tmp_path / "own.caffemodel", as_loaded=False)
    assert types_of(tmp_path / "as_loaded.caffemodel")[-1] == "Softmax"
    assert types_of(tmp_path / "own.caffemodel")[-1] == "InnerProduct"  # of TRAIN
    for name in ("as_loaded", "own"):
        assert set(read_weights(tmp_path / f"{name}.caffemodel").blobs["fc"][1]) == {7}


@pytest.mark.parametrize(
    "change",
    [
        ('name: "small"', 'name: "other"'),
        ('name: "score"', 'name: "score_of_pets"'),
        ('bottom: "data" top: "fc"', 'bottom: "data" top: "fc" param { lr_mult: 0 }'),
        ('type: "ReLU"', 'type: "TanH"'),
        ("include { phase: TEST } }", "loss_weight: 1 include { phase: TEST } }"),
        ('layer { name: "prob" type: "Softmax" bottom: "score" top: "prob" include { phase: TEST } }', ""),
    ],
)
def test_after_loading_from_another_net_its_own_description_is_written(change, saved, tmp_path):
    net = make(NET.replace(*change))
    net.load_weights(saved[1])
    net.save_weights(tmp_path / "tuned.caffemodel")
    net.save_weights(tmp_path / "own.caffemodel", as_loaded=False)
    assert (tmp_path / "tuned.caffemodel").read_bytes() == (tmp_path / "own.caffemodel").read_bytes()
    assert (tmp_path / "tuned.caffemodel").read_bytes() != saved[1].read_bytes()


def test_a_later_file_of_another_net_drops_the_frame(saved, tmp_path):
    net = make()
    net.load_weights(saved[1])
    part = NetParameter(name="part")
    part.layer.add(name="fc").blobs.extend(blob_of(blob.detach().numpy()) for blob in net.weights()["fc"])
    net.load_weights(write(tmp_path / "part.caffemodel", part))
    assert net.frame is None


def test_a_loss_weight_moves_to_the_split_and_a_loss_layer_gets_one_again():
    written = written_form(NetSpec.from_prototxt(LOSSES).select("TRAIN"), "TRAIN")
    expected = """
    name: "losses"
    layer { name: "in" type: "Input" top: "data" top: "label" phase: TRAIN
      input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "data_in_0_split" type: "Split" bottom: "data" top: "data_in_0_split_0" top: "data_in_0_split_1"
      phase: TRAIN }
    layer { name: "fc" type: "InnerProduct" bottom: "data_in_0_split_0" top: "fc" phase: TRAIN
      inner_product_param { num_output: 3 } }
    layer { name: "fc_fc_0_split" type: "Split" bottom: "fc"
      top: "fc_fc_0_split_0" top: "fc_fc_0_split_1" top: "fc_fc_0_split_2"
      loss_weight: 2.5 loss_weight: 0 loss_weight: 0 phase: TRAIN }
    layer { name: "loss" type: "EuclideanLoss" bottom: "fc_fc_0_split_1" bottom: "data_in_0_split_1" top: "loss"
      loss_weight: 1 phase: TRAIN }
    layer { name: "loss_loss_0_split" type: "Split" bottom: "loss" top: "loss_loss_0_split_0"
      top: "loss_loss_0_split_1" loss_weight: 3 loss_weight: 0 phase: TRAIN }
    layer { name: "own" type: "EuclideanLoss" bottom: "fc_fc_0_split_2" bottom: "label" top: "own" loss_weight: 1
      phase: TEST }
    layer { name: "quiet" type: "Silence" bottom: "loss_loss_0_split_1" phase: TRAIN }
    """
    assert str(written) == str(parse_text(expected, NetParameter).message)


def test_blobs_in_the_description_are_not_written_twice(saved, tmp_path):
    spec = NetSpec.from_message(NetParameter.FromString(saved[1].read_bytes()))
    net = CaffeNet(spec, "TEST")
    net.load_weights(saved[1])
    net.save_weights(tmp_path / "again.caffemodel", as_loaded=False)
    assert (tmp_path / "again.caffemodel").read_bytes() == saved[1].read_bytes()


def test_slashes_in_names_survive_hdf5(tmp_path):
    text = NET.replace('name: "fc"', 'name: "a/b"').replace('name: "score"', 'name: "a"')
    net = make(text)
    net.save_weights(tmp_path / "w.h5")
    other = make(text)
    assert other.load_weights(tmp_path / "w.h5").layers == ("a/b", "a")
    assert equal(net, other)


# Files that cannot be read or written ------------------------------------------------------------------------


def refused(path, *parts):
    with pytest.raises(NetError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert str(path) in message
    for part in parts:
        assert part in message


def test_every_wrong_file_is_refused_with_its_name(saved, tmp_path):
    path = tmp_path / "bad.caffemodel"
    refused(tmp_path / "none.caffemodel", "No such file")
    refused(tmp_path, "directory")
    path.touch()
    refused(path, "it is empty")
    path.write_text(NET)
    refused(path, "it is text", ".prototxt")
    path.write_text("läyer?")
    refused(path, "it is text")
    path.write_bytes(bytes(range(256)) * 40)
    refused(path, "truncated or damaged")
    path.write_bytes(NetParameter(name="x\0").SerializeToString())
    refused(path, "no layers")


def test_a_file_cut_anywhere_is_refused_or_lacks_whole_layers(saved, tmp_path):
    whole = saved[1].read_bytes()
    path = tmp_path / "cut.caffemodel"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            assert 0 < len(read_weights(path).blobs) < 5
        except NetError:
            refused(path)


def test_a_damaged_blob_is_named(tmp_path):
    net = NetParameter()
    net.layer.add(name="fc").blobs.append(blob_of(TWO))
    net.layer[0].blobs[0].shape.dim[0] = 10**12
    refused(write(tmp_path / "w.caffemodel", net), "layer 'fc', blob 0", "3000000000000 numbers and there are 6")


def test_a_name_that_is_no_utf8_is_the_one_that_a_text_file_has(tmp_path):
    net = NetParameter()
    net.layer.add(name="abcd").blobs.append(blob_of(TWO))
    path = tmp_path / "w.caffemodel"
    path.write_bytes(net.SerializeToString().replace(b"abcd", b"\xff\xfecd"))
    (tmp_path / "net.prototxt").write_bytes(b"layer { name: '\xff\xfecd' }")
    (layer,) = NetSpec.from_prototxt(tmp_path / "net.prototxt").parameters.layer
    assert list(read_weights(path).blobs) == [layer.name] == [r"\xff\xfecd"]
    upgrade_binary(path, tmp_path / "new.caffemodel")
    assert list(read_weights(tmp_path / "new.caffemodel").blobs) == [layer.name]


def test_damaged_hdf5_is_refused(saved, tmp_path):
    whole = tmp_path / "whole.h5"
    saved[0].save_weights(whole)
    path = tmp_path / "bad.h5"
    path.write_bytes(whole.read_bytes()[:1000])
    refused(path, "truncated or damaged")
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    refused(path, "truncated or damaged")


@pytest.mark.parametrize(
    ("fill", "told"),
    [
        (lambda file: file.create_group("history"), "it has history"),
        (lambda file: file.create_dataset("data", data=TWO), "it has data"),
        (lambda file: None, "it has nothing"),
        (lambda file: file.create_dataset("data/fc/weight", data=TWO), "data/fc/weight is no blob"),
        (lambda file: file.create_dataset("data/fc/0", data=TWO.astype(int)), "int64"),
        (lambda file: file.create_dataset("data/fc/0", data="text"), "float32 or float64"),
        (lambda file: file.create_dataset("data/fc/0", (10**12,), "f4"), "4000000000000 bytes and 0 are there"),
    ],
)
def test_hdf5_that_holds_no_weights_is_refused(fill, told, tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        fill(file)
    refused(path, told)


def test_compressed_hdf5_is_read(tmp_path):
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data/fc/0", data=TWO.astype(">f4"), compression="gzip")
    np.testing.assert_array_equal(read_weights(path).blobs["fc"][0], TWO)


def test_more_than_protobuf_allows_is_refused_both_ways(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(caffemodel, "LIMIT_BYTES", 100)
    refused(saved[1], "has at most 100", ".h5")
    with pytest.raises(NetError, match=r"at most 100 .*\.h5"):
        saved[0].save_weights(tmp_path / "large.caffemodel")
    saved[0].save_weights(tmp_path / "large.h5")
    assert not (tmp_path / "large.caffemodel").exists()


@contextmanager
def files_of_at_most(size):
    """As a full disk: writing beyond it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["w.caffemodel", "w.h5"])
def test_a_full_disk_leaves_what_was_there(name, saved, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"before")
    with files_of_at_most(300), pytest.raises(NetError, match=f"{name} cannot be written"):
        saved[0].save_weights(path)
    assert path.read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "saved.caffemodel"])


@pytest.mark.parametrize("name", ["none/w.caffemodel", "none/w.h5", ".", "folder.h5"])
def test_a_place_that_cannot_be_written_is_named(name, saved, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(NetError, match="cannot be written"):
        saved[0].save_weights(tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.h5", "saved.caffemodel"]


@pytest.mark.parametrize(
    ("layer", "name"),
    [*(("fc", name) for name in ("", ".", "a/", "/a", "a//b", "./a", "a/.", "/")), ("act", "/a")],  # without blobs
)
def test_a_name_that_is_no_group_is_refused(layer, name, tmp_path):
    """HDF5 would write such a group under another name, or in the place of another one."""
    net = make(NET.replace(f'name: "{layer}"', f'name: "{name}"'))
    told = f"w.h5 cannot be written as HDF5: layer {name!r} cannot name a group there.*rename the layer"
    with pytest.raises(NetError, match=told):
        net.save_weights(tmp_path / "w.h5")
    assert list(tmp_path.iterdir()) == []
    net.save_weights(tmp_path / "w.caffemodel")
    assert net.load_weights(tmp_path / "w.caffemodel").missing == ()


@pytest.mark.parametrize("name", ["..", "...", "a/../b", ".a", "a b", "ä/ö"])
def test_names_with_dots_and_slashes_survive_hdf5(name, tmp_path):
    text = NET.replace('name: "fc"', f'name: "{name}"')
    net = make(text)
    net.save_weights(tmp_path / "w.h5")
    other = make(text)
    assert other.load_weights(tmp_path / "w.h5").missing == ()
    assert equal(net, other)


def test_the_file_has_the_rights_that_others_have(saved):
    plain = Path(saved[1].parent / "plain")
    plain.touch()
    assert saved[1].stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("ending", ["caffemodel", "caffemodel.h5"])
def test_a_blob_shared_in_another_shape_comes_back(tmp_path, ending):
    tied = (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }\n'
        'layer { name: "down" type: "InnerProduct" bottom: "x" top: "down" param { name: "w" } '
        'inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }\n'
        'layer { name: "up" type: "InnerProduct" bottom: "down" top: "up" '
        'param { name: "w" share_mode: PERMISSIVE } inner_product_param { num_output: 4 bias_term: false } }\n'
    )
    path = tmp_path / f"tied.{ending}"
    net, again = CaffeNet.from_prototxt(tied), CaffeNet.from_prototxt(tied)
    net.save_weights(path)
    if ending.endswith("h5"):  # as Caffe, which writes a shared blob with its owner alone
        assert dict(caffemodel.read_weights(path).blobs["up"]) == {}
    assert again.load_weights(path).missing == ()
    assert torch.equal(again.weights()["up"][0], net.weights()["up"][0])
