"""Accuracy and ArgMax against Caffe's definitions, written out as loops, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from one_layer import export, fault, gradients, layer, run


@st.composite
def blobs(draw: st.DrawFn, least_axes: int = 1):
    """Numbers with many ties, of 1 to 5 axes, one of the axes, and how the file may name it."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=least_axes, max_size=5)))
    axis = draw(st.integers(0, len(shape) - 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    named = draw(st.sampled_from([axis, axis - len(shape)]))
    return random.integers(-2, 3, size=shape).astype(float), axis, named


class TestAccuracy:
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        blob=blobs(),
        seed=st.integers(0, 99),
        top_k=st.integers(1, 4),
        ignore=st.sampled_from([None, 0, 1, 255, -1]),
        every=st.booleans(),
    )
    def test_the_share_and_that_of_each_class(self, blob, seed, top_k, ignore, every):
        scores, axis, named = blob
        classes = scores.shape[axis]
        top_k = min(top_k, classes)
        random = np.random.default_rng(seed)
        labels = random.integers(0, classes, scores.shape[:axis] + scores.shape[axis + 1 :]).astype(float)
        if ignore is not None:
            labels.flat[:: 1 if every else 2] = ignore
        hits, counts = np.zeros(classes), np.zeros(classes)
        table = np.moveaxis(scores, axis, -1).reshape(-1, classes)
        for column, label in zip(table, labels.flatten().astype(int), strict=True):
            if label == ignore:
                continue
            better = sum(column[k] >= column[label] for k in range(classes)) - 1
            counts[label] += 1
            hits[label] += better < top_k
        more = f"ignore_label: {ignore}" if ignore is not None else ""
        text = f'type: "Accuracy" top: "y" top: "c" accuracy_param {{ axis: {named} top_k: {top_k} {more} }}'
        share, each = run(text, scores, labels)
        assert share.shape == ()
        assert float(share) == hits.sum() / max(1, counts.sum())
        np.testing.assert_allclose(each, hits / np.maximum(1, counts))
        (alone,) = run(text.replace('top: "y" top: "c"', ""), scores, labels)
        assert alone == share

    def test_it_is_of_the_dtype_of_the_net_and_has_no_gradient(self):
        module = layer('type: "Accuracy"', (2, 3), (2,)).float()
        found = module(torch.randn(2, 3, requires_grad=True), torch.tensor([0.0, 2.0]))
        assert found.dtype == torch.float32
        assert not found.requires_grad

    @pytest.mark.parametrize("labels", [(4, 1), (4, 1, 1, 1), (1, 4)])
    def test_labels_in_any_shape(self, labels):
        scores = np.random.default_rng(0).normal(size=(4, 3))
        given_ = np.array([0.0, 1, 2, 2])
        assert run('type: "Accuracy"', scores, given_.reshape(labels)) == run('type: "Accuracy"', scores, given_)

    def test_faults(self):
        assert "top_k is 4; with 3 classes it must be from 1 to 3" in fault(
            'type: "Accuracy" accuracy_param { top_k: 4 }', (2, 3), (2,)
        )
        assert "top_k is 0" in fault('type: "Accuracy" accuracy_param { top_k: 0 }', (2, 3), (2,))
        assert "there are 3 labels" in fault('type: "Accuracy"', (2, 3), (3,))
        assert "axis is 2" in fault('type: "Accuracy" accuracy_param { axis: 2 }', (2, 3), (2,))


def best(numbers: np.ndarray, count: int) -> list[tuple[float, int]]:
    """Caffe sorts pairs (value, index), the greatest first."""
    return sorted(((value, at) for at, value in enumerate(numbers)), reverse=True)[:count]


class TestArgMax:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(blob=blobs(), top_k=st.integers(1, 4), values=st.booleans())
    def test_along_an_axis(self, blob, top_k, values):
        x, axis, named = blob
        top_k = min(top_k, x.shape[axis])
        expected = np.apply_along_axis(
            lambda column: np.array([pair[0 if values else 1] for pair in best(column, top_k)]), axis, x
        )
        text = f"argmax_param {{ axis: {named} top_k: {top_k} out_max_val: {str(values).lower()} }}"
        (found,) = run(f'type: "ArgMax" {text}', x)
        np.testing.assert_array_equal(found, expected)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(blob=blobs(), top_k=st.integers(1, 4), values=st.booleans())
    def test_without_an_axis(self, blob, top_k, values):
        x, _, _ = blob
        top_k = min(top_k, math.prod(x.shape[1:]))
        shape = [1] * max(3, x.ndim)
        shape[0], shape[1], shape[2] = len(x), 1 + values, top_k
        expected = np.zeros((len(x), 1 + values, top_k))
        for n in range(len(x)):
            for place, (value, at) in enumerate(best(x[n].flatten(), top_k)):
                expected[n, 0, place] = at
                if values:
                    expected[n, 1, place] = value
        text = f"argmax_param {{ top_k: {top_k} out_max_val: {str(values).lower()} }}"
        (found,) = run(f'type: "ArgMax" {text}', x)
        np.testing.assert_array_equal(found, expected.reshape(shape))

    def test_faults(self):
        assert "top_k is 7; among 6 numbers" in fault('type: "ArgMax" argmax_param { top_k: 7 }', (2, 3, 2))
        assert "top_k is 3; among 2 numbers" in fault(
            'type: "ArgMax" argmax_param { top_k: 3 axis: -1 }', (2, 3, 2)
        )
        assert "top_k is 0" in fault('type: "ArgMax" argmax_param { top_k: 0 }', (2, 3))
        assert "axis is 3" in fault('type: "ArgMax" argmax_param { axis: 3 }', (2, 3, 2))
        assert "no axes" in fault('type: "ArgMax"', ())


def test_they_export_and_give_no_gradient():
    random = np.random.default_rng(0)
    scores, labels = random.random((2, 3, 2, 2)), random.integers(0, 3, (2, 2, 2)).astype(float)
    export('type: "Accuracy" top: "y" top: "c" accuracy_param { ignore_label: 0 top_k: 2 }', scores, labels)
    export('type: "ArgMax" argmax_param { top_k: 2 out_max_val: true }', scores)
    export('type: "ArgMax" argmax_param { axis: 1 }', scores)
    assert not layer('type: "ArgMax"', (2, 3))(torch.ones(2, 3, requires_grad=True)).requires_grad


def test_half_precision_counts_as_well():
    scores = torch.zeros(1000, 2, dtype=torch.bfloat16)
    scores[:999, 0] = 1
    each = layer('type: "Accuracy" top: "y" top: "c"', (1000, 2), (1000,))(scores, torch.zeros(1000))[1]
    assert each.tolist() == [pytest.approx(0.999), 0]
    indices = layer('type: "ArgMax" argmax_param { axis: 0 }', (1000, 2))(
        torch.arange(1000.0).repeat(2, 1).T.half()
    )
    assert indices.tolist() == [[999, 999]]


def test_they_stand_beside_a_loss():
    x, label = np.random.default_rng(0).random((3, 4)), np.zeros(3)
    assert gradients('type: "SoftmaxWithLoss" top: "y" top: "p"', x, label)[0].any()
