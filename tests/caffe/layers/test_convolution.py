"""Convolution, Deconvolution, InnerProduct and Embed against sums written out in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from one_layer import layer_of_type
from sparknet.errors import NetError


def convolve(x: np.ndarray, weight: np.ndarray, bias, stride, pad, dilation, group: int) -> np.ndarray:
    """[batch, channels, *sizes]; one output number after the other."""
    spatial = range(x.ndim - 2)
    kernel = weight.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), *((side, side) for side in pad)])
    counts = [(padded.shape[2 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in spatial]
    outputs, inputs = weight.shape[:2]
    top = np.zeros((len(x), outputs, *counts))
    for n, o, *place in np.ndindex(*top.shape):
        first = o // (outputs // group) * inputs
        window = tuple(
            slice(place[a] * stride[a], place[a] * stride[a] + dilation[a] * (kernel[a] - 1) + 1, dilation[a])
            for a in spatial
        )
        top[n, o, *place] = (padded[n, first : first + inputs][:, *window] * weight[o]).sum() + bias[o]
    return top


def repeated(field: str, numbers) -> str:
    return " ".join(f"{field}: {number}" for number in numbers)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_convolution_is_its_sums(data: st.DataObject):
    axes = data.draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(axes)]

    kernel, stride, pad, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    sizes = [dilation[a] * (kernel[a] - 1) + data.draw(st.integers(1, 3)) for a in range(axes)]
    group = data.draw(st.sampled_from([1, 2]))
    shape = (2, 4, *sizes)
    text = f"""convolution_param {{ num_output: 6 group: {group} {repeated("kernel_size", kernel)}
        {repeated("stride", stride)} {repeated("pad", pad)} {repeated("dilation", dilation)}
        weight_filler {{ type: "gaussian" }} bias_filler {{ type: "gaussian" }} }}"""
    convolution = layer_of_type("Convolution", text, shape).double()
    assert tuple(convolution.weight.shape) == (6, 4 // group, *kernel)
    x = torch.randn(shape, dtype=torch.float64)
    weight, bias = (blob.detach().numpy() for blob in convolution.blobs())
    (top,) = convolution(x)
    np.testing.assert_allclose(
        top.detach(), convolve(x.numpy(), weight, bias, stride, pad, dilation, group), rtol=1e-10, atol=1e-10
    )
    assert convolution.multiply_adds([shape], [tuple(top.shape)]) == top[:, 0].numel() * weight.size


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2), st.sampled_from([1, 2]))
def test_deconvolution_is_the_transpose_of_convolution(
    kernel: int, stride: int, pad: int, dilation: int, group: int
):
    """<convolution(u), v> = <u, deconvolution(v)> under the same filters."""
    geometry = f"kernel_size: {kernel} stride: {stride} pad: {pad} dilation: {dilation} group: {group}"
    filler = 'weight_filler { type: "gaussian" } bias_term: false'
    down = layer_of_type(
        "Deconvolution", f"convolution_param {{ num_output: 6 {geometry} {filler} }}", (2, 4, 5, 4)
    ).double()
    v = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    (top,) = down(v)
    assert top.shape[2:] == tuple(stride * (size - 1) + dilation * (kernel - 1) + 1 - 2 * pad for size in (5, 4))
    assert tuple(down.weight.shape) == (4, 6 // group, kernel, kernel)
    u = torch.randn(top.shape, dtype=torch.float64)
    up = convolve(
        u.numpy(), down.weight.detach().numpy(), np.zeros(4), *[[n, n] for n in (stride, pad, dilation)], group
    )
    torch.testing.assert_close((torch.from_numpy(up) * v).sum(), (u * top).sum())
    assert down.multiply_adds([(2, 4, 5, 4)], [tuple(top.shape)]) == 2 * 5 * 4 * down.weight.numel()


def test_several_bottoms_share_the_filters():
    shape = (2, 3, 5, 5)
    filters = layer_of_type(
        "Convolution", "convolution_param { num_output: 2 kernel_size: 3 }", shape, shape, tops=2
    )
    with torch.no_grad():
        filters.weight.normal_()
    a, b = torch.randn(2, *shape).unbind()
    one, two = filters(a, b)
    torch.testing.assert_close(one, filters(a)[0])
    torch.testing.assert_close(two, filters(b)[0])
    assert filters.multiply_adds([shape, shape], [(2, 2, 3, 3)] * 2) == 2 * 2 * 9 * 54


@pytest.mark.parametrize(("axis", "given"), [(2, 2), (-3, 2), (0, 0), (-2, 3), (1, 1)])
def test_axes_before_the_channels_are_a_batch(axis: int, given: int):
    shape = (2, 3, 4, 5, 6)
    kernel = "kernel_size: 2"
    text = f"convolution_param {{ num_output: 2 {kernel} axis: {axis} weight_filler {{ type: 'gaussian' }} }}"
    if len(shape) - given - 1 > 3:
        shape = shape[:4]
    convolution = layer_of_type("Convolution", text, shape)
    x = torch.randn(shape)
    (top,) = convolution(x)
    flat = x.reshape(-1, *shape[given:])
    spatial = len(shape) - given - 1
    expected = getattr(torch, f"conv{spatial}d")(flat, convolution.weight, convolution.bias)
    torch.testing.assert_close(top, expected.reshape(*shape[:given], *expected.shape[1:]))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_without_spatial_axes_it_mixes_channels(kind: str):
    text = 'convolution_param { num_output: 6 kernel_size: 3 group: 2 weight_filler { type: "gaussian" } }'
    mix = layer_of_type(kind, text, (5, 4))
    assert tuple(mix.weight.shape) == ((6, 2) if kind == "Convolution" else (4, 3))
    x = torch.randn(5, 4)
    halves = [
        half @ (w.T if kind == "Convolution" else w)
        for half, w in zip(x.chunk(2, 1), mix.weight.chunk(2, 0), strict=True)
    ]
    torch.testing.assert_close(mix(x)[0], torch.cat(halves, 1))


def test_rectangles_by_either_spelling():
    shape = (1, 2, 9, 8)
    pairs = "kernel_h: 3 kernel_w: 2 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 0"
    lists = "kernel_size: 3 kernel_size: 2 stride: 2 stride: 1 pad: 1 pad: 0"
    one, two = (
        layer_of_type("Convolution", f"convolution_param {{ num_output: 2 {text} }}", shape)
        for text in (pairs, lists)
    )
    assert (one.kernel, one.stride, one.pad) == (two.kernel, two.stride, two.pad) == ((3, 2), (2, 1), (1, 0))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("details", ["engine: CAFFE", "engine: CUDNN", "engine: CUDNN force_nd_im2col: true"])
def test_frozen_details_of_the_engine_change_nothing(kind: str, details: str):
    shape, own = (2, 4, 5, 6), 'num_output: 6 kernel_size: 3 stride: 2 group: 2 weight_filler { type: "gaussian" }'
    plain, detailed = (
        layer_of_type(kind, f"convolution_param {{ {own} {more} }}", shape) for more in ("", details)
    )
    detailed.load_state_dict(plain.state_dict())
    x = torch.randn(shape).requires_grad_()
    tops = [layer(x)[0] for layer in (plain, detailed)]
    assert torch.equal(*tops)
    gradients = [torch.autograd.grad(top.square().sum(), x)[0] for top in tops]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_inner_product_is_a_matrix(axis: int, transpose: bool, bias: bool):
    shape = (2, 3, 4)
    flags = f"transpose: {transpose} bias_term: {bias}".lower()
    text = f"""inner_product_param {{ num_output: 5 axis: {axis} {flags}
        weight_filler {{ type: "gaussian" }} bias_filler {{ type: "gaussian" }} }}"""
    product = layer_of_type("InnerProduct", text, shape)
    x = torch.randn(shape)
    rows = x.numpy().reshape(*shape[: axis % 3], -1)
    weight = product.weight.detach().numpy()
    expected = rows @ (weight if transpose else weight.T)
    expected = expected + product.bias.detach().numpy() if bias else expected
    np.testing.assert_allclose(product(x).detach(), expected, rtol=1e-5, atol=1e-5)
    assert len(product.blobs()) == 1 + bias
    assert product.multiply_adds([shape], [expected.shape]) == expected.size // 5 * weight.size


@pytest.mark.parametrize("bias", [True, False])
def test_embed_reads_rows(bias: bool):
    text = f"""embed_param {{ num_output: 3 input_dim: 5 bias_term: {str(bias).lower()}
        weight_filler {{ type: "gaussian" }} bias_filler {{ type: "gaussian" }} }}"""
    embed = layer_of_type("Embed", text, (2, 4))
    x = torch.tensor([[0.0, 4, 2, 2], [1, 1, 1, 0]])
    top = embed(x)
    for at in np.ndindex(2, 4):
        torch.testing.assert_close(top[at], embed.weight[int(x[at])] + (embed.bias if bias else 0))
    top.sum().backward()
    assert embed.weight.grad[:, 0].tolist() == [2, 3, 2, 0, 1]
    assert embed.multiply_adds([(2, 4)], [(2, 4, 3)]) == 0


@pytest.mark.parametrize("index", [-1.0, 5.0])
def test_embed_names_an_index_out_of_range(index: float):
    embed = layer_of_type("Embed", "embed_param { num_output: 3 input_dim: 5 }", (2,))
    with pytest.raises(NetError, match=f"index {index:.0f} is out of range; it must be from 0 to 4"):
        embed(torch.tensor([0.0, index]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_im2col_is_its_windows(data: st.DataObject):
    axes, front = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 2))

    def each(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(axes)]

    kernel, stride, pad, dilation = each(1, 2), each(1, 2), each(0, 2), each(1, 2)
    least = [max(1, dilation[a] * (kernel[a] - 1) + 1 - 2 * pad[a]) for a in range(axes)]
    sizes = [low + data.draw(st.integers(0, 2)) for low in least]
    outer, channels = [2, 2][:front], data.draw(st.integers(1, 3))
    shape = (*outer, channels, *sizes)
    text = " ".join(
        repeated(field, numbers)
        for field, numbers in (("kernel_size", kernel), ("stride", stride), ("pad", pad), ("dilation", dilation))
    )
    named = data.draw(st.sampled_from([front, front - len(shape)]))
    made = layer_of_type("Im2col", f"convolution_param {{ axis: {named} {text} }}", shape)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    top = made(x)
    padded = np.pad(x.detach().numpy(), [(0, 0)] * (front + 1) + [(side, side) for side in pad])
    counts = [
        (padded.shape[front + 1 + a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in range(axes)
    ]
    expected, uses = np.zeros((*outer, channels, *kernel, *counts)), np.zeros(padded.shape)
    for place in np.ndindex(*kernel, *counts):
        within, window = place[:axes], place[axes:]
        at = tuple(window[a] * stride[a] + within[a] * dilation[a] for a in range(axes))
        expected[(..., *place)] = padded[(..., *at)]
        uses[(..., *at)] += 1
    np.testing.assert_array_equal(top.detach().numpy(), expected.reshape(*outer, -1, *counts))
    # each number's gradient: in how many windows it is
    top.sum().backward()
    inner = tuple(slice(side, size - side) for side, size in zip(pad, padded.shape[front + 1 :], strict=True))
    np.testing.assert_array_equal(x.grad.numpy(), uses[(..., *inner)])


def test_a_convolution_is_its_filters_times_im2col():
    window = "kernel_size: 3 stride: 2 pad: 1 dilation: 2"
    filled = 'num_output: 4 bias_term: false weight_filler { type: "gaussian" }'
    x = torch.randn(2, 3, 9, 7)
    convolution = layer_of_type("Convolution", f"convolution_param {{ {window} {filled} }}", tuple(x.shape))
    columns = layer_of_type("Im2col", f"convolution_param {{ {window} }}", tuple(x.shape))(x)
    (expected,) = convolution(x)
    found = torch.einsum("ok,nkhw->nohw", convolution.weight.flatten(1), columns)
    torch.testing.assert_close(found, expected)
