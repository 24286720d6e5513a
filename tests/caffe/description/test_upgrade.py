"""Legacy nets and solvers in the modern form: each step of Caffe's upgrade, and the reference net."""

import struct

import pytest

from places import REFERENCE
from sparknet.caffe.description.state_rules import select
from sparknet.caffe.description.upgrade import _V1_TYPES, upgrade_net, upgrade_solver
from sparknet.caffe.prototxt import Parsed, parse_text, read_text
from sparknet.caffe.schema import NetParameter, SolverParameter, V1LayerParameter
from sparknet.errors import NetError

CASES = REFERENCE
INPUT = "input: 'data' input_dim: [1, 3, 8, 9] "


def net(text: str) -> NetParameter:
    return parse_text(text, NetParameter).message


def upgraded(text: str) -> NetParameter:
    return upgrade_net(net(text)).net


def layer(text: str) -> NetParameter:
    """The modern form of a single V1 layer."""
    return upgraded(f"layers {{ {text} }}")


def refused(text: str) -> str:
    parsed: Parsed[NetParameter] = parse_text(text, NetParameter, source="old.prototxt")
    with pytest.raises(NetError) as caught:
        upgrade_net(parsed.message, source=parsed.source, lines=parsed.lines)
    return str(caught.value)


# V1


def test_a_v1_layer_keeps_names_blobs_rules_and_parameters():
    old = """name: 'n' bottom: 'a' bottom: 'b' top: 'c' type: CONVOLUTION loss_weight: 0.5
             include { phase: TEST } blobs { num: 1 channels: 2 height: 1 width: 1 data: [1, 2] }
             convolution_param { num_output: 2 pad: 1 weight_filler { type: 'xavier' } }"""
    assert layer(old) == net(f"layer {{ {old.replace('CONVOLUTION', repr('Convolution'))} }}")


def test_every_v1_type_has_a_name():
    assert set(_V1_TYPES) == set(V1LayerParameter.LayerType.values())
    assert len(set(_V1_TYPES.values())) == len(_V1_TYPES)


def test_every_v1_field_has_a_place_in_the_modern_layer():
    """What the upgrade copies by name must exist under that name."""
    moved = {"layer", "type", "param", "blob_share_mode", "blobs_lr", "weight_decay"}
    modern = net("layer { }").layer[0].DESCRIPTOR.fields_by_name
    for field in V1LayerParameter.DESCRIPTOR.fields:
        if field.name not in moved:
            assert modern[field.name].message_type == field.message_type
            assert modern[field.name].is_repeated == field.is_repeated


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("blobs_lr: 1 blobs_lr: 2", "param { lr_mult: 1 } param { lr_mult: 2 }"),
        ("weight_decay: 0", "param { decay_mult: 0 }"),
        ("blobs_lr: 1 weight_decay: [1, 0]", "param { lr_mult: 1 decay_mult: 1 } param { decay_mult: 0 }"),
        ("param: ['w', 'b'] blobs_lr: 3", "param { name: 'w' lr_mult: 3 } param { name: 'b' }"),
        ("blob_share_mode: PERMISSIVE", "param { share_mode: PERMISSIVE }"),
        ("blob_share_mode: [STRICT, PERMISSIVE]", "param { share_mode: STRICT } param { share_mode: PERMISSIVE }"),
        ("type: NONE", "type: ''"),
        ("type: SOFTMAX_LOSS", "type: 'SoftmaxWithLoss'"),
        ("name: 'x'", "name: 'x'"),
    ],
)
def test_the_lists_beside_the_blobs_become_param(old, new):
    assert layer(old) == net(f"layer {{ {new} }}")


@pytest.mark.parametrize(
    ("kind", "modern", "holder"),
    [
        ("DATA", "Data", "data_param"),
        ("IMAGE_DATA", "ImageData", "image_data_param"),
        ("WINDOW_DATA", "WindowData", "window_data_param"),
    ],
)
def test_what_a_data_layer_says_of_images_moves_to_transform_param(kind, modern, holder):
    moved = "scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true"
    old = f"type: {kind} {holder} {{ source: 's' {moved} }} transform_param {{ mean_value: 3 scale: 9 }}"
    new = f"type: '{modern}' {holder} {{ source: 's' }} transform_param {{ mean_value: 3 {moved} }}"
    assert layer(old) == net(f"layer {{ {new} }}")


def test_only_data_layers_of_the_old_notation_are_searched_for_image_settings():
    """As in Caffe: a modern layer's data_param.scale stays where it is, and nothing reads it there."""
    assert not layer("type: RELU data_param { scale: 2 }").layer[0].HasField("transform_param")
    assert upgraded("layer { type: 'Data' data_param { scale: 2 } }").layer[0].data_param.scale == 2


def test_of_a_file_of_both_notations_the_old_one_counts(caplog):
    """As in Caffe's UpgradeV1Net, which logs it."""
    parsed = parse_text("layer { name: 'a' }\nlayers { name: 'b' }", NetParameter, source="old.prototxt")
    upgrade = upgrade_net(parsed.message, source=parsed.source, lines=parsed.lines)
    assert [layer.name for layer in upgrade.net.layer] == ["b"]
    assert upgrade.origins == (("layers", 0),)
    (told,) = caplog.messages
    assert told.startswith("old.prototxt:2: layers number 0, 'b', is in the old notation and 1 `layer`")


def test_the_legacy_reference_net_has_the_layers_of_its_weights_file():
    """Caffe wrote weights.caffemodel after its own upgrade; it puts in Split layers where a blob is read twice."""
    parsed = read_text(CASES / "nets" / "legacy_v1" / "net.prototxt", NetParameter)
    mine = upgrade_net(parsed.message)
    caffes = NetParameter.FromString((CASES / "nets" / "legacy_v1" / "weights.caffemodel").read_bytes())
    written = [layer for layer in caffes.layer if layer.type != "Split"]
    kept = [mine.net.layer[index] for index in select(mine.net, phase="TEST")]
    assert [(one.name, one.type) for one in kept] == [(one.name, one.type) for one in written]
    for one, other in zip(kept, written, strict=True):
        assert list(one.param) == list(other.param), one.name
        for field in one.DESCRIPTOR.fields:
            if field.name.endswith("_param"):
                assert getattr(one, field.name) == getattr(other, field.name), (one.name, field.name)
    assert mine.origins[0] is None
    assert [parsed.lines[origin] for origin in mine.origins if origin][:3] == [8, 10, 11]


def test_the_legacy_weights_keep_their_blobs_and_their_shapes():
    old = NetParameter.FromString((CASES / "nets" / "legacy_v1" / "weights_v1.caffemodel").read_bytes())
    assert old.layers
    new = upgrade_net(old)
    for index, layer in zip((origin[1] for origin in new.origins if origin), new.net.layer, strict=True):
        assert list(layer.blobs) == list(old.layers[index].blobs)
    first = next(layer for layer in new.net.layer if layer.blobs).blobs[0]
    assert (first.num, first.channels, first.height, first.width) == (8, 2, 5, 5)
    assert not first.HasField("shape")


def test_the_argument_stays_as_it_was():
    old = net(INPUT + "layers { type: DATA data_param { scale: 2 } } ")
    before = old.SerializeToString(deterministic=True)
    upgrade_net(old)
    assert old.SerializeToString(deterministic=True) == before


def test_a_modern_net_stays_as_it_is_and_upgrading_twice_changes_nothing():
    for path in CASES.rglob("net.prototxt"):
        old = read_text(path, NetParameter).message
        once = upgrade_net(old)
        if not old.layers and not old.input:
            assert once.net == old, path
            assert once.origins == tuple(("layer", index) for index in range(len(old.layer))), path
        assert upgrade_net(once.net).net == once.net, path


# Inputs


def test_inputs_of_four_dims_become_an_input_layer_that_comes_first():
    new = upgrade_net(net("input: 'a' input: 'b' input_dim: [1, 2, 3, 4, 5, 6, 7, 8] layer { name: 'x' }"))
    assert new.net == net(
        "layer { name: 'input' type: 'Input' top: ['a', 'b'] "
        "input_param { shape { dim: [1, 2, 3, 4] } shape { dim: [5, 6, 7, 8] } } } layer { name: 'x' }"
    )
    assert new.origins == (None, ("layer", 0))


def test_inputs_with_shapes_become_an_input_layer():
    assert upgraded("input: 'a' input_shape { dim: [5, 6] }") == net(
        "layer { name: 'input' type: 'Input' top: 'a' input_param { shape { dim: [5, 6] } } }"
    )


def test_input_names_alone_are_dropped_for_only_weights_files_have_them():
    assert upgraded("input: 'a' layer { name: 'x' }") == net("layer { name: 'x' }")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("input: 'a' input_dim: [1, 2, 3]", "the net has 1 input and 3 input_dim; each input takes four"),
        ("input: ['a', 'b'] input_shape { dim: 1 }", "the net has 2 input and 1 input_shape"),
        ("input: 'a' input_shape { dim: 1 } input_dim: [1, 1, 1, 1]", "input_shape and input_dim"),
    ],
)
def test_inputs_whose_dims_do_not_add_up_are_refused(text, message):
    assert message in refused(text)
    assert refused(text).startswith("old.prototxt: ")


# BatchNorm


def test_the_solver_leaves_the_statistics_of_batch_normalisation_alone():
    fixed = "lr_mult: 0 decay_mult: 0"
    three = "layer { type: 'BatchNorm' param { lr_mult: 1 name: 'm' } param { } param { decay_mult: 3 } }"
    new = f"layer {{ type: 'BatchNorm' param {{ {fixed} name: 'm' }} param {{ {fixed} }} param {{ {fixed} }} }}"
    assert upgraded(three) == net(new)
    for other in (
        three.replace("BatchNorm", "Scale"),
        "layer { type: 'BatchNorm' param { lr_mult: 1 } param { } }",
    ):
        assert upgraded(other) == net(other)


# V0


def v0(text: str) -> NetParameter:
    return upgraded(f"layers {{ layer {{ {text} }} }}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "name: 'c' type: 'conv' num_output: 96 biasterm: false weight_filler { std: 1 } "
            "bias_filler { value: 2 } pad: 2 kernelsize: 11 group: 2 stride: 4 blobs_lr: [1, 2] "
            "weight_decay: [1, 0] blobs { num: 1 }",
            "name: 'c' type: 'Convolution' convolution_param { num_output: 96 bias_term: false "
            "weight_filler { std: 1 } bias_filler { value: 2 } pad: 2 kernel_size: 11 group: 2 stride: 4 } "
            "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0 } blobs { num: 1 }",
        ),
        (
            "type: 'innerproduct' num_output: 10 biasterm: true weight_filler { std: 1 } bias_filler { value: 2 }",
            "type: 'InnerProduct' inner_product_param { num_output: 10 bias_term: true weight_filler { std: 1 } "
            "bias_filler { value: 2 } }",
        ),
        (
            "type: 'pool' pool: STOCHASTIC pad: 1 kernelsize: 3 stride: 2",
            "type: 'Pooling' pooling_param { pool: STOCHASTIC pad: 1 kernel_size: 3 stride: 2 }",
        ),
        ("type: 'dropout' dropout_ratio: 0.25", "type: 'Dropout' dropout_param { dropout_ratio: 0.25 }"),
        (
            "type: 'lrn' local_size: 3 alpha: 1e-4 beta: 0.5 k: 2",
            "type: 'LRN' lrn_param { local_size: 3 alpha: 1e-4 beta: 0.5 k: 2 }",
        ),
        ("type: 'concat' concat_dim: 0", "type: 'Concat' concat_param { concat_dim: 0 }"),
        (
            "type: 'data' source: 's' batchsize: 2 rand_skip: 3 scale: 0.5 meanfile: 'm' cropsize: 7 mirror: true",
            "type: 'Data' data_param { source: 's' batch_size: 2 rand_skip: 3 } "
            "transform_param { scale: 0.5 mean_file: 'm' crop_size: 7 mirror: true }",
        ),
        (
            "type: 'images' source: 's' batchsize: 2 rand_skip: 3 shuffle_images: true new_height: 4 new_width: 5",
            "type: 'ImageData' image_data_param { source: 's' batch_size: 2 rand_skip: 3 shuffle: true "
            "new_height: 4 new_width: 5 }",
        ),
        (
            "type: 'window_data' source: 's' batchsize: 2 det_fg_threshold: 0.6 det_bg_threshold: 0.4 "
            "det_fg_fraction: 0.3 det_context_pad: 16 det_crop_mode: 'square'",
            "type: 'WindowData' window_data_param { source: 's' batch_size: 2 fg_threshold: 0.6 bg_threshold: 0.4 "
            "fg_fraction: 0.3 context_pad: 16 crop_mode: 'square' }",
        ),
        (
            "type: 'hdf5_data' source: 's' batchsize: 2",
            "type: 'HDF5Data' hdf5_data_param { source: 's' batch_size: 2 }",
        ),
        (
            "type: 'hdf5_output' hdf5_output_param { file_name: 'f' }",
            "type: 'HDF5Output' hdf5_output_param { file_name: 'f' }",
        ),
        ("type: 'infogain_loss' source: 's'", "type: 'InfogainLoss' infogain_loss_param { source: 's' }"),
        ("type: 'softmax_loss'", "type: 'SoftmaxWithLoss'"),
    ],
)
def test_a_v0_layer_becomes_a_modern_one(old, new):
    assert v0(old) == net(f"layer {{ {new} }}")


def test_a_padding_layer_is_folded_into_the_layers_that_read_it():
    old = net(
        INPUT + "layers { layer { name: 'p' type: 'padding' pad: 2 } bottom: 'data' top: 'p' }\n"
        "layers { layer { name: 'c' type: 'conv' kernelsize: 5 } bottom: 'p' top: 'c' }\n"
        "layers { layer { name: 'm' type: 'pool' pad: 9 } bottom: 'p' top: 'm' }\n"
        "layers { layer { name: 'r' type: 'relu' } bottom: 'c' top: 'c' }"
    )
    new = upgrade_net(old)
    assert new.origins == (None, ("layers", 1), ("layers", 2), ("layers", 3))
    conv, pool, relu = new.net.layer[1:]
    assert (list(conv.bottom), list(conv.convolution_param.pad)) == (["data"], [2])
    assert (list(pool.bottom), pool.pooling_param.pad) == (["data"], 2)
    assert (list(relu.bottom), list(relu.top)) == (["c"], ["c"])


@pytest.mark.parametrize(
    ("text", "left", "message"),
    [
        ("type: 'relu' num_output: 3", "type: 'ReLU'", "sets num_output; only conv and innerproduct"),
        ("type: 'relu' new_num: 3", "type: 'ReLU'", "sets new_num; Caffe never read it"),
        ("type: 'relu' hdf5_output_param { }", "type: 'ReLU'", "sets hdf5_output_param; only hdf5_output layers"),
        ("type: 'relu' weight_filler { std: 1 }", "type: 'ReLU'", "sets weight_filler; only conv and"),
        (
            "type: 'data' batchsize: 2 det_fg_threshold: 0.5",
            "type: 'Data' data_param { batch_size: 2 }",
            "sets det_fg_threshold; only window_data layers have it: it is passed over, as in Caffe",
        ),
        ("type: 'relu' } loss_weight: 2 top: ['t'", "top: 't' type: 'ReLU'", "has loss_weight outside of it"),
    ],
)
def test_what_caffe_passes_over_in_a_v0_layer_is_passed_over_with_a_warning(text, left, message, caplog):
    text = f"layers {{ layer {{ {text} {']' if '[' in text else '}'} }}"
    parsed = parse_text("\n" + text, NetParameter, source="old.prototxt")
    upgrade = upgrade_net(parsed.message, source=parsed.source, lines=parsed.lines)
    assert upgrade.net == net(f"layer {{ {left} }}")
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert caplog.messages[0].startswith("old.prototxt:2: layers number 0, '',")
    assert message in caplog.messages[0]


PADDING = INPUT + "layers { layer { name: 'p' type: 'padding' pad: 2 } bottom: 'data' top: 'p' }\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "layers { layer { name: 'a' type: 'convolution' } }",
            "'a', has the type 'convolution'; the oldest notation",
        ),
        ("layers { layer { type: 'relu' } }\nlayers { type: RELU }", "layers number 1, '', has type; this net is"),
        ("layers { layer { type: 'relu' } }\nlayers { }", "layers number 1, '', has no `layer` block"),
        ("layers { layer { type: 'relu' } bottom: 'x' }", "reads 'x', which no input and no layer before it makes"),
        (PADDING + "layers { layer { type: 'relu' } bottom: 'p' }", "only a conv or pool layer with one bottom"),
        (PADDING + "layers { layer { type: 'conv' } bottom: ['p', 'data'] }", "only a conv or pool layer with one"),
        (
            PADDING.replace("top: 'p'", "top: ['p', 'q']") + "layers { layer { type: 'conv' } bottom: 'p' }",
            "and 2 top",
        ),
    ],
)
def test_a_v0_layer_that_caffe_could_not_build_is_refused_with_its_line(text, message):
    said = refused(text)
    assert message in said
    assert said.startswith(f"old.prototxt:{text.count(chr(10)) + 1}: layers number ")


def test_names_that_are_no_utf8_stay_apart():
    """protobuf hands such a name out as bytes, and raises ValueError where it is copied."""
    raw = net("layers { name: 'abc' bottom: ['x', 'abc'] }").SerializeToString().replace(b"abc", b"a\xffc")
    message = NetParameter.FromString(raw)
    (layer,) = upgrade_net(message).net.layer
    assert (layer.name, list(layer.bottom)) == (r"a\xffc", ["x", r"a\xffc"])
    assert message == NetParameter.FromString(raw)


def test_a_required_field_that_a_binary_file_lacks_is_named():
    whole = net("layer { type: 'Clip' clip_param { min: 0 max: 1 } }").SerializeToString()
    max_field = b"\x15" + struct.pack("<f", 1)
    damaged = NetParameter.FromString(whole.replace(max_field, b"\x0d" + max_field[1:]))
    with pytest.raises(NetError, match="a ClipParameter lacks max, which Caffe requires"):
        upgrade_net(damaged)


# Solvers


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SGD", "SGD"),
        ("NESTEROV", "Nesterov"),
        ("ADAGRAD", "AdaGrad"),
        ("RMSPROP", "RMSProp"),
        ("ADADELTA", "AdaDelta"),
        ("ADAM", "Adam"),
    ],
)
def test_a_solver_type_becomes_a_type(old, new):
    solver = parse_text(f"solver_type: {old} base_lr: 1", SolverParameter).message
    assert upgrade_solver(solver) == parse_text(f"type: '{new}' base_lr: 1", SolverParameter).message
    assert solver.HasField("solver_type")


def test_a_solver_with_both_is_refused():
    solver = parse_text("solver_type: ADAM type: 'Adam'", SolverParameter).message
    with pytest.raises(NetError, match="the solver has type 'Adam' and solver_type ADAM"):
        upgrade_solver(solver)


def test_a_modern_solver_stays_as_it_is():
    solver = read_text(CASES / "solvers" / "sgd_poly" / "solver.prototxt", SolverParameter).message
    assert upgrade_solver(solver) == solver
