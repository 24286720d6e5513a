"""Concat, Slice, Split and Eltwise: numbers, gradients, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from one_layer import export, fault, gradients, layer, run
from sparknet.caffe import CaffeNet
from sparknet.errors import NetError

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)


def numbers(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Small whole numbers, so that there are many ties."""
    return np.random.default_rng(seed).integers(-2, 3, size=shape).astype(float)


class TestConcat:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), data=st.data())
    def test_numbers_and_gradients(self, shape, sizes, data):
        axis = data.draw(st.integers(-len(shape), len(shape) - 1))
        bottoms = []
        for place, size in enumerate(sizes):
            own = list(shape)
            own[axis] = size
            bottoms.append(numbers(place, tuple(own)))
        text = f'type: "Concat" concat_param {{ axis: {axis} }}'
        (top,) = run(text, *bottoms)
        np.testing.assert_array_equal(top, np.concatenate(bottoms, axis))
        diff = np.random.default_rng(9).normal(size=top.shape)
        found = gradients(text, *bottoms, top_diff=[diff])
        np.testing.assert_array_equal(np.concatenate(found, axis), diff)

    def test_the_old_name_of_the_axis(self):
        a, b = numbers(0, (2, 3)), numbers(1, (4, 3))
        assert run('type: "Concat" concat_param { concat_dim: 0 }', a, b)[0].shape == (6, 3)
        assert "axis is 1 and concat_dim is 0; they mean the same" in fault(
            'type: "Concat" concat_param { axis: 1 concat_dim: 0 }', (2, 3), (4, 3)
        )
        assert "concat_dim is 2" in fault('type: "Concat" concat_param { concat_dim: 2 }', (2, 3), (4, 3))

    def test_faults(self):
        message = fault('type: "Concat"', (2, 3, 4), (2, 5, 4), (2, 3, 5))
        assert "bottom 2 ('b2') has shape (2, 3, 5) and bottom 0 ('b0') (2, 3, 4)" in message
        assert "along axis 1 alone" in message
        assert "bottom 1 ('b1') has shape (2, 3)" in fault('type: "Concat"', (2, 3, 4), (2, 3))
        assert "axis is -4" in fault('type: "Concat" concat_param { axis: -4 }', (2, 3, 4))


class TestSlice:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), data=st.data())
    def test_at_points(self, shape, sizes, data):
        axis = data.draw(st.integers(-len(shape), len(shape) - 1))
        own = list(shape)
        own[axis] = sum(sizes)
        x = numbers(0, tuple(own))
        points = np.cumsum(sizes)[:-1].tolist()
        tops = " ".join(f'top: "t{place}"' for place in range(len(sizes)))
        text = (
            f'type: "Slice" {tops} slice_param {{ axis: {axis} '
            + " ".join(f"slice_point: {p}" for p in points)
            + "}"
        )
        found = run(text, x)
        for mine, expected in zip(found, np.split(x, points, axis), strict=True):
            np.testing.assert_array_equal(mine, expected)
        diffs = [np.random.default_rng(place).normal(size=top.shape) for place, top in enumerate(found)]
        np.testing.assert_array_equal(gradients(text, x, top_diff=diffs)[0], np.concatenate(diffs, axis))

    def test_equal_parts_and_the_old_name_of_the_axis(self):
        x = numbers(0, (6, 4))
        text = 'type: "Slice" top: "a" top: "b" slice_param {{ {} }}'
        assert [top.shape for top in run(text.format(""), x)] == [(6, 2), (6, 2)]
        assert [top.shape for top in run(text.format("slice_dim: 0"), x)] == [(3, 4), (3, 4)]
        assert "slice_dim is 0; they mean the same" in fault(text.format("slice_dim: 0 axis: 0"), (6, 4))

    @pytest.mark.parametrize(
        ("points", "expected"),
        [
            ([2], "slice_point is given 1 times for 3 tops; give it 2 times"),
            ([3, 2], "slice_point is 3, 2; expected rising numbers from 1 to 5"),
            ([2, 2], "slice_point is 2, 2"),
            ([0, 2], "slice_point is 0, 2"),
            ([2, 6], "slice_point is 2, 6"),
            ([2, 9], "slice_point is 2, 9"),
        ],
    )
    def test_faults_of_points(self, points, expected):
        text = 'type: "Slice" top: "a" top: "b" top: "c" slice_param { '
        assert expected in fault(text + " ".join(f"slice_point: {p}" for p in points) + "}", (2, 6))

    def test_faults(self):
        assert "3 tops cannot share the 4 entries of axis 1" in fault(
            'type: "Slice" top: "a" top: "b" top: "c"', (2, 4)
        )
        assert "axis is 2" in fault('type: "Slice" top: "a" slice_param { axis: 2 }', (2, 4))


def test_split_adds_gradients_up():
    x = numbers(0, (2, 3))
    text = 'type: "Split" top: "a" top: "b" top: "c"'
    assert all((top == x).all() for top in run(text, x))
    assert (gradients(text, x)[0] == 3).all()


class TestEltwise:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, count=st.integers(2, 4), coefficients=st.booleans())
    def test_sum(self, shape, count, coefficients):
        bottoms = [numbers(place, shape) for place in range(count)]
        factors = [[1.0, -0.5, 0.0, 2.0][place] if coefficients else 1.0 for place in range(count)]
        given_ = " ".join(f"coeff: {factor}" for factor in factors) if coefficients else ""
        text = f'type: "Eltwise" eltwise_param {{ operation: SUM {given_} }}'
        (top,) = run(text, *bottoms)
        np.testing.assert_allclose(top, sum(f * x for f, x in zip(factors, bottoms, strict=True)))
        for found, factor in zip(gradients(text, *bottoms), factors, strict=True):
            assert (found == factor).all()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, count=st.integers(2, 4), stable=st.sampled_from(["true", "false"]))
    def test_product(self, shape, count, stable):
        bottoms = [numbers(place, shape) for place in range(count)]
        text = f'type: "Eltwise" eltwise_param {{ operation: PROD stable_prod_grad: {stable} }}'
        (top,) = run(text, *bottoms)
        np.testing.assert_array_equal(top, np.prod(bottoms, axis=0))
        for place, found in enumerate(gradients(text, *bottoms)):
            np.testing.assert_array_equal(found, np.prod(bottoms[:place] + bottoms[place + 1 :], axis=0))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(shape=shapes, count=st.integers(2, 4))
    def test_maximum_and_who_gets_the_gradient_of_equal_numbers(self, shape, count):
        bottoms = [numbers(place, shape) for place in range(count)]
        best, winner = bottoms[1].copy(), np.ones(shape)
        for at in np.ndindex(shape):
            if bottoms[0][at] > bottoms[1][at]:
                best[at], winner[at] = bottoms[0][at], 0
            for place in range(2, count):
                if bottoms[place][at] > best[at]:
                    best[at], winner[at] = bottoms[place][at], place
        text = 'type: "Eltwise" eltwise_param { operation: MAX }'
        (top,) = run(text, *bottoms)
        np.testing.assert_array_equal(top, best)
        for place, found in enumerate(gradients(text, *bottoms)):
            np.testing.assert_array_equal(found, winner == place)

    def test_maximum_reads_no_coefficients(self):
        a, b = numbers(0, (2, 3)), numbers(1, (2, 3))
        text = 'type: "Eltwise" eltwise_param { operation: MAX coeff: 5 coeff: -1 }'
        np.testing.assert_array_equal(run(text, a, b)[0], np.maximum(a, b))

    def test_faults(self):
        assert "bottom 1 ('b1') has shape (2, 4) and bottom 0 ('b0') (2, 3)" in fault(
            'type: "Eltwise"', (2, 3), (2, 4)
        )
        assert "coeff is given 1 times for 2 bottoms" in fault(
            'type: "Eltwise" eltwise_param { coeff: 1 }', (2, 3), (2, 3)
        )
        assert "operation is PROD and coeff is given" in fault(
            'type: "Eltwise" eltwise_param { operation: PROD coeff: 1 coeff: 1 }', (2, 3), (2, 3)
        )
        with pytest.raises(NetError, match=r"it has 1 bottoms; a layer of this type has at least 2"):
            CaffeNet.from_prototxt(
                'layer { name: "i" type: "Input" top: "x" input_param { shape { dim: 2 } } }\n'
                'layer { name: "e" type: "Eltwise" bottom: "x" top: "y" }\n'
            )


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX"])
def test_eltwise_never_spreads_one_bottom_over_another(operation):
    module = layer(f'type: "Eltwise" eltwise_param {{ operation: {operation} }}', (4, 3), (4, 3), (4, 3))
    whole = torch.ones(4, 3)
    with pytest.raises(NetError, match=r"bottom 2 has shape \(1, 3\) and bottom 0 \(4, 3\); they must be equal"):
        module(whole, whole, torch.ones(1, 3))


def test_they_keep_channels_last():
    x = torch.randn(2, 4, 3, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    for module in (layer('type: "Eltwise"', x.shape, x.shape), layer('type: "Concat"', x.shape, x.shape)):
        assert module(x, x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("text", "bottoms"),
    [
        ('type: "Concat"', 3),
        ('type: "Concat" concat_param { axis: 0 }', 2),
        ('type: "Slice" top: "a" top: "b"', 1),
        ('type: "Slice" top: "a" top: "b" slice_param { axis: 2 slice_point: 1 }', 1),
        ('type: "Split" top: "a" top: "b"', 1),
        ('type: "Eltwise" eltwise_param { coeff: 1 coeff: -1 }', 2),
        ('type: "Eltwise" eltwise_param { operation: MAX }', 3),
        ('type: "Eltwise" eltwise_param { operation: PROD }', 3),
    ],
)
def test_they_export(text, bottoms):
    export(text, *(numbers(place, (2, 4, 3)) for place in range(bottoms)))


def test_what_shares_memory_with_its_bottom_is_never_overwritten():
    head = (
        'layer { name: "i" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }\n'
        'layer { name: "t" type: "Power" bottom: "x" top: "h" power_param { shift: 0.5 } }\n'
    )
    for maker in (
        'type: "Slice" bottom: "h" top: "a" top: "b"',
        'type: "Split" bottom: "h" top: "a" top: "b"',
        'type: "Flatten" bottom: "h" top: "a"',
        'type: "Reshape" bottom: "h" top: "a" reshape_param { shape { dim: 0 dim: -1 } }',
    ):
        net = CaffeNet.from_prototxt(
            head
            + f'layer {{ name: "m" {maker} }}\n'
            + 'layer { name: "r" type: "ReLU" bottom: "a" top: "a" }\n'
            + 'layer { name: "late" type: "Power" bottom: "h" top: "y" }\n'
        )
        x = torch.randn(2, 4)
        assert torch.equal(net({"x": x}, ["y"])["y"], x + 0.5), maker


@pytest.mark.parametrize(
    ("text", "bottoms"),
    [
        ('type: "Concat"', 1),
        ('type: "Concat"', 2),
        ('type: "Eltwise" eltwise_param { coeff: 2 coeff: -1 }', 2),
        ('type: "Eltwise" eltwise_param { operation: MAX }', 3),
        ('type: "Eltwise" eltwise_param { operation: PROD }', 2),
        ('type: "Eltwise" eltwise_param { operation: PROD }', 3),
        ('type: "Tile" tile_param { tiles: 1 }', 1),
        ('type: "Tile" tile_param { tiles: 2 }', 1),
    ],
)
def test_what_needs_no_output_survives_its_overwriting(text, bottoms):
    module = layer(text, *[(2, 3)] * bottoms)
    assert not module.needs_output
    given_ = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(bottoms)]
    before = [x.detach().clone() for x in given_]
    expected = torch.autograd.grad(module(*given_).sum(), given_)
    top = module(*given_)
    with torch.no_grad():
        top.zero_()
    torch.testing.assert_close(torch.autograd.grad(top.sum(), given_), expected)
    torch.testing.assert_close([x.detach() for x in given_], before)
