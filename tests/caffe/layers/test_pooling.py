"""Pooling against Caffe's loops, written out in numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from one_layer import layer_of_type
from sparknet.errors import NetError

OUTSIDE = -3.4028234663852886e38


def size_after(size: int, kernel: int, stride: int, pad: int, *, floor: bool, padded: bool) -> int:
    rounded = math.floor if floor else math.ceil
    count = rounded((size + 2 * pad - kernel) / stride) + 1
    return count - 1 if padded and (count - 1) * stride >= size + pad else count


def counts_of(shape, kernel, stride, pad, *, floor: bool) -> list[int]:
    return [
        size_after(size, kernel[at], stride[at], pad[at], floor=floor, padded=any(pad))
        for at, size in enumerate(shape[2:])
    ]


def pool(x: np.ndarray, gradient: np.ndarray | None, method: str, kernel, stride, pad, *, floor: bool):
    """Top, place of each value, and the bottom's gradient, one window after the other."""
    batch, channels, height, width = x.shape
    counts = counts_of(x.shape, kernel, stride, pad, floor=floor)
    top = np.full((batch, channels, *counts), OUTSIDE if method == "MAX" else 0.0)
    places = np.full(top.shape, -1)
    down = np.zeros_like(x)
    for n, c, i, j in np.ndindex(*top.shape):
        h, w = i * stride[0] - pad[0], j * stride[1] - pad[1]
        h_end, w_end = min(h + kernel[0], height + pad[0]), min(w + kernel[1], width + pad[1])
        area = (h_end - h) * (w_end - w)
        rows, columns = range(max(h, 0), min(h_end, height)), range(max(w, 0), min(w_end, width))
        grade = 0.0 if gradient is None else gradient[n, c, i, j]
        for at in [(y, z) for y in rows for z in columns]:
            if method == "AVE":
                top[n, c, i, j] += x[n, c, *at] / area
                down[n, c, *at] += grade / area
            elif x[n, c, *at] > top[n, c, i, j]:
                top[n, c, i, j] = x[n, c, *at]
                places[n, c, i, j] = at[0] * width + at[1]
        if method == "MAX" and places[n, c, i, j] >= 0:
            down[n, c].flat[places[n, c, i, j]] += grade
    return top, places, down


@st.composite
def geometries(draw: st.DrawFn):
    kernel = [draw(st.integers(1, 5)) for _ in range(2)]
    pad = [draw(st.integers(0, side - 1)) for side in kernel]
    stride = [draw(st.integers(1, 6)) for _ in range(2)]
    sizes = [draw(st.integers(1, 9)) for _ in range(2)]
    return sizes, kernel, stride, pad


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    geometries(),
    st.sampled_from(["MAX", "AVE"]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_pooling_is_caffes_loops(geometry, method: str, floor: bool, channels_last: bool, seed: int):
    sizes, kernel, stride, pad = geometry
    random = np.random.default_rng(seed)
    x = random.integers(-3, 4, (2, 2, *sizes)).astype(np.float64)  # whole numbers: there are ties
    counts = counts_of(x.shape, kernel, stride, pad, floor=floor)
    assume(min(counts) >= 1)
    gradient = random.normal(size=(2, 2, *counts))
    top, places, down = pool(x, gradient, method, kernel, stride, pad, floor=floor)
    text = f"""pooling_param {{ pool: {method} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {stride[0]}
        stride_w: {stride[1]} pad_h: {pad[0]} pad_w: {pad[1]} round_mode: {"FLOOR" if floor else "CEIL"} }}"""
    tensor = torch.from_numpy(x)
    if channels_last:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    tensor.requires_grad_()
    tops = 2 if method == "MAX" else 1
    results = layer_of_type("Pooling", text, (2, 2, *sizes), tops=tops)(tensor)
    mine = results[0] if tops == 2 else results
    mine.backward(torch.from_numpy(gradient))
    np.testing.assert_allclose(mine.detach().numpy(), top, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(tensor.grad, down, rtol=1e-12, atol=1e-12)
    if tops == 2:
        np.testing.assert_array_equal(results[1].numpy(), places)
        alone = layer_of_type("Pooling", text, (2, 2, *sizes))(tensor)
        torch.testing.assert_close(alone, mine, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "text"), [("Pooling", "pooling_param { kernel_size: 2 }"), ("SPP", "spp_param { pyramid_height: 1 }")]
)
def test_a_bottom_without_batch_is_refused(kind: str, text: str):
    with pytest.raises(NetError, match=r"shape \(3, 4, 5\); it must have four axes"):
        layer_of_type(kind, text, (2, 3, 4, 5))(torch.zeros(3, 4, 5))


def test_one_number_serves_both_sides():
    x = torch.randn(1, 2, 9, 8)
    one = layer_of_type("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }", x.shape)
    two = layer_of_type(
        "Pooling",
        "pooling_param { kernel_h: 3 kernel_w: 3 stride_h: 2 stride_w: 2 pad_h: 1 pad_w: 1 }",
        x.shape,
    )
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_global_pooling_follows_the_size_of_each_pass(method: str):
    pooling = layer_of_type("Pooling", f"pooling_param {{ pool: {method} global_pooling: true }}", (2, 3, 4, 5))
    pooling.eval()
    assert pooling(torch.rand(4, 3, 6, 2)).shape == (4, 3, 1, 1)


def test_stochastic_in_evaluation_weighs_by_value():
    x = torch.tensor([[[[1.0, 3.0, 2.0], [0.0, 0.0, 5.0]]]])
    pooling = layer_of_type(
        "Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }", x.shape
    ).eval()
    torch.testing.assert_close(pooling(x), torch.tensor([[[[10 / 4, 29 / 7]]]]))


def test_stochastic_in_training_draws_in_proportion():
    torch.manual_seed(1)
    x = torch.tensor([1.0, 3.0, 0.0, 4.0]).view(1, 1, 2, 2).repeat(4000, 1, 1, 1).requires_grad_()
    pooling = layer_of_type("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 stride: 2 }", x.shape)
    top = pooling(x)
    drawn = top.flatten()
    for value, share in ((1, 1 / 8), (3, 3 / 8), (0, 0), (4, 1 / 2)):
        assert abs((drawn == value).double().mean().item() - share) < 0.04
    top.sum().backward()
    chosen = x.grad.flatten(1).argmax(1)
    torch.testing.assert_close(x.detach().flatten(1).gather(1, chosen[:, None]).flatten(), drawn.detach())
    assert x.grad.sum() == 4000


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_stochastic_and_other_windows_of_zeros_stay_zero(method: str):
    text = f"pooling_param {{ pool: {method} kernel_size: 2 stride: 2 }}"
    x = torch.zeros(1, 1, 3, 3, requires_grad=True)
    for training in (True, False):
        top = layer_of_type("Pooling", text, x.shape).train(training)(x)
        assert (top == 0).all()
        (gradient,) = torch.autograd.grad(top.sum(), x)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("sizes", [(9, 9), (13, 10), (8, 8)])
def test_pyramid_is_its_levels_in_a_row(method: str, sizes: tuple[int, int]):
    x = torch.randn(2, 3, *sizes, dtype=torch.float64)
    pyramid = layer_of_type("SPP", f"spp_param {{ pyramid_height: 3 pool: {method} }}", x.shape)
    levels = []
    for bins in (1, 2, 4):
        kernel = [math.ceil(size / bins) for size in sizes]
        pad = [(side * bins - size + 1) // 2 for side, size in zip(kernel, sizes, strict=True)]
        levels.append(pool(x.numpy(), None, method, kernel, kernel, pad, floor=False)[0].reshape(2, -1))
    np.testing.assert_allclose(pyramid(x).numpy(), np.concatenate(levels, 1), rtol=1e-12)


def test_pyramid_of_one_level_is_not_flattened():
    assert layer_of_type("SPP", "spp_param { pyramid_height: 1 }", (2, 3, 5, 5))(torch.randn(2, 3, 5, 5)).shape == (
        2,
        3,
        1,
        1,
    )


def test_pyramid_draws_stochastically_where_nothing_is_padded():
    pyramid = layer_of_type("SPP", "spp_param { pyramid_height: 2 pool: STOCHASTIC }", (2, 3, 4, 4))
    assert pyramid(torch.rand(2, 3, 4, 4)).shape == (2, 3 * 5)
