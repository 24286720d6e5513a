"""What holds for every layer that computes: any batch, layout and dtype, no device at all, and export."""

import pytest
import torch

from one_layer import layer_of_type
from sparknet.caffe.layers import Shape

IMAGES: Shape = (2, 6, 7, 5)
GAUSSIAN = 'weight_filler { type: "gaussian" }'
KINDS: list[tuple[str, str]] = [
    ("AbsVal", ""),
    ("BNLL", ""),
    ("BatchNorm", ""),
    ("Bias", ""),
    ("Clip", "clip_param { min: -1 max: 1 }"),
    ("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 3 pad: 1 stride: 2 group: 2 {GAUSSIAN} }}"),
    ("Convolution", f"convolution_param {{ num_output: 4 kernel_size: 3 axis: -3 dilation: 2 {GAUSSIAN} }}"),
    ("Deconvolution", f"convolution_param {{ num_output: 4 kernel_size: 3 stride: 2 {GAUSSIAN} }}"),
    ("Dropout", ""),
    ("ELU", ""),
    ("Exp", ""),
    ("Im2col", "convolution_param { kernel_size: 3 pad: 1 stride: 2 dilation: 2 }"),
    ("Im2col", "convolution_param { kernel_size: 2 axis: 2 }"),
    ("InnerProduct", f"inner_product_param {{ num_output: 4 {GAUSSIAN} }}"),
    ("LRN", ""),
    ("LRN", "lrn_param { norm_region: WITHIN_CHANNEL }"),
    ("Log", "log_param { shift: 9 }"),
    ("MVN", ""),
    ("MVN", "mvn_param { across_channels: true }"),
    ("PReLU", ""),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 }"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 2 }"),
    ("Pooling", "pooling_param { kernel_size: 1 stride: 3 }"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 pool: AVE }"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 2 pool: AVE }"),
    ("Pooling", "pooling_param { global_pooling: true pool: AVE }"),
    ("Pooling", "pooling_param { kernel_size: 3 stride: 2 pool: STOCHASTIC }"),
    ("Power", "power_param { power: 2 shift: 1 }"),
    ("Power", "power_param { scale: 0 }"),
    ("ReLU", ""),
    ("ReLU", "relu_param { negative_slope: 0.1 }"),
    ("SPP", "spp_param { pyramid_height: 2 }"),
    ("Scale", "scale_param { bias_term: true }"),
    ("Scale", "scale_param { axis: 2 num_axes: 2 }"),
    ("Sigmoid", ""),
    ("Swish", "swish_param { beta: 2 }"),
    ("TanH", ""),
    ("Threshold", ""),
]
every_kind = pytest.mark.parametrize(("kind", "text"), KINDS)
every_mode = pytest.mark.parametrize(
    ("kind", "text", "training"),
    # the other layers never look at `training`
    [(*kind, True) for kind in KINDS]
    + [(*kind, False) for kind in KINDS if kind[0] in ("BatchNorm", "Dropout") or "STOCHASTIC" in kind[1]],
)


def first(tops: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return tops[0] if isinstance(tops, tuple) else tops


@every_mode
def test_layout_does_not_change_what_is_computed(kind: str, text: str, training: bool):
    made = layer_of_type(kind, text, IMAGES).double().train(training)
    plain = torch.randn(IMAGES, dtype=torch.float64, requires_grad=True)
    nested = plain.detach().clone(memory_format=torch.channels_last).requires_grad_()
    tops = [first(made(x)) for x in (plain, nested)]
    if training and (kind == "Dropout" or "STOCHASTIC" in text):
        assert tops[0].shape == tops[1].shape  # what is drawn differs
        return
    torch.testing.assert_close(*tops)
    if tops[0].requires_grad:
        pushed = torch.randn_like(tops[0])
        for top in tops:
            top.backward(pushed)
        torch.testing.assert_close(plain.grad, nested.grad)


@every_kind
def test_channels_last_stays_channels_last(kind: str, text: str):
    x = torch.randn(IMAGES).contiguous(memory_format=torch.channels_last)
    top = first(layer_of_type(kind, text, IMAGES)(x))
    if kind == "Im2col":  # writes its numbers anew, in Caffe's order
        return
    if top.dim() == 4 and "axis: -3" not in text and "STOCHASTIC" not in text:
        assert top.is_contiguous(memory_format=torch.channels_last)


@every_kind
def test_dtype_and_bottom_are_kept(kind: str, text: str):
    made = layer_of_type(kind, text, IMAGES)
    for dtype in (torch.float32, torch.float64):
        x = torch.rand(IMAGES, dtype=dtype)
        before = x.clone()
        assert first(made.to(dtype)(x)).dtype == dtype
        torch.testing.assert_close(x, before, rtol=0, atol=0)


@every_mode
def test_what_needs_no_output_survives_its_overwriting(kind: str, text: str, training: bool):
    made = layer_of_type(kind, text, IMAGES).train(training)
    if made.needs_output or "STOCHASTIC" in text:
        return
    x = torch.rand(IMAGES, requires_grad=True)
    pushed = torch.randn_like(first(made(x)))
    (expected,) = torch.autograd.grad(first(made(x)), x, pushed)
    top = first(made(x))
    assert top.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    with torch.no_grad():
        top.zero_()
    (found,) = torch.autograd.grad(top, x, pushed)
    torch.testing.assert_close(found, expected)


@every_kind
def test_batch_may_change(kind: str, text: str):
    made = layer_of_type(kind, text, IMAGES).eval()
    x = torch.rand(5, *IMAGES[1:])
    whole = first(made(x))
    torch.testing.assert_close(torch.cat([first(made(image[None])) for image in x]), whole)


@every_kind
def test_without_memory_it_knows_its_shapes(kind: str, text: str):
    made = layer_of_type(kind, text, IMAGES)
    real = first(made(torch.rand(IMAGES)))
    ghost = first(made.to("meta")(torch.empty(IMAGES, device="meta")))
    assert ghost.is_meta
    assert ghost.shape == real.shape


@every_kind
def test_it_is_built_where_nothing_has_memory(kind: str, text: str):
    real = first(layer_of_type(kind, text, IMAGES)(torch.rand(IMAGES)))
    with torch.device("meta"):
        ghost = first(layer_of_type(kind, text, IMAGES)(torch.rand(IMAGES)))
    assert ghost.is_meta
    assert ghost.shape == real.shape


@every_mode
def test_goes_forward_without_autograd(kind: str, text: str, training: bool):
    made = layer_of_type(kind, text, IMAGES).train(training)
    with torch.inference_mode():
        made(torch.rand(IMAGES))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@every_kind
def test_exports(kind: str, text: str):
    made = layer_of_type(kind, text, IMAGES).eval()
    x = torch.rand(IMAGES)
    batches = {0: torch.export.Dim("batch", min=1, max=64)}
    takes_many = kind in ("Convolution", "Deconvolution")
    program = torch.export.export(made, (x,), dynamic_shapes=((batches,) if takes_many else batches,))
    for rows in (len(x), 3):
        images = torch.rand(rows, *IMAGES[1:])
        torch.testing.assert_close(first(program.module()(images)), first(made(images)))
