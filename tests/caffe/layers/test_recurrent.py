"""LSTM and RNN against loops in numpy, and what they carry from pass to pass, share, save and refuse."""

import copy
import re

import numpy as np
import pytest
import torch

from one_layer import fault, layer
from recurrent_reference import CASES, FILE, OUTPUTS, Lstm, Rnn, forward, reference
from sparknet.caffe import CaffeNet, NetSpec, export
from sparknet.caffe.schema import NetParameter
from sparknet.caffe.summary import summarise
from sparknet.errors import NetError

STEPS, STREAMS = 5, 3


def text(kind, states=0, filler='weight_filler { type: "gaussian" }', tops=None):
    names = " ".join(f'top: "{at}"' for at in range(1 + states if tops is None else tops))
    exposed = f"expose_hidden: {'true' if states else 'false'}"
    return f'type: "{kind}" {names} recurrent_param {{ num_output: {OUTPUTS} {exposed} {filler} }}'


def numbers(name):
    """The arrays of a case."""
    with np.load(FILE) as arrays:
        return {key.partition("/")[2]: array for key, array in arrays.items() if key.split("/")[0] == name}


def listed(arrays, prefix):
    found = [key for key in arrays if key.startswith(f"{prefix}/")]
    return [torch.tensor(arrays[f"{prefix}/{at}"]) for at in range(len(found))]


def built(name, arrays):
    """The layer of a case with its weights, and its bottoms."""
    kind, has_static, is_exposed = CASES[name]
    begin = listed(arrays, "begin")
    bottoms = [torch.tensor(arrays[key]) for key in ("x", "cont", *(["static"] if has_static else []))] + begin
    made = layer(text(kind.upper(), len(begin) if is_exposed else 0), *(tuple(one.shape) for one in bottoms))
    blobs = listed(arrays, "blob")
    assert [blob.shape for blob in made.blobs()] == [blob.shape for blob in blobs]
    with torch.no_grad():
        for mine, theirs in zip(made.blobs(), blobs, strict=True):
            mine.copy_(theirs)
    return made, bottoms


def tuple_of(found):
    return found if isinstance(found, tuple) else (found,)


def close(mine, theirs):
    assert mine.shape == theirs.shape
    assert np.abs(mine.detach().numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_gradients_are_those_of_loops_in_numpy(name):
    arrays = numbers(name)
    made, bottoms = built(name, arrays)
    for one in bottoms:
        one.requires_grad_()
    for number in range(1 if CASES[name][2] else 2):
        tops = tuple_of(made(*bottoms))
        for at, top in enumerate(tops):
            close(top, arrays[f"{number}/top/{at}"])
    tops[0].backward(torch.tensor(arrays["top_diff"]))
    close(bottoms[0].grad, arrays["diff/x"])
    if "static" in arrays:
        close(bottoms[2].grad, arrays["diff/static"])
    for at, blob in enumerate(made.blobs()):
        close(blob.grad, arrays[f"diff/blob/{at}"])
    # neither the indicators nor the states to begin with
    assert bottoms[1].grad is None
    assert all(
        one.grad is None for one in bottoms[len(bottoms) - len(listed(arrays, "begin")) :] if "begin/0" in arrays
    )
    assert not any(top.requires_grad for top in tops[1:])


def test_the_file_holds_what_the_program_makes():
    made = reference()
    with np.load(FILE) as arrays:
        assert set(made) == set(arrays)
        for key, array in made.items():
            np.testing.assert_allclose(arrays[key], array, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_by_hand_are_those_of_finite_differences(name):
    """Of the reference itself, by its own forward pass: a slip there would be one in every test."""
    kind, has_static, is_exposed = CASES[name]
    cell, arrays = Lstm if kind == "lstm" else Rnn, numbers(name)
    blobs = [blob.numpy() for blob in listed(arrays, "blob")]
    if is_exposed:
        begin = np.concatenate([state.numpy() for state in listed(arrays, "begin")])
    else:  # gradients are of the second pass alone, which begins where the first ended
        begin, _, _ = forward(cell, blobs, arrays, np.zeros((2 if kind == "lstm" else 1, STREAMS, OUTPUTS)))

    def loss():
        _, _, tops = forward(cell, blobs, arrays, begin)
        return float((tops * arrays["top_diff"]).sum())

    moved = {"diff/x": arrays["x"]} | {f"diff/blob/{at}": blob for at, blob in enumerate(blobs)}
    if has_static:
        moved["diff/static"] = arrays["static"]
    for key, array in moved.items():
        place = (array.shape[0] // 2, *(0 for _ in array.shape[1:]))
        kept = array[place]
        array[place] = kept + 1e-6
        above = loss()
        array[place] = kept - 1e-6
        slope = (above - loss()) / 2e-6
        array[place] = kept
        assert abs(slope - arrays[key][place]) <= 1e-6 * max(1, abs(slope)), key


class TestCarrying:
    def bottoms(self, streams=STREAMS, steps=STEPS, cont=1.0):
        return torch.randn(steps, streams, 4).double(), torch.full((steps, streams), cont).double()

    def made(self, kind):
        return layer(text(kind), (STEPS, STREAMS, 4), (STEPS, STREAMS))

    @pytest.mark.parametrize("kind", ["LSTM", "RNN"])
    def test_two_passes_are_one_long_one(self, kind):
        made, (x, cont) = self.made(kind), self.bottoms(steps=2 * STEPS)
        whole = made(x, cont)
        made.reset()
        halves = torch.cat([made(x[:STEPS], cont[:STEPS]), made(x[STEPS:], cont[STEPS:])])
        torch.testing.assert_close(halves, whole)

    @pytest.mark.parametrize("kind", ["LSTM", "RNN"])
    def test_streams_that_begin_anew_carry_nothing(self, kind):
        made, (x, cont) = self.made(kind), self.bottoms()
        first, second = made(x, cont), made(x, cont)
        assert (first[0] != second[0]).all()
        cont[0] = 0
        torch.testing.assert_close(made(x, cont), first)

    def test_reset_and_another_number_of_streams_begin_from_zeros(self):
        made, (x, cont) = self.made("LSTM"), self.bottoms()
        first = made(x, cont)
        made.reset()
        torch.testing.assert_close(made(x, cont), first)
        made(*self.bottoms(streams=7))
        torch.testing.assert_close(made(x, cont), first)

    def test_a_pass_without_memory_or_in_inference_mode_leaves_what_training_can_use(self):
        made, (x, cont) = self.made("LSTM"), self.bottoms()
        with torch.inference_mode():
            expected = made(x, cont)
        again = copy.deepcopy(made)
        again.reset()
        torch.testing.assert_close(again(x, cont), expected)
        made(x, cont).sum().backward()
        assert made.weight_h.grad.abs().sum() > 0
        made.to(torch.float32)
        assert made(x.float(), cont.float()).dtype == torch.float32

    def test_a_net_resets_its_layers(self):
        net = CaffeNet.from_prototxt(NET)
        inputs = {"x": torch.randn(4, 2, 3), "cont": torch.ones(4, 2), "image": torch.randn(2, 5)}
        first = net(inputs)["h"]
        assert (net(inputs)["h"] != first).any()
        net.reset()
        torch.testing.assert_close(net(inputs)["h"], first)


NET = """
name: "sequences"
layer { name: "in" type: "Input" top: "x" top: "cont" top: "image"
  input_param { shape { dim: 4 dim: 2 dim: 3 } shape { dim: 4 dim: 2 } shape { dim: 2 dim: 5 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" bottom: "image" top: "h"
  recurrent_param { num_output: 6 weight_filler { type: "uniform" min: -0.5 max: 0.5 }
    bias_filler { type: "constant" value: 0.25 } } }
"""


@pytest.mark.parametrize("suffix", [".caffemodel", ".caffemodel.h5"])
def test_weights_go_through_files_in_caffes_order(suffix, tmp_path):
    net, path, again = CaffeNet.from_prototxt(NET), tmp_path / f"net{suffix}", tmp_path / f"again{suffix}"
    net.save_weights(path)
    other = CaffeNet.from_prototxt(NET)
    assert other.load_weights(path).taken == ("lstm",) if False else other.load_weights(path)
    for mine, theirs in zip(other.weights()["lstm"], net.weights()["lstm"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    other.save_weights(again)
    if suffix == ".caffemodel":
        assert again.read_bytes() == path.read_bytes()
        (written,) = [one for one in NetParameter.FromString(path.read_bytes()).layer if one.blobs]
        # W_xc, b_c, W_xc_static, W_hc
        assert [tuple(blob.shape.dim) for blob in written.blobs] == [(24, 3), (24,), (24, 5), (24, 6)]


def test_fillers_fill_weights_and_biases():
    blobs = CaffeNet.from_prototxt(NET).weights()["lstm"]
    assert blobs[1].tolist() == [0.25] * 24
    assert all(blob.abs().max() <= 0.5 and blob.std() > 0.1 for blob in (blobs[0], blobs[2], blobs[3]))


def test_learning_rates_and_shared_names_are_by_blob():
    one = NET.replace("recurrent_param", 'param { name: "w" lr_mult: 2 } param { lr_mult: 0 } recurrent_param')
    second = one[one.index('layer { name: "lstm"') :].replace('"lstm"', '"two"').replace('top: "h"', 'top: "g"')
    net = CaffeNet.from_prototxt(one + second, "TRAIN")
    assert [blob.lr_mult for blob in net.learnable] == [2, 0, 1, 1, 0, 1, 1]
    assert net.weights()["two"][0] is net.weights()["lstm"][0]


def test_a_test_net_shares_the_weights_and_carries_its_own_state():
    train, test = CaffeNet.from_prototxt(NET, "TRAIN"), CaffeNet.from_prototxt(NET)
    test.share_weights(train)
    inputs = {"x": torch.randn(4, 2, 3), "cont": torch.ones(4, 2), "image": torch.randn(2, 5)}
    first = train(inputs)["h"]
    torch.testing.assert_close(test(inputs)["h"], first)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
def test_number_of_steps_and_streams_may_change(kind):
    made = layer(text(kind), (STEPS, STREAMS, 4), (STEPS, STREAMS)).float()
    assert made(torch.zeros(2, 7, 4), torch.ones(2, 7)).shape == (2, 7, OUTPUTS)


@pytest.mark.parametrize(
    ("given", "shapes", "message"),
    [
        (text("LSTM").replace("num_output: 3", ""), [(5, 3, 4), (5, 3)], "num_output is 0; it must be at least 1"),
        (text("LSTM"), [(5, 3), (5, 3)], r"x has shape \(5, 3\); expected .*three axes"),
        (text("LSTM"), [(5, 3, 4), (5, 3, 1)], r"cont has shape \(5, 3, 1\).*\(5, 3\)"),
        (text("LSTM"), [(5, 3, 4), (3, 5)], r"cont has shape \(3, 5\)"),
        (text("RNN"), [(5, 3, 4), (5, 3), (5, 2)], r"static input has shape \(5, 2\); expected .*\(3, \.\.\.\)"),
        (text("RNN"), [(5, 3, 4), (5, 3), (3,)], r"static input has shape \(3,\)"),
        (text("LSTM", 2), [(5, 3, 4), (5, 3)], "it has 2 bottoms; with expose_hidden .* h_0, c_0: 4 or 5"),
        (text("LSTM"), [(5, 3, 4), (5, 3), (3, 2), (1, 3, 3)], "it has 4 bottoms; without .*input: 2 or 3"),
        (text("LSTM", 2, tops=1), [(5, 3, 4), (5, 3), (1, 3, 3), (1, 3, 3)], "it has 1 tops; with .* makes 3"),
        (text("RNN", tops=2), [(5, 3, 4), (5, 3)], "it has 2 tops; without expose_hidden it makes 1"),
        (text("LSTM", 2), [(5, 3, 4), (5, 3), (1, 3, 3), (1, 3, 4)], r"c_0 has shape \(1, 3, 4\).*\(1, 3, 3\)"),
        (text("RNN", 1), [(5, 3, 4), (5, 3), (3, 2), (3, 3)], r"h_0 has shape \(3, 3\)"),
        (
            text("LSTM").replace("num_output: 3", "num_output: 4294967295"),
            [(5, 3, 4), (5, 3)],
            "would hold",
        ),
    ],
)
def test_refuses(given, shapes, message):
    found = fault(given, *shapes)
    assert re.search(message, found), found


def test_a_pass_over_bottoms_that_do_not_fit_says_so():
    made = layer(text("LSTM"), (STEPS, STREAMS, 4), (STEPS, STREAMS))
    with pytest.raises(NetError, match=r"cont has shape \(5, 1\)"):
        made(torch.zeros(STEPS, STREAMS, 4).double(), torch.ones(STEPS, 1).double())


def test_tops_may_be_overwritten():
    arrays = numbers("lstm_exposed")
    made, bottoms = built("lstm_exposed", arrays)
    tops = made(*bottoms)
    with torch.no_grad():
        for top in tops:
            top.zero_()
    tops[0].backward(torch.tensor(arrays["top_diff"]))
    close(made.weight_h.grad, arrays["diff/blob/2"])


def test_a_summary_counts_every_matrix_at_each_step():
    net = CaffeNet.from_prototxt(NET)
    (summed,) = [one for one in summarise(net).layers if one.type == "LSTM"]
    assert summed.parameters == 24 * 3 + 24 + 24 * 5 + 24 * 6
    assert summed.multiply_adds == 4 * 2 * (24 * 3 + 24 * 6) + 2 * 24 * 5
    rnn = layer(text("RNN"), (5, 3, 4), (5, 3))
    assert rnn.multiply_adds([(5, 3, 4), (5, 3)], [(5, 3, 3)]) == 5 * 3 * (3 * 4 + 3 * 3 + 3 * 3)


def test_safetensors_hold_it_and_onnx_does_not(tmp_path):
    net = CaffeNet.from_prototxt(NET)
    export.export(net, tmp_path / "net.safetensors")
    assert set(net.state_dict()) == {f"lstm.{name}" for name in ("weight_x", "bias", "weight_static", "weight_h")}
    with pytest.raises(
        NetError, match=r"layer 'lstm' \(LSTM\) cannot be written as ONNX: it is unrolled .*safetensors"
    ):
        export.export(net, tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


def test_a_net_reads_back_from_its_text():
    spec = NetSpec.from_prototxt(NET)
    assert NetSpec.from_prototxt(spec.to_prototxt()).parameters == spec.parameters


def test_an_lstm_is_torchs_with_its_gates_in_another_order():
    made = layer(text("LSTM"), (STEPS, STREAMS, 4), (STEPS, STREAMS))
    theirs = torch.nn.LSTM(4, OUTPUTS).double()
    # torch's order is i, f, g, o, and it has two biases
    order = [0, 1, 3, 2]
    with torch.no_grad():
        made.bias.normal_()
        for mine, name in (
            (made.weight_x, "weight_ih_l0"),
            (made.bias, "bias_ih_l0"),
            (made.weight_h, "weight_hh_l0"),
        ):
            getattr(theirs, name).copy_(torch.cat([mine.chunk(4)[at] for at in order]))
        theirs.bias_hh_l0.zero_()
    x = torch.randn(STEPS, STREAMS, 4, dtype=torch.float64)
    state = None
    for _ in range(2):
        expected, state = theirs(x, state)
        torch.testing.assert_close(made(x, torch.ones(STEPS, STREAMS).double()), expected)
