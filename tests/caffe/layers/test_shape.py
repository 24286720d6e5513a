"""Flatten, Reshape, Crop, Tile, Reduction, Silence, BatchReindex: numbers, gradients, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from one_layer import export, fault, gradients, layer, run
from sparknet.caffe import CaffeNet
from sparknet.errors import NetError

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


class TestFlatten:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, data=st.data())
    def test_axes(self, shape, data):
        start = data.draw(st.integers(0, len(shape) - 1))
        end = data.draw(st.integers(max(0, start - 1), len(shape) - 1))
        named = data.draw(st.sampled_from([(start, end), (start - len(shape), end - len(shape))]))
        x = numbers(shape)
        text = f'type: "Flatten" flatten_param {{ axis: {named[0]} end_axis: {named[1]} }}'
        expected = x.reshape(*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
        np.testing.assert_array_equal(run(text, x)[0], expected)

    def test_faults(self):
        assert "end_axis is 3" in fault('type: "Flatten" flatten_param { end_axis: 3 }', (2, 3, 4))
        assert "axis is 1; the bottom has shape (2,)" in fault('type: "Flatten"', (2,))
        assert "axis is 2 and end_axis is 0" in fault(
            'type: "Flatten" flatten_param { axis: 2 end_axis: 0 }', (2, 3, 4)
        )


class TestReshape:
    @pytest.mark.parametrize(
        ("text", "bottom", "expected"),
        [
            ("shape { dim: 0 dim: 0 dim: -1 }", (2, 3, 4, 5), (2, 3, 20)),
            ("shape { dim: 0 dim: -1 }", (2, 3, 4, 5), (2, 60)),
            ("shape { dim: -1 }", (2, 3, 4), (24,)),
            ("shape { dim: -1 dim: 6 }", (2, 3, 4), (4, 6)),
            ("shape { dim: 4 dim: 6 }", (2, 3, 4), (4, 6)),
            ("shape { dim: 2 dim: -1 } axis: 1", (2, 6, 4), (2, 2, 12)),
            ("shape { dim: -1 dim: 3 } axis: 1 num_axes: 1", (2, 6, 4), (2, 2, 3, 4)),
            ("shape { dim: 0 dim: 1 } axis: 1 num_axes: 1", (2, 6, 4), (2, 6, 1, 4)),
            ("shape { dim: 1 } axis: 0 num_axes: 0", (2, 3), (1, 2, 3)),
            ("shape { dim: 1 } axis: 1 num_axes: 0", (2, 3), (2, 1, 3)),
            ("shape { dim: 1 dim: 1 } axis: -1", (2, 3), (2, 3, 1, 1)),
            ("shape { dim: 3 dim: 1 } axis: -2", (2, 3), (2, 3, 1)),
            ("shape { dim: -1 } axis: -3", (2, 3), (6,)),
            ("shape { dim: 0 dim: 0 } axis: 1 num_axes: 1", (2, 6, 4), None),
            ("axis: 1 num_axes: 1", (2, 1, 4), (2, 4)),
            ("axis: 1", (2, 1, 1), (2,)),
            ("shape { dim: 1 dim: 1 dim: 1 }", (1,), (1, 1, 1)),
        ],
    )
    def test_shapes(self, text, bottom, expected):
        text = f'type: "Reshape" reshape_param {{ {text} }}'
        if expected is None:
            assert "do not fit" in fault(text, bottom)
            return
        x = numbers(bottom)
        np.testing.assert_array_equal(run(text, x)[0], x.reshape(expected))
        assert (gradients(text, x)[0] == 1).all()

    def test_another_batch(self):
        module = layer('type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 2 } }', (2, 3, 4))
        assert module(torch.zeros(5, 3, 4)).shape == (5, 6, 2)
        module = layer('type: "Reshape" reshape_param { shape { dim: -1 dim: 6 } }', (2, 3, 4))
        assert module(torch.zeros(5, 3, 4)).shape == (10, 6)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("shape { dim: -1 dim: -1 }", "shape is (-1, -1); expected sizes, 0 to copy one, and at most one -1"),
            ("shape { dim: -2 }", "shape is (-2,)"),
            ("shape { dim: 5 dim: -1 }", "holds 24 numbers, which do not fit shape (5, -1)"),
            ("shape { dim: 5 dim: 5 }", "holds 24 numbers, which do not fit shape (5, 5)"),
            ("shape { dim: 2 dim: 3 dim: 4 dim: 0 }", "its 0 at place 3 copies axis 3, which a bottom of shape"),
            ("shape { dim: 1 } axis: 4", "axis is 4; for a bottom of shape (2, 3, 4) it must be from -4 to 3"),
            ("shape { dim: 1 } axis: -5", "axis is -5"),
            ("shape { dim: 1 } axis: 2 num_axes: 2", "num_axes is 2; from axis 2 of a bottom of shape (2, 3, 4)"),
            ("shape { dim: 1 } num_axes: -2", "num_axes is -2"),
        ],
    )
    def test_faults(self, text, expected):
        assert expected in fault(f'type: "Reshape" reshape_param {{ {text} }}', (2, 3, 4))


class TestCrop:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, data=st.data())
    def test_numbers_and_gradient(self, shape, data):
        axis = data.draw(st.integers(0, len(shape) - 1))
        sizes = [data.draw(st.integers(1, size)) for size in shape]
        room = [size - small for size, small in zip(shape, sizes, strict=True)][axis:]
        way = data.draw(st.sampled_from(["none", "one", "each"]))
        offsets = {
            "none": [0] * len(room),
            "one": [min(room)] * len(room),
            "each": [data.draw(st.integers(0, free)) for free in room],
        }[way]
        given_ = {"none": [], "one": offsets[:1], "each": offsets}[way]
        named = data.draw(st.sampled_from([axis, axis - len(shape)]))
        text = f'type: "Crop" crop_param {{ axis: {named} ' + " ".join(f"offset: {at}" for at in given_) + "}"
        x = numbers(shape)
        where = (slice(None),) * axis + tuple(
            slice(at, at + size) for at, size in zip(offsets, sizes[axis:], strict=True)
        )
        reference = np.zeros((*(9,) * axis, *sizes[axis:]))  # sizes before the axis do not matter
        np.testing.assert_array_equal(run(text, x, reference)[0], x[where])
        expected = np.zeros(shape)
        expected[where] = 1
        to_x, to_reference = gradients(text, x, reference)
        np.testing.assert_array_equal(to_x, expected)
        assert not to_reference.any()

    def test_faults(self):
        assert "offset is given 3 times; a crop from axis 2" in fault(
            'type: "Crop" crop_param { offset: 1 offset: 1 offset: 1 }', (2, 3, 6, 7), (2, 3, 4, 4)
        )
        message = fault('type: "Crop" crop_param { offset: 3 }', (2, 3, 6, 7), (2, 3, 4, 4))
        assert "axis 2 of the first bottom has size 6; offset 3 and the second bottom's size 4 reach 7" in message
        assert "expected as many axes as the first" in fault('type: "Crop"', (2, 3, 6, 7), (2, 3))
        assert "axis is 4" in fault('type: "Crop" crop_param { axis: 4 }', (2, 3, 6, 7), (2, 3, 6, 7))


class TestTile:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(shape=shapes, tiles=st.integers(1, 4), data=st.data())
    def test_numbers_and_gradient(self, shape, tiles, data):
        axis = data.draw(st.integers(-len(shape), len(shape) - 1))
        x = numbers(shape)
        text = f'type: "Tile" tile_param {{ axis: {axis} tiles: {tiles} }}'
        np.testing.assert_array_equal(run(text, x)[0], np.concatenate([x] * tiles, axis))
        assert (gradients(text, x)[0] == tiles).all()

    def test_as_many_tiles_as_a_blob_can_hold(self):
        module = layer('type: "Tile" tile_param { axis: 0 tiles: 2147483647 }', (1, 1))
        assert module(torch.empty(1, 1, device="meta")).shape == (2147483647, 1)

    def test_faults(self):
        assert "tiles is not given; it must be at least 1" in fault('type: "Tile"', (2, 3))
        assert "tiles is 0" in fault('type: "Tile" tile_param { tiles: 0 }', (2, 3))
        assert "tiles is -1" in fault('type: "Tile" tile_param { tiles: -1 }', (2, 3))
        assert "axis is 2" in fault('type: "Tile" tile_param { tiles: 2 axis: 2 }', (2, 3))


class TestReduction:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        shape=shapes,
        operation=st.sampled_from(["SUM", "ASUM", "SUMSQ", "MEAN"]),
        coeff=st.sampled_from([1.0, -0.5, 3.0]),
        data=st.data(),
    )
    def test_numbers_and_gradient(self, shape, operation, coeff, data):
        axis = data.draw(st.integers(0, len(shape) - 1))
        named = data.draw(st.sampled_from([axis, axis - len(shape)]))
        x = numbers(shape).round(1)
        x.flat[0] = 0  # where |x| has no derivative Caffe's is 0
        rows = x.reshape(*shape[:axis], -1)
        text = f'type: "Reduction" reduction_param {{ operation: {operation} axis: {named} coeff: {coeff} }}'
        taken = {"SUM": rows, "ASUM": abs(rows), "SUMSQ": rows**2, "MEAN": rows / rows.shape[-1]}[operation]
        (top,) = run(text, x)
        assert top.shape == shape[:axis]
        np.testing.assert_allclose(top, coeff * taken.sum(-1), atol=1e-12)
        slope = {"SUM": x * 0 + 1, "ASUM": np.sign(x), "SUMSQ": 2 * x, "MEAN": x * 0 + 1 / rows.shape[-1]}[
            operation
        ]
        np.testing.assert_allclose(gradients(text, x)[0], coeff * slope, atol=1e-12)

    def test_faults(self):
        assert "axis is 2" in fault('type: "Reduction" reduction_param { axis: 2 }', (2, 3))


def test_silence_takes_blobs_out_of_the_outputs():
    net = CaffeNet.from_prototxt(
        'layer { name: "i" type: "Input" top: "x" top: "z" input_param { shape { dim: 2 } } }\n'
        'layer { name: "q" type: "Silence" bottom: "x" bottom: "z" }\n'
        'layer { name: "p" type: "Power" bottom: "x" top: "y" }\n'
    )
    assert net.outputs == ("y",)
    x = torch.ones(2, requires_grad=True)
    net({"x": x, "z": torch.ones(2)})["y"].sum().backward()
    assert x.grad.tolist() == [1, 1]


class TestBatchReindex:
    def test_numbers_and_gradient(self):
        x, chosen = numbers((3, 2, 2)), np.array([2.0, 0, 2, 2])
        np.testing.assert_array_equal(run('type: "BatchReindex"', x, chosen)[0], x[[2, 0, 2, 2]])
        to_x, to_chosen = gradients('type: "BatchReindex"', x, chosen)
        assert to_x[:, 0, 0].tolist() == [1, 0, 3]
        assert not to_chosen.any()

    def test_faults(self):
        assert "indices into it along one axis" in fault('type: "BatchReindex"', (3, 2), (2, 2))
        module = layer('type: "BatchReindex"', (3, 2), (1,))
        with pytest.raises(NetError, match="index 3 is out of range; it must be from 0 to 2"):
            module(torch.zeros(3, 2), torch.tensor([3.0]))


class TestFilter:
    TEXT = 'type: "Filter" top: "a" top: "b"'

    @pytest.mark.parametrize("selector", [(1, 0, 2, 0), (0, 0, 0, 0), (-1, 0.5, 3, 1), (0, 0, 0, 1)])
    @pytest.mark.parametrize("axes", [(), (1,), (1, 1, 1)])
    def test_numbers_and_gradient(self, selector, axes):
        x, y, chosen = numbers((4, 2, 3)), numbers((4,)), np.array(selector, float)
        module = layer(self.TEXT, (4, 2, 3), (4,), (4, *axes))
        bottoms = [torch.tensor(one).requires_grad_() for one in (x, y, chosen.reshape(4, *axes))]
        tops = module(*bottoms)
        for top, array in zip(tops, (x, y), strict=True):
            np.testing.assert_array_equal(top.detach().numpy(), array[chosen != 0])
        (tops[0].sum() + 2 * tops[1].sum()).backward()
        np.testing.assert_array_equal(bottoms[0].grad.numpy(), np.ones_like(x) * (chosen != 0)[:, None, None])
        np.testing.assert_array_equal(bottoms[1].grad.numpy(), 2.0 * (chosen != 0))
        assert bottoms[2].grad is None

    def test_in_a_net_the_size_is_planned_as_if_all_were_chosen(self):
        net = CaffeNet.from_prototxt(
            'layer { name: "i" type: "Input" top: "x" top: "s" input_param { '
            "shape { dim: 3 dim: 2 } shape { dim: 3 } } }\n"
            'layer { name: "f" type: "Filter" bottom: "x" bottom: "s" top: "y" }\n'
            'layer { name: "p" type: "Power" bottom: "y" top: "z" power_param { scale: 2 } }\n'
        )
        assert net.shapes["y"] == (3, 2)
        found = net({"x": torch.ones(3, 2), "s": torch.tensor([0, 1, 0])})
        assert found["z"].tolist() == [[2, 2]]

    def test_faults(self):
        assert "it has 2 tops and 1 bottoms before the one that selects" in fault(self.TEXT, (4, 2), (4,))
        assert "has shape (4, 2); expected one number an item" in fault('type: "Filter"', (4, 2), (4, 2))
        assert "has shape (); expected one number an item" in fault('type: "Filter"', (4, 2), ())
        assert "first sizes must agree" in fault('type: "Filter"', (4, 2), (3,))
        module = layer('type: "Filter"', (4, 2), (4,))
        with pytest.raises((RuntimeError, IndexError)):
            module(torch.zeros(3, 2), torch.ones(4))

    def test_it_exports(self):
        export('type: "Filter"', numbers((3, 2)), np.array([2.0, 0, 1]))


@pytest.mark.parametrize(
    "text",
    [
        'type: "Flatten"',
        'type: "Flatten" flatten_param { axis: 0 end_axis: 1 }',
        'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 dim: 2 } }',
        'type: "Reshape" reshape_param { shape { dim: -1 dim: 6 } }',
        'type: "Tile" tile_param { axis: 0 tiles: 2 }',
        'type: "Reduction" reduction_param { operation: MEAN axis: 1 }',
        'type: "Reduction" reduction_param { operation: ASUM }',
    ],
)
def test_they_export(text):
    export(text, numbers((2, 3, 4)))


def test_crop_and_batch_reindex_export():
    export('type: "Crop" crop_param { offset: 1 }', numbers((2, 3, 5, 5)), numbers((2, 3, 4, 3)))
    export('type: "BatchReindex"', numbers((3, 2)), np.array([2.0, 0.0]))


def test_channels_last_blobs_are_read_in_caffes_order():
    x = torch.arange(2 * 3 * 2 * 2, dtype=torch.float64).reshape(2, 3, 2, 2)
    strided = x.to(memory_format=torch.channels_last)
    for text in ('type: "Flatten"', 'type: "Reshape" reshape_param { shape { dim: 2 dim: 12 } }'):
        assert layer(text, x.shape)(strided).tolist() == x.reshape(2, 12).tolist()
