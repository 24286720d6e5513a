"""What a layer refuses, and that the message says value, rule and remedy."""

import pytest
import torch

from one_layer import fault, layer_of_type
from sparknet.caffe.layers import Shape
from sparknet.errors import NetError

IMAGES: Shape = (2, 6, 7, 5)
ROWS: Shape = (2, 6)


def conv(text: str) -> str:
    return f"convolution_param {{ {text} }}"


def pool(text: str) -> str:
    return f"pooling_param {{ {text} }}"


def filled(text: str) -> str:
    return conv(f"num_output: 4 kernel_size: 3 weight_filler {{ {text} }}")


WRONG: list[tuple[str, str, Shape, str]] = [
    ("InnerProduct", "", ROWS, r"num_output is 0.*at least 1"),
    ("InnerProduct", "inner_product_param { num_output: 2 axis: 2 }", ROWS, r"axis is 2.*\(2, 6\).*-2 to 1"),
    ("InnerProduct", "inner_product_param { num_output: 2 axis: -3 }", ROWS, "axis is -3"),
    ("Embed", "embed_param { input_dim: 3 }", ROWS, "num_output is 0"),
    ("Embed", "embed_param { num_output: 3 }", ROWS, "input_dim is 0"),
    ("Convolution", conv("kernel_size: 3"), IMAGES, "num_output is 0"),
    ("Convolution", conv("num_output: 4"), IMAGES, "kernel_size is given 0 times"),
    ("Convolution", conv("num_output: 4 kernel_size: 0"), IMAGES, "kernel_size is 0, 0; each must be at least 1"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 kernel_h: 3"), IMAGES, "both kernel_size and kernel_h"),
    ("Convolution", conv("num_output: 4 kernel_h: 3"), IMAGES, "kernel_h/kernel_w is 3, 0"),
    (
        "Convolution",
        conv("num_output: 4 kernel_h: 3 kernel_w: 3"),
        (2, 6, 9),
        "for 2 spatial axes.*has 1",
    ),
    ("Convolution", conv("num_output: 4 kernel_size: [3, 3, 3]"), IMAGES, "kernel_size is given 3 times"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 stride: 0"), IMAGES, "stride is 0, 0"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 stride: 1 stride_h: 1"), IMAGES, "both stride and stride_h"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 stride_h: 2"), IMAGES, "stride_h/stride_w is 2, 0"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 pad: 1 pad_w: 1"), IMAGES, "both pad and pad_h"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 dilation: 0"), IMAGES, "dilation is 0, 0"),
    (
        "Convolution",
        conv("num_output: 4 kernel_size: 3 group: 4"),
        IMAGES,
        "group is 4.*divide.*6 channels",
    ),
    ("Convolution", conv("num_output: 4 kernel_size: 3 group: 3"), IMAGES, "group is 3.*num_output 4"),
    ("Convolution", conv("num_output: 4 kernel_size: 3 group: 0"), IMAGES, "group is 0"),
    ("Convolution", conv("num_output: 4 kernel_size: 8"), IMAGES, "spans 8 does not fit into 7 with pad 0"),
    ("Convolution", conv("num_output: 4 kernel_size: 1 axis: 4"), IMAGES, "axis is 4"),
    (
        "Convolution",
        conv("num_output: 4 kernel_size: 1"),
        (2, 3, 4, 4, 4, 4),
        "4 (spatial )?axes follow axis 1",
    ),
    ("Deconvolution", conv("num_output: 4 kernel_size: 3 group: 3"), IMAGES, "group is 3"),
    ("Im2col", conv("kernel_size: 8"), IMAGES, "spans 8 does not fit into 7 with pad 0"),
    ("Im2col", conv("kernel_size: 1 axis: 3"), IMAGES, r"axis is 3; .*\(2, 6, 7, 5\) has no axes behind it"),
    ("Im2col", "", IMAGES, "kernel_size is given 0 times"),
    ("Im2col", conv("kernel_size: 3 stride: 0"), IMAGES, "stride is 0, 0"),
    ("Pooling", "", IMAGES, "no kernel_size.*global_pooling"),
    ("Pooling", pool("kernel_size: 0"), IMAGES, "kernel_size is 0"),
    ("Pooling", pool("kernel_size: 2 kernel_h: 2 kernel_w: 2"), IMAGES, "both kernel_size and kernel_h"),
    ("Pooling", pool("kernel_h: 2"), IMAGES, "only one of kernel_h and kernel_w"),
    ("Pooling", pool("kernel_size: 2 stride: 0"), IMAGES, "stride is 0"),
    ("Pooling", pool("kernel_size: 2 stride_h: 2"), IMAGES, "only one of stride_h and stride_w"),
    ("Pooling", pool("kernel_size: 2 pad: 2"), IMAGES, "pad is 2, 2; it must be smaller than the kernel, 2, 2"),
    ("Pooling", pool("kernel_size: 2 pad: 1 pad_h: 1 pad_w: 1"), IMAGES, "both pad and pad_h"),
    ("Pooling", pool("kernel_size: 2 pad: 1 pool: STOCHASTIC"), IMAGES, "only MAX and AVE can pad"),
    ("Pooling", pool("kernel_size: 2 global_pooling: true"), IMAGES, "kernel_size is 2 with global_pooling"),
    ("Pooling", pool("stride: 2 global_pooling: true"), IMAGES, r"stride is \(2, 2\).*must be 1 and 0"),
    ("Pooling", pool("kernel_size: 20"), IMAGES, "kernel of 20.*finds no window"),
    ("Pooling", pool("kernel_size: 8 round_mode: FLOOR"), IMAGES, "finds no window"),
    ("Pooling", pool("kernel_size: 2"), ROWS, "four axes"),
    ("SPP", "", IMAGES, "pyramid_height is 0"),
    ("SPP", "spp_param { pyramid_height: 4 }", IMAGES, "pyramid_height is 4; level 2 does not fit"),
    ("SPP", "spp_param { pyramid_height: 2 }", ROWS, "four axes"),
    ("LRN", "lrn_param { local_size: 4 }", IMAGES, "local_size is 4; it must be odd"),
    ("LRN", "", ROWS, "four axes"),
    ("BatchNorm", "param { lr_mult: 1 }", IMAGES, "lr_mult 1.*set it to 0"),
    ("BatchNorm", "param { }", IMAGES, "param 0 has no lr_mult, which stands for 1.*set it to 0"),
    ("BatchNorm", "param { lr_mult: 0 } param { decay_mult: 0 }", IMAGES, "param 1 has no lr_mult"),
    ("Scale", "scale_param { num_axes: -2 }", IMAGES, "num_axes is -2"),
    ("Scale", "scale_param { axis: 2 num_axes: 3 }", IMAGES, "axis 2 and num_axes 3 reach past"),
    ("Bias", "bias_param { axis: 4 }", IMAGES, "axis is 4"),
    ("MVN", "", (2, 2, 2, 2, 2), "at most four axes"),
    ("PReLU", "", (3,), "at least two axes"),
    ("Exp", "exp_param { base: 0 }", ROWS, "base is 0; it must be above 0, or -1"),
    ("Log", "log_param { base: -2 }", ROWS, "base is -2"),
    ("Log", "log_param { base: 1 }", ROWS, "base is 1"),
    ("Clip", "clip_param { min: 2 max: 1 }", ROWS, "min is 2 and max 1"),
    ("Dropout", "dropout_param { dropout_ratio: 1 }", ROWS, "dropout_ratio is 1; .*below 1"),
    ("Dropout", "dropout_param { dropout_ratio: -0.1 }", ROWS, "dropout_ratio is -0.1"),
    ("Convolution", filled('type: "xaver"'), IMAGES, "'xaver'; did you mean 'xavier'.*known are bilinear"),
    ("Convolution", filled('type: "something"'), IMAGES, "'something'; known are"),
    ("Convolution", filled('type: "gaussian" std: 0'), IMAGES, "std is 0"),
    ("Convolution", filled('type: "gaussian" std: -1'), IMAGES, "std is -1; it must be above 0"),
    ("Convolution", filled('type: "uniform" min: -3e38 max: 3e38'), IMAGES, "not lie further apart than 3.4"),
    ("Convolution", filled('type: "gaussian" sparse: 9'), IMAGES, "sparse is 9"),
    ("Convolution", filled('type: "gaussian" sparse: -2'), IMAGES, "sparse is -2"),
    ("Convolution", filled('type: "xavier" sparse: 2'), IMAGES, "sparse is 2 with filler xavier"),
    ("Convolution", filled('type: "uniform" min: 2 max: 1'), IMAGES, "min is 2 and max 1"),
    ("InnerProduct", 'inner_product_param { num_output: 2 weight_filler { type: "bilinear" } }', ROWS, "four axes"),
    ("PReLU", 'prelu_param { channel_shared: true filler { type: "xavier" } }', ROWS, "blob has no axes"),
]


INT_MAX, UINT_MAX = 2**31 - 1, 2**32 - 1
TOO_LARGE: list[tuple[str, str, Shape, str]] = [
    ("Convolution", conv(f"num_output: 1 kernel_size: {UINT_MAX}"), IMAGES, f"{UINT_MAX}; .*at most {INT_MAX}"),
    ("Convolution", conv(f"num_output: 4 kernel_size: 1 pad: {UINT_MAX}"), IMAGES, f"pad is {UINT_MAX}"),
    ("Convolution", conv(f"num_output: 4 kernel_size: 1 pad: {INT_MAX}"), IMAGES, f"7 with pad {INT_MAX}"),
    ("Convolution", conv(f"num_output: 4 kernel_size: 1 stride: {UINT_MAX}"), IMAGES, f"stride is {UINT_MAX}"),
    ("Convolution", conv(f"num_output: 4 kernel_size: 1 dilation: {UINT_MAX}"), IMAGES, "dilation is"),
    ("Convolution", conv(f"num_output: {UINT_MAX} kernel_size: 1"), IMAGES, rf"\({UINT_MAX}, 6, 1, 1\) would hold"),
    ("Deconvolution", conv(f"num_output: 4 kernel_size: {INT_MAX}"), IMAGES, f"at most {INT_MAX}.*smaller"),
    ("Pooling", pool(f"kernel_size: {UINT_MAX}"), IMAGES, f"kernel_size is {UINT_MAX}.*at most {INT_MAX}"),
    ("Pooling", pool(f"kernel_size: 2 stride: {UINT_MAX}"), IMAGES, f"stride is {UINT_MAX}"),
    ("Pooling", pool(f"kernel_size: 2 stride: {INT_MAX}"), IMAGES, f"stride {INT_MAX}.*use a smaller stride"),
    ("Pooling", pool(f"kernel_size: {INT_MAX} pad: {2**30}"), IMAGES, f"7 with pad {2**30}"),
    ("LRN", f"lrn_param {{ local_size: {UINT_MAX} }}", IMAGES, f"local_size is {UINT_MAX}"),
    ("InnerProduct", f"inner_product_param {{ num_output: {INT_MAX} }}", ROWS, f"{INT_MAX}, 6.*{6 * INT_MAX} numb"),
    ("Embed", f"embed_param {{ num_output: 2 input_dim: {INT_MAX} }}", ROWS, "would hold"),
    ("PReLU", "", (1, 2**31), r"\(2147483648,\) would hold 2147483648 numbers"),
    ("Scale", "", (1, 2**31), "would hold"),
    ("Bias", "", (1, 2**31), "would hold"),
    ("BatchNorm", "", (1, 2**31), "would hold"),
    ("Scale", "scale_param { axis: 0 num_axes: -1 }", (1,) * 33, "33 axes; it may have at most 32"),
]


@pytest.mark.parametrize(("kind", "text", "shape", "message"), WRONG + TOO_LARGE)
def test_refuses(kind: str, text: str, shape: Shape, message: str):
    with pytest.raises(NetError, match=message):
        layer_of_type(kind, text, shape)


@pytest.mark.parametrize(
    "text",
    [
        f'type: "DummyData" dummy_data_param {{ shape {{ dim: {2**62} dim: {2**62} }} }}',
        f'type: "DummyData" dummy_data_param {{ shape {{ dim: {2**31} }} data_filler {{ type: "gaussian" }} }}',
        f'type: "DummyData" dummy_data_param {{ num: {UINT_MAX} channels: 1 height: 1 width: 1 }}',
        f'type: "Parameter" parameter_param {{ shape {{ dim: {2**31} }} }}',
    ],
)
def test_refuses_to_make_more_than_a_blob_may_hold(text: str):
    assert "it may hold at most 2147483647" in fault(text)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_refuses_what_does_not_fit_the_memory(error: Exception, monkeypatch: pytest.MonkeyPatch):
    def allocate(*shape: object, **options: object):
        raise error

    monkeypatch.setattr(torch, "empty", allocate)
    with pytest.raises(NetError, match=r"\(2, 6\), 12 numbers, cannot be made here: .*memory; make its sizes"):
        layer_of_type("InnerProduct", "inner_product_param { num_output: 2 }", ROWS)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("kind", "field"),
    [("constant", "value"), ("uniform", "min"), ("uniform", "max"), ("gaussian", "mean"), ("gaussian", "std")],
)
def test_refuses_fillers_that_are_not_of_finite_numbers(kind: str, field: str, value: str):
    with pytest.raises(NetError, match=f"{kind} filler: {field} is {value}; it must be a finite number"):
        layer_of_type("Convolution", filled(f'type: "{kind}" {field}: {value}'), IMAGES)


def test_refuses_a_mask_where_nothing_was_chosen():
    with pytest.raises(NetError, match="2 tops with pool AVE"):
        layer_of_type("Pooling", pool("kernel_size: 2 pool: AVE"), IMAGES, tops=2)


def test_refuses_bottoms_of_two_shapes_under_one_filter():
    with pytest.raises(NetError, match="one shape"):
        layer_of_type("Convolution", conv("num_output: 4 kernel_size: 3"), IMAGES, (2, 6, 7, 6), tops=2)


def test_refuses_as_many_tops_as_bottoms_do_not_need():
    with pytest.raises(NetError, match="2 bottoms and 1 tops"):
        layer_of_type("Convolution", conv("num_output: 4 kernel_size: 3"), IMAGES, IMAGES)


@pytest.mark.parametrize("kind", ["Scale", "Bias"])
def test_refuses_a_second_bottom_that_lies_over_no_axes(kind: str):
    with pytest.raises(NetError, match=r"second bottom has shape \(7,\).*set axis"):
        layer_of_type(kind, "", IMAGES, (7,))
