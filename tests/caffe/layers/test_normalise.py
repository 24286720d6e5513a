"""LRN, BatchNorm, Scale, Bias and MVN against their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from one_layer import export, layer_of_type
from sparknet.caffe import CaffeNet
from sparknet.caffe.summary import summarise
from sparknet.errors import NetError

F64 = torch.float64


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 7),
    st.sampled_from([1, 3, 5, 9]),
    st.sampled_from([0.75, 0.5, 1.3]),
    st.sampled_from([1.0, 2.5]),
    st.booleans(),
)
def test_lrn_is_its_formula(channels: int, size: int, beta: float, k: float, within: bool):
    shape = (2, channels, 4, 3)
    region = "WITHIN_CHANNEL" if within else "ACROSS_CHANNELS"
    norm = layer_of_type(
        "LRN", f"lrn_param {{ local_size: {size} alpha: 0.5 beta: {beta} k: {k} norm_region: {region} }}", shape
    )
    x = torch.randn(shape, dtype=F64)
    near = size // 2
    sums = np.zeros(shape)
    squares = x.numpy() ** 2
    for n, c, h, w in np.ndindex(*shape):
        if within:
            rows, columns = slice(max(h - near, 0), h + near + 1), slice(max(w - near, 0), w + near + 1)
            sums[n, c, h, w] = squares[n, c, rows, columns].sum() / size**2
        else:
            sums[n, c, h, w] = squares[n, max(c - near, 0) : c + near + 1, h, w].sum() / size
    np.testing.assert_allclose(
        norm(x), x.numpy() * ((1 if within else k) + 0.5 * sums) ** -float(np.float32(beta)), rtol=1e-9
    )


@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
def test_lrn_gradient_is_its_derivative(region: str, beta: float):
    norm = layer_of_type(
        "LRN", f"lrn_param {{ local_size: 3 alpha: 2 beta: {beta} k: 2 norm_region: {region} }}", (2, 4, 3, 3)
    )
    assert torch.autograd.gradcheck(norm, torch.randn(2, 4, 3, 3, dtype=F64, requires_grad=True))


def test_lrn_refuses_a_second_derivative():
    norm = layer_of_type("LRN", "lrn_param { alpha: 2 }", (1, 4, 2, 2))
    x = torch.randn(1, 4, 2, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(norm(x).sum(), x, create_graph=True)
    assert not slope.requires_grad


@pytest.mark.parametrize("shape", [(4, 3, 2, 5), (6, 3), (4, 3, 5), (7,), (2, 3, 2, 2, 2), (1, 3, 1, 1), (1, 3)])
def test_batch_norm_keeps_running_sums(shape: tuple[int, ...]):
    norm = layer_of_type(
        "BatchNorm", "batch_norm_param { moving_average_fraction: 0.9 eps: 0.001 }", shape
    ).double()
    channels = shape[1] if len(shape) > 1 else 1
    mean, variance, factor = np.zeros(channels), np.zeros(channels), 0.0
    others = tuple(axis for axis in range(len(shape)) if axis != 1)
    fraction, eps = float(np.float32(0.9)), float(np.float32(0.001))
    for _ in range(3):
        x = torch.randn(shape, dtype=F64) + 2
        values = x.numpy()
        count = x.numel() // channels
        centre, spread = np.atleast_1d(values.mean(others)), np.atleast_1d(values.var(others))
        wide = (channels,) + (1,) * (len(shape) - 2) if len(shape) > 1 else (1,)
        expected = (values - centre.reshape(wide)) / np.sqrt(spread.reshape(wide) + eps)
        np.testing.assert_allclose(norm(x), expected, rtol=1e-9, atol=1e-9)
        mean = fraction * mean + centre
        variance = fraction * variance + spread * (count / (count - 1) if count > 1 else 1)
        factor = fraction * factor + 1
        for blob, sums in zip(norm.blobs(), (mean, variance, factor), strict=True):
            np.testing.assert_allclose(blob, np.broadcast_to(sums, blob.shape), rtol=1e-9, atol=1e-12)
    norm.eval()
    running = (values - (mean / factor).reshape(wide)) / np.sqrt((variance / factor).reshape(wide) + eps)
    np.testing.assert_allclose(norm(x), running, rtol=1e-9)


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("shape", [(1,), (1, 3), (1, 3, 1, 1)])
def test_batch_norm_of_one_value_per_channel_makes_a_net(phase: str, shape: tuple[int, ...]):
    net = CaffeNet.from_prototxt(
        'layer { name: "i" type: "Input" top: "x" input_param { shape { '
        + " ".join(f"dim: {size}" for size in shape)
        + ' } } }\nlayer { name: "b" type: "BatchNorm" bottom: "x" top: "y" }\n',
        phase,
    )
    assert net.shapes["y"] == shape
    assert summarise(net).layers[1].shapes == (shape,)
    assert net({"x": torch.randn(shape)})["y"].isfinite().all()


def test_batch_norm_without_memory_keeps_the_layout():
    norm = layer_of_type("BatchNorm", "", (2, 3, 4, 5)).to("meta")
    x = torch.empty(2, 3, 4, 5, device="meta", dtype=F64).contiguous(memory_format=torch.channels_last)
    top = norm(x)
    assert top.is_contiguous(memory_format=torch.channels_last)
    assert top.dtype == F64


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
@pytest.mark.parametrize("second", [True, False])
def test_what_is_laid_over_a_bottom_is_never_spread(kind: str, second: bool):
    text = f"{kind.lower()}_param {{ axis: 0 num_axes: {-1 if second else 1} }}"
    if second:
        made = layer_of_type(kind, text, (4, 3), (4, 3))
        given_ = torch.ones(4, 3), torch.ones(1, 3)
        expected = r"bottom of shape \(4, 3\) from axis 0 on has shape \(1, 3\)"
    else:
        made, given_ = layer_of_type(kind, text, (4, 3)), (torch.ones(1, 3),)
        expected = r"bottom of shape \(1, 3\) from axis 0 on has shape \(4,\)"
    with pytest.raises(NetError, match=expected):
        made(*given_)


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_two_bottoms_export_for_any_batch(kind: str):
    text = f'type: "{kind}" {kind.lower()}_param {{ axis: 0 }}'
    export(text, np.arange(12.0).reshape(2, 3, 2), np.ones((2, 3)))
    export(text, np.arange(12.0).reshape(2, 3, 2), np.ones(2))


def test_batch_norm_that_has_seen_nothing_divides_by_the_root_of_eps():
    norm = layer_of_type("BatchNorm", "batch_norm_param { eps: 0.25 }", (2, 3)).eval()
    x = torch.randn(2, 3)
    torch.testing.assert_close(norm(x), x / 0.5)


def test_batch_norm_can_be_told_which_statistics_to_use():
    x = torch.randn(8, 3) * 4
    always = layer_of_type("BatchNorm", "batch_norm_param { use_global_stats: true }", (8, 3))
    with torch.no_grad():
        for blob, value in zip(always.blobs(), (2.0, 8.0, 2.0), strict=True):
            blob.fill_(value)
    torch.testing.assert_close(always(x), (x - 1) / 2, rtol=1e-4, atol=1e-4)
    assert always.factor.item() == 2
    never = layer_of_type("BatchNorm", "batch_norm_param { use_global_stats: false }", (8, 3)).eval()
    torch.testing.assert_close(never(x).mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    assert never.factor.item() == 1


def test_batch_norm_goes_back_after_two_passes_forward():
    norm = layer_of_type("BatchNorm", "", (4, 3))
    x = torch.randn(4, 3, requires_grad=True)
    (norm(x) + norm(2 * x)).square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_gradient_is_its_derivative(training: bool):
    norm = layer_of_type("BatchNorm", "", (4, 3, 2)).double().train(training)
    norm.variance.add_(1)
    norm.factor.add_(2)
    x = torch.randn(4, 3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm.requires_grad_()(x), x)


@pytest.mark.parametrize(
    ("axis", "num_axes", "shape"),
    [(1, 1, (3,)), (0, 1, (2,)), (-1, 1, (5,)), (1, 2, (3, 4)), (1, -1, (3, 4, 5)), (0, -1, (2, 3, 4, 5)),
     (-2, 2, (4, 5)), (1, 0, ()), (0, 3, (2, 3, 4)), (2, 1, (4,))],
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_scale_and_bias_lie_over_their_axes(axis: int, num_axes: int, shape: tuple[int, ...], bias: bool):
    x = torch.randn(2, 3, 4, 5, dtype=F64)
    start = axis % 4
    wide = (1,) * start + shape + (1,) * (4 - start - len(shape)) if shape else ()
    text = f"""scale_param {{ axis: {axis} num_axes: {num_axes} filler {{ type: "gaussian" }}
        bias_term: {str(bias).lower()} bias_filler {{ type: "gaussian" }} }}"""
    scale = layer_of_type("Scale", text, x.shape).double()
    assert [tuple(blob.shape) for blob in scale.blobs()] == [shape] * (1 + bias)
    blobs = [blob.view(wide) for blob in scale.blobs()]
    torch.testing.assert_close(scale(x), x * blobs[0] + (blobs[1] if bias else 0))
    pushed = torch.randn_like(x)
    scale(x).backward(pushed)
    torch.testing.assert_close(scale.weight.grad, _folded(x * pushed, wide).view(shape))
    if bias:
        torch.testing.assert_close(scale.bias.grad, _folded(pushed, wide).view(shape))

    second = torch.randn(shape, dtype=F64)
    given = layer_of_type("Scale", text, x.shape, shape).double()
    assert len(given.blobs()) == bias
    torch.testing.assert_close(given(x, second), x * second.view(wide) + (given.bias.view(wide) if bias else 0))
    summed = f'bias_param {{ axis: {axis} num_axes: {num_axes} filler {{ type: "gaussian" }} }}'
    added = layer_of_type("Bias", summed, x.shape).double()
    torch.testing.assert_close(added(x), x + added.bias.view(wide))
    torch.testing.assert_close(layer_of_type("Bias", summed, x.shape, shape)(x, second), x + second.view(wide))


def _folded(x: torch.Tensor, wide: tuple[int, ...]) -> torch.Tensor:
    return x.sum_to_size(wide) if wide else x.sum()


def test_scale_starts_at_one_and_bias_at_zero():
    scale = layer_of_type("Scale", "scale_param { bias_term: true }", (2, 3))
    assert scale.weight.tolist() == [1, 1, 1]
    assert scale.bias.tolist() == [0, 0, 0]
    assert layer_of_type("Bias", "", (2, 3)).bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("eps", [1e-9, 0.25])
def test_mvn_is_caffes_with_caffes_gradient(across: bool, eps: float):
    norm = layer_of_type("MVN", f"mvn_param {{ across_channels: {str(across).lower()} eps: {eps} }}", (2, 3, 4, 5))
    x = (torch.randn(2, 3, 4, 5, dtype=F64) * 3 + 1).requires_grad_()
    axes = (1, 2, 3) if across else (2, 3)
    deviation = x.detach().std(axes, correction=0, keepdim=True) + eps
    expected = (x.detach() - x.detach().mean(axes, keepdim=True)) / deviation
    top = norm(x)
    torch.testing.assert_close(top.detach(), expected)
    g = torch.randn_like(expected)
    top.backward(g)
    mean = (g * expected).mean(axes, keepdim=True)
    torch.testing.assert_close(x.grad, (g - g.mean(axes, keepdim=True) - expected * mean) / deviation)


def test_mvn_of_a_flat_plane_has_a_finite_gradient():
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    layer_of_type("MVN", "mvn_param { eps: 0.1 }", (1, 1, 2, 2))(x).square().sum().backward()
    assert x.grad.isfinite().all()


def test_mvn_adds_the_axes_that_are_missing():
    norm = layer_of_type("MVN", "mvn_param { normalize_variance: false }", (2, 3, 4))
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(norm(x), (x - x.mean(2, keepdim=True)).unsqueeze(3))
    assert layer_of_type("MVN", "", (2, 3))(torch.randn(2, 3)).shape == (2, 3, 1, 1)
