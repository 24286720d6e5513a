"""Layers without bottoms: DummyData, Parameter, and the data layers' contract."""

import h5py
import numpy as np
import pytest
import torch
from google.protobuf import text_format

from one_layer import fault, layer, run
from sparknet.caffe import CaffeNet
from sparknet.caffe.layers import InputBlob, input_blobs
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError


class TestDummyData:
    def test_constants_stay_and_others_are_drawn_anew(self):
        module = layer(
            'type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 4 } '
            'data_filler { value: 7 } data_filler { type: "uniform" min: 1 max: 2 } }'
        )
        (a, first), (again, second) = module(), module()
        assert (a == 7).all()
        assert a.shape == (2, 3)
        assert a.data_ptr() == again.data_ptr()
        assert first.shape == (4,)
        assert not torch.equal(first, second)
        assert (first >= 1).all()
        assert (first <= 2).all()
        assert first.dtype == torch.float64
        assert not module.state_dict()

    def test_zeros_if_no_filler_is_given_and_one_shape_for_all(self):
        tops = run('type: "DummyData" top: "a" top: "b" dummy_data_param { shape { dim: 2 dim: 3 } }')
        assert [top.tolist() for top in tops] == [np.zeros((2, 3)).tolist()] * 2

    def test_the_four_numbers_of_old(self):
        text = (
            'type: "DummyData" top: "a" top: "b" dummy_data_param { num: 2 num: 3 channels: 4 height: 5 width: 6 '
            'data_filler { type: "gaussian" } }'
        )
        assert [top.shape for top in run(text)] == [(2, 4, 5, 6), (3, 4, 5, 6)]

    def test_the_generator_is_torchs(self):
        module = layer('type: "DummyData" dummy_data_param { shape { dim: 9 } data_filler { type: "gaussian" } }')
        torch.manual_seed(3)
        first = module()
        torch.manual_seed(3)
        assert torch.equal(first[0], module()[0])

    @pytest.mark.parametrize(
        "filler",
        [
            'type: "gaussian" sparse: 2',
            'type: "xavier"',
            'type: "msra"',
            'type: "positive_unitball"',
            'type: "bilinear"',
        ],
    )
    def test_every_filler_works_in_a_net_of_any_dtype(self, filler):
        net = CaffeNet.from_prototxt(
            'layer { name: "d" type: "DummyData" top: "x" dummy_data_param { '
            f"shape {{ dim: 2 dim: 2 dim: 4 dim: 4 }} data_filler {{ {filler} }} }} }}\n"
        ).double()
        assert net.shapes["x"] == (2, 2, 4, 4)
        found = net({})["x"]
        assert found.dtype == torch.float64
        assert found.any()

    def test_a_net_may_feed_on_it(self):
        net = CaffeNet.from_prototxt(
            'layer { name: "d" type: "DummyData" top: "x" top: "l" dummy_data_param { '
            "shape { dim: 4 dim: 3 } shape { dim: 4 } data_filler { value: 2 } data_filler { value: 1 } } }\n"
            'layer { name: "r" type: "ReLU" bottom: "x" top: "x" }\n'
            'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "l" top: "loss" }\n'
        )
        assert not net.inputs
        assert float(net({})["loss"]) == pytest.approx(np.log(3))

    def test_constants_are_not_overwritten_in_place(self):
        net = CaffeNet.from_prototxt(
            'layer { name: "d" type: "DummyData" top: "x" '
            "dummy_data_param { shape { dim: 4 } data_filler { value: 2 } } }\n"
            'layer { name: "p" type: "Power" bottom: "x" top: "x" power_param { scale: 2 } }\n'
            'layer { name: "r" type: "ReLU" bottom: "x" top: "x" relu_param { negative_slope: 1 } }\n'
        )
        assert [net({})["x"].tolist() for _ in range(2)] == [[4.0] * 4] * 2

    def test_it_exports(self):
        module = layer('type: "DummyData" dummy_data_param { shape { dim: 3 } data_filler { type: "uniform" } }')
        traced = torch.export.export(module, ()).module()
        assert not torch.equal(traced()[0], traced()[0])

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "dummy_data_param has 0 shapes for 2 tops; give one for all or one for each"),
            ("shape { dim: 2 } num: 2", "has shape and also num, channels, height or width"),
            ("num: 1", "has channels 0 times for 2 tops"),
            ("num: 1 num: 2 num: 3 channels: 1 height: 1 width: 1", "has num 3 times for 2 tops"),
            ("shape { dim: 2 dim: 0 }", "has shape (2, 0); every size must be at least 1"),
            ("shape { dim: 2 } data_filler {} data_filler {} data_filler {}", "data_filler is given 3 times"),
            ('shape { dim: 2 } data_filler { type: "no" }', "filler type is 'no'"),
        ],
    )
    def test_faults(self, text, expected):
        assert expected in fault(f'type: "DummyData" top: "a" top: "b" dummy_data_param {{ {text} }}')


class TestParameter:
    TEXT = 'layer { name: "p" type: "Parameter" top: "y" parameter_param { shape { dim: 2 dim: 3 } } }\n'

    def test_it_is_learned_and_starts_at_zero(self):
        net = CaffeNet.from_prototxt(
            self.TEXT + 'layer { name: "r" type: "Reduction" bottom: "y" top: "s" loss_weight: 1 }\n', phase="TRAIN"
        )
        assert net.shapes["y"] == (2, 3)
        assert [known.name for known in net.learnable] == ["p/0"]
        out = net({})
        assert float(out["s"].detach()) == 0
        net.loss(out).backward()
        assert net.weights()["p"][0].grad.tolist() == [[1, 1, 1], [1, 1, 1]]

    def test_overwriting_its_top_leaves_it_alone(self):
        net = CaffeNet.from_prototxt(self.TEXT + 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }\n')
        net.set_weights({"p": [-np.ones((2, 3))]})
        assert not net({})["y"].any()
        assert (net.weights()["p"][0] == -1).all()

    def test_faults(self):
        assert "give a shape" in fault('type: "Parameter"')
        assert "shape is (2, 0)" in fault('type: "Parameter" parameter_param { shape { dim: 2 dim: 0 } }')


def blobs(text: str) -> list[InputBlob]:
    return input_blobs(text_format.Parse(f'name: "in" {text}', LayerParameter()))


def shapes(text: str) -> list[tuple[int, ...] | None]:
    return [blob.shape for blob in blobs(text)]


def refusal(text: str) -> str:
    with pytest.raises(NetError) as caught:
        blobs(text)
    return str(caught.value)


TWO = 'top: "data" top: "label"'


class TestInputs:
    def test_input(self):
        text = 'type: "Input" top: "a" top: "b" input_param {{ {} }}'
        assert shapes(text.format("shape { dim: 2 }")) == [(2,), (2,)]
        assert shapes(text.format("shape { dim: 2 } shape { dim: 3 dim: 4 }")) == [(2,), (3, 4)]
        assert shapes(text.format("")) == [None, None]
        three = "shape { dim: 1 } " * 3
        assert "input_param has 3 shapes for 2 tops" in refusal(text.format(three))
        assert "it has 0 tops; a layer of this type has 1 or more" in refusal('type: "Input"')

    def test_data(self):
        text = f'type: "Data" {TWO} data_param {{ source: "db" batch_size: 8 }} '
        assert shapes(text) == [None, (8,)]
        assert shapes(text + "transform_param { crop_size: 5 mean_value: 1 mean_value: 2 mean_value: 3 }") == [
            (8, 3, 5, 5),
            (8,),
        ]
        assert shapes(text + "transform_param { crop_size: 5 force_gray: true }")[0] == (8, 1, 5, 5)
        assert [blob.source for blob in blobs(text)] == ["db", "db"]
        assert "data_param has batch_size 0; give one of at least 1" in refusal(f'type: "Data" {TWO}')
        assert "it has 3 tops; a layer of this type has 1 or 2" in refusal(text + 'top: "more"')

    def test_image_data(self):
        text = f'type: "ImageData" {TWO} image_data_param {{ batch_size: 4 {{}} }} '
        text = text.replace("{}", "%s")
        assert shapes(text % "") == [None, (4,)]
        assert shapes(text % "new_height: 6 new_width: 7") == [(4, 3, 6, 7), (4,)]
        assert shapes(text % "new_height: 6 new_width: 7 is_color: false") == [(4, 1, 6, 7), (4,)]
        assert shapes(text % "" + "transform_param { crop_size: 5 }") == [(4, 3, 5, 5), (4,)]
        assert "new_height 6 and new_width 0; give both or none" in refusal(text % "new_height: 6")
        assert "crop_size is 9 and the images are made 6 x 7" in refusal(
            text % "new_height: 6 new_width: 7" + "transform_param { crop_size: 9 }"
        )
        assert shapes(f'type: "ImageData" {TWO}') == [None, (1,)]
        assert "has 2" in refusal('type: "ImageData" top: "data"')

    def test_window_data(self):
        text = f'type: "WindowData" {TWO} window_data_param {{ batch_size: 4 }} '
        assert shapes(text + "transform_param { crop_size: 5 }") == [(4, 3, 5, 5), (4,)]
        assert "no crop_size" in refusal(text)

    def test_the_scale_of_windows_is_their_layers_own(self):
        text = f'type: "WindowData" {TWO} window_data_param {{ batch_size: 4 scale: 0.5 }} '
        (first, _) = blobs(text + "transform_param { crop_size: 5 scale: 2 mirror: true }")
        assert (first.transform.scale, first.transform.mirror) == (0.5, True)

    def test_memory_data(self):
        text = f'type: "MemoryData" {TWO} memory_data_param {{ batch_size: 4 channels: 3 height: 6 %s }} '
        assert shapes(text % "width: 7") == [(4, 3, 6, 7), (4,)]
        assert "batch_size, channels, height, width 4, 3, 6, 0; give all four" in refusal(text % "")

    def test_hdf5_data(self, tmp_path):
        first, listing = tmp_path / "a.h5", tmp_path / "list.txt"
        with h5py.File(first, "w") as file:
            file["data"] = np.zeros((10, 3, 4), np.float32)
            file["label"] = np.zeros(10, np.float32)
            file["scalar"] = 1.0
        text = f'type: "HDF5Data" %s hdf5_data_param {{ batch_size: 5 source: "{listing}" }} '
        assert shapes(text % TWO) == [None, None]
        listing.write_text("/nowhere/b.h5\n")
        assert shapes(text % TWO) == [None, None]
        listing.write_text(f"{first}\n/nowhere/b.h5\n")
        assert shapes(text % TWO) == [(5, 3, 4), (5,)]
        message = refusal(text % 'top: "x"')
        assert "has no dataset 'x'" in message
        assert "there are 'data', 'label', 'scalar'" in message
        assert "no dataset 'scalar' with a batch axis" in refusal(text % 'top: "scalar"')
        assert "HDF5Data gives numbers as they are" in refusal(text % TWO + "transform_param { scale: 2 }")
        listing.write_text(str(listing))
        assert "cannot be read as HDF5" in refusal(text % TWO)
        assert "hdf5_data_param has batch_size 0" in refusal(f'type: "HDF5Data" {TWO}')

    @pytest.mark.parametrize("source", ["x" * 5000, "a\\000b"])
    def test_hdf5_data_from_what_can_be_no_path(self, source, tmp_path):
        text = 'type: "HDF5Data" top: "x" hdf5_data_param {{ batch_size: 5 source: "{}" }}'
        assert "cannot be read as a list of HDF5 files" in refusal(text.format(source))
        listing = tmp_path / "list.txt"
        listing.write_text(source.replace("\\000", "\0"))
        assert "cannot be read as a list of HDF5 files" in refusal(text.format(listing))

    def test_hdf5_data_from_a_list_that_is_no_text(self, tmp_path):
        listing = tmp_path / "list.txt"
        listing.write_bytes(b"\xff\xfe\n")
        message = refusal(f'type: "HDF5Data" top: "x" hdf5_data_param {{ batch_size: 5 source: "{listing}" }}')
        assert "expected UTF-8 text with a path on each line" in message

    def test_hdf5_data_from_something_else_than_a_file(self, tmp_path):
        text = f'type: "HDF5Data" top: "x" hdf5_data_param {{ batch_size: 5 source: "{tmp_path}" }}'
        assert shapes(text) == [None]

    def test_transformations_that_contradict_themselves(self):
        text = f'type: "Data" {TWO} data_param {{ batch_size: 8 }} transform_param {{ %s }}'
        assert "mean_file 'm' and mean_value 1.0, 2.0; give one" in refusal(
            text % 'mean_file: "m" mean_value: 1 mean_value: 2'
        )
        assert "force_color and force_gray" in refusal(text % "force_color: true force_gray: true")
        assert "2 mean_value for 3 channels" in refusal(
            text % "crop_size: 4 force_color: true mean_value: 1 mean_value: 2"
        )

    def test_labels_follow_images_that_got_another_batch(self):
        text = (
            f'layer {{ name: "in" type: "Data" {TWO} data_param {{ batch_size: 8 }} }}\n'
            'layer { name: "s" type: "SoftmaxWithLoss" bottom: "data" bottom: "label" top: "loss" }\n'
        )
        net = CaffeNet.from_prototxt(text, input_shapes={"data": (5, 3)})
        assert net.shapes["label"] == (5,)
