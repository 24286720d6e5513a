"""CaffeNet: how a description becomes a module, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from sparknet.caffe import CaffeNet, NetSpec
from sparknet.errors import NetError

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'


def ip(name: str, bottom: str, top: str, *, outputs: int = 3, more: str = "") -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{top}" '
        f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }} {more} }}\n'
    )


def fault(text: str, **options: object) -> str:
    with pytest.raises(NetError) as caught:
        CaffeNet.from_prototxt(text, **options)
    return str(caught.value)


class TestForward:
    def test_outputs_are_the_blobs_nobody_reads_sorted(self):
        net = CaffeNet.from_prototxt(INPUT + ip("b", "x", "b") + ip("a", "x", "a"))
        assert net.outputs == ("a", "b")
        assert {name: tuple(blob.shape) for name, blob in net({"x": torch.ones(2, 3)}).items()} == {
            "a": (2, 3),
            "b": (2, 3),
        }

    def test_any_batch_size_and_any_number_dtype(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a")).double()
        out = net({"x": torch.ones(7, 3, dtype=torch.uint8), "unused": torch.ones(1)})
        assert out["a"].dtype == torch.float64
        assert out["a"].shape == (7, 3)

    def test_named_blobs_stand_as_after_the_whole_pass(self):
        text = (
            INPUT
            + ip("a", "x", "a")
            + 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }\n'
            + ip("b", "a", "b")
        )
        net = CaffeNet.from_prototxt(text)
        x = torch.randn(5, 3)
        found = net.forward_blobs({"x": x}, ["a", "x", "b"])
        assert torch.equal(found["a"], nn.functional.relu(x @ net.weights()["a"][0].T + net.weights()["a"][1]))
        assert torch.equal(found["x"], x)
        assert list(net({"x": x}, blobs=["b"])) == ["b"]

    def test_an_input_is_never_overwritten(self):
        net = CaffeNet.from_prototxt(INPUT + 'layer { name: "r" type: "ReLU" bottom: "x" top: "x" }\n')
        x = torch.tensor([[-1.0, 2.0, -3.0]])
        assert net({"x": x})["x"].tolist() == [[0.0, 2.0, 0.0]]
        assert x.tolist() == [[-1.0, 2.0, -3.0]]

    def test_a_blob_read_before_it_is_overwritten_in_place_keeps_its_value_for_that_reader(self):
        text = (
            INPUT
            + ip("a", "x", "a")
            + ip("side", "a", "side")
            + 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }\n'
            + 'layer { name: "s" type: "Sigmoid" bottom: "a" top: "a" }\n'
        )
        net = CaffeNet.from_prototxt(text, phase="TRAIN").double()
        x = torch.randn(4, 3, dtype=torch.float64)
        out = net({"x": x})
        (weight, bias), (side, side_bias) = net.weights()["a"], net.weights()["side"]
        a = x @ weight.T + bias
        assert torch.allclose(out["side"], a @ side.T + side_bias)
        assert torch.allclose(out["a"], torch.sigmoid(torch.relu(a)))
        sum(blob.sum() for blob in out.values()).backward()
        found = weight.grad.clone()
        again = torch.autograd.grad((a @ side.T + side_bias).sum() + torch.sigmoid(torch.relu(a)).sum(), weight)
        assert torch.allclose(found, again[0])

    def test_missing_input(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        with pytest.raises(NetError, match="inputs x are missing; the net needs x"):
            net({})

    def test_unknown_blob(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        with pytest.raises(NetError, match="there is no blob 'b'; there are x, a"):
            net.forward_blobs({"x": torch.ones(2, 3)}, ["b"])

    def test_an_input_that_does_not_fit_names_the_layer_and_both_shapes(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        with pytest.raises(NetError, match=r"layer 'a' \(InnerProduct\): expected .*\(2, 3\).*, got \(2, 5\)"):
            net({"x": torch.ones(2, 5)})

    def test_exports(self):
        net = CaffeNet.from_prototxt(
            INPUT + ip("a", "x", "a") + 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }'
        )
        x = {"x": torch.randn(2, 3)}
        exported = torch.export.export(net, (x,)).module()
        assert torch.equal(exported(x)["a"], net(x)["a"])

    def test_copies_and_pickles(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        twin = copy.deepcopy(net)
        x = {"x": torch.randn(2, 3)}
        assert torch.equal(twin(x)["a"], net(x)["a"])
        with torch.no_grad():
            twin.weights()["a"][0].zero_()
            twin.weights()["a"][1].zero_()
        assert not torch.equal(twin(x)["a"], net(x)["a"])


class TestNames:
    @pytest.mark.parametrize(
        ("name", "key"),
        [
            ("conv1", "conv1"),
            ("inception_3a/1x1", "inception_3a/1x1"),
            ("conv1.a", "conv1_a"),
            ("", "layer"),
            ("loss", "loss_2"),
            ("training", "training_2"),
            ("_modules", "_modules_2"),
            ("steps", "steps_2"),
        ],
    )
    def test_any_name_serves(self, name, key):
        net = CaffeNet.from_prototxt(INPUT + ip(name, "x", "y"))
        assert net({"x": torch.ones(2, 3)})["y"].shape == (2, 3)
        assert list(net.state_dict()) == [f"{key}.weight", f"{key}.bias"]
        assert list(net.weights()) == [name]

    def test_names_that_fall_together_stay_apart(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a.b", "x", "y") + ip("a_b", "x", "z"))
        assert list(net.state_dict()) == ["a_b.weight", "a_b.bias", "a_b_2.weight", "a_b_2.bias"]


class TestRefused:
    def test_unsupported_layers_all_in_one_error_with_their_lines(self):
        message = fault(
            INPUT
            + 'layer { name: "a" type: "Convolutoin" bottom: "x" top: "a" }\n'
            + 'layer { name: "b" type: "Foo" }'
        )
        assert "2 layers are of types that are not supported" in message
        assert "<text>:2: layer 'a' (Convolutoin), did you mean Convolution?" in message
        assert "<text>:3: layer 'b' (Foo)" in message

    def test_unknown_bottom(self):
        message = fault(INPUT + ip("a", "xx", "a"))
        assert message.startswith(
            "<text>:2: layer 'a' (InnerProduct): it reads blob 'xx', which no layer before it makes"
        )
        assert "did you mean 'x'?" in message

    def test_cycle(self):
        message = fault(INPUT + ip("a", "b", "a") + ip("b", "a", "b"))
        assert "it reads blob 'b', which is made only by <text>:3: layer 'b'" in message
        assert "a cycle, or a wrong order" in message

    def test_a_layer_that_reads_its_own_top(self):
        assert "a cycle" in fault(INPUT + ip("a", "a", "a"))

    def test_top_made_twice(self):
        message = fault(INPUT + ip("a", "x", "y") + ip("b", "x", "y"))
        assert "layer 'b' (InnerProduct): its top 'y' is made before; give one of the two another name" in message

    def test_number_of_bottoms_and_tops(self):
        assert "it has 0 bottoms; a layer of this type has exactly 1" in fault(
            INPUT + 'layer { name: "a" type: "InnerProduct" top: "a" inner_product_param { num_output: 1 } }'
        )
        assert "it has 0 tops" in fault(
            INPUT + 'layer { name: "a" type: "InnerProduct" bottom: "x" inner_product_param { num_output: 1 } }'
        )

    def test_more_parameters_than_blobs(self):
        assert "it has 3 param entries and 2 blobs" in fault(
            INPUT + ip("a", "x", "a", more="param {} param {} param {}")
        )

    def test_loss_weights_and_tops_disagree(self):
        assert "loss_weight has 2 entries for 1 tops" in fault(
            INPUT + ip("a", "x", "a", more="loss_weight: 1 loss_weight: 2")
        )

    def test_unknown_phase(self):
        assert "phase is 'TRIAN'; it must be TRAIN or TEST" in fault(INPUT, phase="TRIAN")

    def test_a_shape_that_the_file_does_not_tell(self):
        text = (
            'layer { name: "d" type: "Data" top: "data" top: "label" data_param { batch_size: 4 source: "db" } }\n'
        )
        message = fault(text)
        assert "layer 'd' (Data): the shape of blob 'data' is not in the file" in message
        net = CaffeNet.from_prototxt(text + ip("a", "data", "a"), input_shapes={"data": (4, 3, 8, 8)})
        assert net.shapes["data"] == (4, 3, 8, 8)
        assert net.shapes["label"] == (4,)
        assert "input_shapes names dada; the inputs are data, label" in fault(
            text, input_shapes={"data": (4, 3, 8, 8), "dada": (1,)}
        )

    def test_an_empty_input(self):
        assert "every size must be at least 1" in fault(INPUT.replace("dim: 3", "dim: 0"))

    @pytest.mark.parametrize(
        "layer",
        [
            'type: "Slice" bottom: "x" top: "x" top: "x" slice_param { slice_point: 1 }',
            'type: "Eltwise" bottom: "y" bottom: "x" top: "x"',
            'type: "Slice" bottom: "x" top: "z" top: "x" slice_param { slice_point: 1 }',
            'type: "Split" bottom: "x" top: "z" top: "z"',
        ],
    )
    def test_a_top_of_another_name_than_the_bottom_at_its_place(self, layer):
        assert "is made before" in fault(INPUT + ip("y", "x", "y") + f'layer {{ name: "a" {layer} }}')

    def test_more_numbers_than_caffe_can_count(self):
        message = fault(INPUT.replace("dim: 3", "dim: 4611686018427387904"))
        assert (
            "blob 'x': a blob of shape (2, 4611686018427387904) would hold 9223372036854775808 numbers" in message
        )
        assert "it may hold at most 2147483647" in fault(
            INPUT + 'layer { name: "t" type: "Tile" bottom: "x" top: "t" tile_param { tiles: 2000000000 } }'
        )
        assert "it may have at most 32" in fault(INPUT.replace("dim: 3", "dim: 1 " * 33))

    def test_a_loss_weight_on_an_input(self):
        assert "it has a loss_weight" in fault(INPUT.replace("input_param", "loss_weight: 1 input_param"))


class TestState:
    def test_stages_of_the_file_count(self):
        text = 'state { stage: "deploy" }\n' + INPUT + ip("a", "x", "a", more='include { stage: "deploy" }')
        assert [step.name for step in CaffeNet.from_prototxt(text).steps] == ["a"]

    def test_a_layer_may_have_a_phase_of_its_own(self):
        text = INPUT + 'layer { name: "d" type: "Dropout" bottom: "x" top: "y" phase: TEST }\n'
        net = CaffeNet.from_prototxt(text, "TRAIN")
        x = torch.randn(50, 3)
        assert torch.equal(net({"x": x})["y"], x)
        assert torch.equal(net.train()({"x": x})["y"], x)


class TestInputs:
    def test_what_is_no_array(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        for value in (None, "x"):
            with pytest.raises(NetError, match=r"input 'x' is a .*; it must be a tensor or an array of numbers"):
                net({"x": value})

    def test_other_sides_but_no_other_channels(self):
        pool = 'layer { name: "p" type: "Pooling" bottom: "x" top: "y" pooling_param { global_pooling: true } }'
        net = CaffeNet.from_prototxt(INPUT.replace("dim: 3", "dim: 3 dim: 4 dim: 4") + pool)
        assert net({"x": torch.ones(1, 3, 9, 7)})["y"].shape == (1, 3, 1, 1)
        for shape in ((2, 5, 4, 4), (3, 4, 4), (8,)):
            with pytest.raises(NetError, match=r"input 'x' has shape .*; expected \(2, 3, 4, 4\)"):
                net({"x": torch.ones(shape)})

    def test_a_label_out_of_range_names_the_layer(self):
        label = 'layer { name: "l" type: "Input" top: "l" input_param { shape { dim: 2 } } }\n'
        loss = 'layer { name: "s" type: "SoftmaxWithLoss" bottom: "x" bottom: "l" top: "s" }'
        net = CaffeNet.from_prototxt(INPUT + label + loss)
        with pytest.raises(NetError, match=r"layer 's' \(SoftmaxWithLoss\): .*label 3 is out of range"):
            net({"x": torch.ones(2, 3), "l": torch.tensor([0, 3])})

    def test_a_data_layer_is_a_contract(self):
        net = CaffeNet.from_prototxt(
            'layer { name: "d" type: "Data" top: "data" top: "label" '
            "transform_param { crop_size: 8 mirror: true scale: 0.5 mean_value: 1 mean_value: 2 mean_value: 3 } "
            'data_param { batch_size: 4 source: "db" } }\n' + ip("a", "data", "a"),
        )
        data, label = net.inputs["data"], net.inputs["label"]
        assert (data.shape, data.place, data.kind, data.source) == ((4, 3, 8, 8), 0, "Data", "db")
        assert data.transform.mean_values == (1.0, 2.0, 3.0)
        assert (data.transform.crop_size, data.transform.mirror, data.transform.scale) == (8, True, 0.5)
        assert (label.shape, label.place) == ((4,), 1)
        assert label.transform.crop_size == 0


class TestParameters:
    def test_shared_by_name_are_one_tensor(self):
        share = 'param { name: "w" } param { name: "b" lr_mult: 2 }'
        net = CaffeNet.from_prototxt(
            INPUT + ip("a", "x", "a", more=share) + ip("b", "a", "b", more=share), phase="TRAIN"
        )
        assert net.weights()["a"][0] is net.weights()["b"][0]
        assert [(item.name, item.lr_mult) for item in net.learnable] == [("a/0", 1.0), ("a/1", 2.0)]
        assert len(list(net.parameters())) == 2

    def test_shared_with_another_shape(self):
        share = 'param { name: "w" }'
        message = fault(INPUT + ip("a", "x", "a", more=share) + ip("b", "x", "b", outputs=4, more=share))
        assert (
            "parameter 'w' with a/0, whose shape is (3, 3); its own would be (4, 3): the shapes must be equal"
            in message
        )

    def test_shared_in_another_shape_where_that_is_allowed(self):
        tied = (
            INPUT.replace("dim: 3", "dim: 4")
            + ip("down", "x", "down", more='param { name: "w" }')
            + 'layer { name: "up" type: "InnerProduct" bottom: "down" top: "up" '
            'param { name: "w" share_mode: PERMISSIVE } '
            "inner_product_param { num_output: 4 bias_term: false } }\n"
        )
        nets = {phase: CaffeNet.from_prototxt(tied, phase) for phase in ("TRAIN", "TEST")}
        nets["TEST"].share_weights(nets["TRAIN"])
        net = copy.deepcopy(nets["TRAIN"]).double()
        x = torch.randn(5, 4, dtype=torch.float64)
        (weight, bias), (seen,) = net.weights()["down"], net.weights()["up"]
        assert (tuple(weight.shape), tuple(seen.shape)) == ((3, 4), (4, 3))
        assert [item.name for item in net.learnable] == ["down/0", "down/1"]
        expected = (x @ weight.T + bias) @ weight.reshape(4, 3).T
        found = net({"x": x})["up"]
        assert torch.allclose(found, expected)
        found.sum().backward()
        assert torch.allclose(weight.grad, torch.autograd.grad(expected.sum(), weight)[0])
        with torch.no_grad():
            nets["TRAIN"].weights()["down"][0].fill_(2)
        assert nets["TEST"].weights()["up"][0].tolist() == [[2.0] * 3] * 4
        nets["TRAIN"].set_weights({"up": [np.full((4, 3), 7.0)]})
        assert nets["TEST"].weights()["down"][0].tolist() == [[7.0] * 4] * 3

    def test_shared_with_another_count(self):
        share = 'param { name: "w" share_mode: PERMISSIVE }'
        message = fault(INPUT + ip("a", "x", "a", more=share) + ip("b", "x", "b", outputs=4, more=share))
        assert "its own would be (4, 3): the counts must be equal" in message

    def test_shared_with_contradicting_rates(self):
        message = fault(
            INPUT
            + ip("a", "x", "a", more='param { name: "w" lr_mult: 2 }')
            + ip("b", "x", "b", more='param { name: "w" lr_mult: 3 }')
        )
        assert (
            "gives the shared parameter 'w' lr_mult 3, and the layers before it, from a/0 on, give it 2" in message
        )

    def test_an_explicit_rate_of_1_contradicts_another(self):
        message = fault(
            INPUT
            + ip("a", "x", "a", more='param { name: "w" lr_mult: 1 }')
            + ip("b", "x", "b", more='param { name: "w" lr_mult: 0 }')
        )
        assert "lr_mult 0, and the layers before it, from a/0 on, give it 1" in message

    def test_a_rate_that_only_a_later_layer_gives_holds_for_both(self):
        net = CaffeNet.from_prototxt(
            INPUT
            + ip("a", "x", "a", more='param { name: "w" }')
            + ip("b", "x", "b", more='param { name: "w" lr_mult: 0 decay_mult: 3 }'),
            "TRAIN",
        )
        assert (net.learnable[0].lr_mult, net.learnable[0].decay_mult) == (0.0, 3.0)
        assert not net.weights()["a"][0].requires_grad

    def test_force_backward_gives_frozen_parameters_a_gradient(self):
        frozen = ip("a", "x", "a", more="param { lr_mult: 0 }")
        net = CaffeNet.from_prototxt("force_backward: true\n" + INPUT + frozen, "TRAIN")
        assert net.weights()["a"][0].requires_grad
        assert net.learnable[0].lr_mult == 0.0

    def test_shared_buffers_stay_one_tensor_in_another_dtype(self):
        share = 'param { name: "m" lr_mult: 0 } param { name: "v" lr_mult: 0 } param { name: "f" lr_mult: 0 }'
        text = INPUT + "".join(
            f'layer {{ name: "{name}" type: "BatchNorm" bottom: "x" top: "{name}" {share} }}\n' for name in "ab"
        )
        net = CaffeNet.from_prototxt(text, "TRAIN").double()
        assert net.weights()["a"][0] is net.weights()["b"][0]
        assert net.weights()["a"][0].dtype == torch.float64

    @pytest.mark.parametrize("first", ["train", "test"])
    def test_a_test_net_follows_its_training_net_to_another_dtype(self, first):
        spec = NetSpec.from_prototxt(INPUT + 'layer { name: "n" type: "BatchNorm" bottom: "x" top: "y" }')
        nets = {"train": CaffeNet(spec, "TRAIN"), "test": CaffeNet(spec, "TEST")}
        nets["test"].share_weights(nets["train"])
        for name in (first, *({"train", "test"} - {first})):
            nets[name].double()
        x = {"x": torch.randn(6, 3, dtype=torch.float64)}
        nets["train"](x)
        nets["test"](x)
        assert torch.equal(nets["train"].weights()["n"][0], nets["test"].weights()["n"][0])

    def test_frozen_parameters_get_no_gradient(self):
        net = CaffeNet.from_prototxt(
            INPUT + ip("a", "x", "a", more="param { lr_mult: 0 } param { decay_mult: 0 }"), "TRAIN"
        )
        weight, bias = net.weights()["a"]
        assert (weight.requires_grad, bias.requires_grad) == (False, True)
        assert [(item.lr_mult, item.decay_mult) for item in net.learnable] == [(0.0, 1.0), (1.0, 0.0)]

    def test_propagate_down_false_cuts_the_gradient(self):
        net = CaffeNet.from_prototxt(
            INPUT + ip("a", "x", "a") + ip("b", "a", "b", more="propagate_down: false"), "TRAIN"
        )
        net({"x": torch.ones(2, 3)})["b"].sum().backward()
        assert net.weights()["a"][0].grad is None
        assert net.weights()["b"][0].grad is not None

    def test_learnable_follows_a_change_of_dtype(self):
        net = CaffeNet.from_prototxt(
            INPUT.replace("dim: 3", "dim: 3 dim: 1 dim: 1")
            + 'layer { name: "n" type: "BatchNorm" bottom: "x" top: "y" }',
            "TRAIN",
        ).double()
        assert [item.name for item in net.learnable] == ["n/0", "n/1", "n/2"]
        assert {item.tensor.dtype for item in net.learnable} == {torch.float64}
        assert all(item.lr_mult == 0 for item in net.learnable)

    def test_set_weights_by_layer_name(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        values = [np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), np.ones(3)]
        net.set_weights({"a": values, "other": [np.ones(1)]})
        assert np.array_equal(net.weights()["a"][0].detach().numpy(), values[0][0, 0])

    def test_set_weights_refuses_another_shape_and_changes_nothing(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a") + ip("b", "a", "b"))
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(NetError, match=r"layer 'b', blob 0: expected shape \(3, 3\), got \(4, 3\)"):
            net.set_weights({"a": [np.ones((3, 3)), np.ones(3)], "b": [np.ones((4, 3)), np.ones(3)]})
        with pytest.raises(NetError, match="layer 'a' has 2 blobs; 1 were given"):
            net.set_weights({"a": [np.ones((3, 3))]})
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    def test_a_test_net_uses_the_tensors_of_the_training_net(self):
        spec = NetSpec.from_prototxt(INPUT + ip("a", "x", "a"))
        train, test = CaffeNet(spec, "TRAIN"), CaffeNet(spec, "TEST")
        test.share_weights(train)
        assert test.weights()["a"][0] is train.weights()["a"][0]
        other = NetSpec.from_prototxt(INPUT + ip("a", "x", "a", outputs=5))
        with pytest.raises(NetError, match="layer 'a': expected shape"):
            CaffeNet(other).share_weights(train)


class TestLoss:
    def test_weighted_sum_of_all_losses_also_of_what_is_read_or_overwritten(self):
        text = (
            INPUT
            + ip("a", "x", "a", more="loss_weight: 0.5")
            + 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }\n'
            + ip("b", "a", "b", more="loss_weight: 2")
            + ip("c", "b", "c")
        )
        net = CaffeNet.from_prototxt(text, "TRAIN").double()
        x = torch.randn(4, 3, dtype=torch.float64)
        out = net({"x": x})
        raw = x @ net.weights()["a"][0].T + net.weights()["a"][1]
        b = torch.relu(raw) @ net.weights()["b"][0].T + net.weights()["b"][1]
        assert torch.allclose(net.loss(out), 0.5 * raw.sum() + 2 * b.sum())
        assert set(out) == {"a of a", "b", "c"}

    def test_a_net_without_a_loss(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a"))
        with pytest.raises(NetError, match="no top of phase TEST has a loss weight: add a loss layer"):
            net.loss(net({"x": torch.ones(2, 3)}))

    def test_outputs_of_something_else(self):
        net = CaffeNet.from_prototxt(INPUT + ip("a", "x", "a", more="loss_weight: 1"))
        with pytest.raises(NetError, match="outputs lack a"):
            net.loss({})
