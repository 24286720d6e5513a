"""Losses against Caffe's definitions, written out as loops, and what they refuse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from one_layer import export, fault, gradients, layer, run
from sparknet.caffe import CaffeNet
from sparknet.caffe.schema import BlobProto, LooseBlobProto
from sparknet.errors import NetError

TINY = float(np.finfo(np.float32).tiny)
NORMALIZATIONS = [
    "",
    "normalization: FULL",
    "normalization: VALID",
    "normalization: BATCH_SIZE",
    "normalization: NONE",
]


def divisor(mode: str, outer: int, inner: int, valid: int, default: str = "VALID") -> int:
    name = mode.rpartition(" ")[2] or default
    name = {"true": "VALID", "false": "BATCH_SIZE"}.get(name, name)
    return max(1, {"FULL": outer * inner, "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}[name])


def number(text: str, *arrays: np.ndarray) -> float:
    """The layer's only top, a scalar."""
    (top,) = run(text, *arrays)
    assert top.shape == ()
    return float(top)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


@st.composite
def scores_and_labels(draw: st.DrawFn):
    """Scores of 1 to 5 axes with large and small numbers, the class axis, and labels in a shape of their own."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=5)))
    axis = draw(st.integers(0, len(shape) - 1))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = random.normal(size=shape) * draw(st.sampled_from([1.0, 30.0, 400.0]))
    places = shape[:axis] + shape[axis + 1 :]
    labels = random.integers(0, shape[axis], size=places).astype(float)
    return scores, labels, axis, draw(st.sampled_from([axis, axis - len(shape)]))


def positions(scores: np.ndarray, labels: np.ndarray, axis: int):
    """Each column of scores with its index and label."""
    table = np.moveaxis(scores, axis, -1).reshape(-1, scores.shape[axis])
    yield from ((at, table[at], int(label)) for at, label in enumerate(labels.flatten()))


def back(columns: list[np.ndarray], scores: np.ndarray, axis: int) -> np.ndarray:
    """The columns where `positions` took them."""
    rest = scores.shape[:axis] + scores.shape[axis + 1 :]
    return np.moveaxis(np.array(columns).reshape(*rest, scores.shape[axis]), -1, axis)


class TestSoftmaxWithLoss:
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        given_=scores_and_labels(),
        mode=st.sampled_from([*NORMALIZATIONS, "normalize: true", "normalize: false"]),
        ignore=st.sampled_from([None, 0, 1, 255, -1]),
        place=st.integers(0, 20),
    )
    def test_number_gradient_and_probabilities(self, given_, mode, ignore, place):
        scores, labels, axis, named = given_
        if ignore is not None:
            labels.flat[place % labels.size] = ignore
        text = f'type: "SoftmaxWithLoss" top: "y" top: "p" softmax_param {{ axis: {named} }} loss_param {{ {mode} '
        text += f"ignore_label: {ignore} }}" if ignore is not None else "}"

        total, valid, columns, probabilities = 0.0, 0, [], []
        for _, column, label in positions(scores, labels, axis):
            p = softmax(column)
            probabilities.append(p)
            columns.append(np.zeros_like(p))
            if label != ignore:
                total -= math.log(max(p[label], TINY))
                columns[-1] = p - (np.arange(len(p)) == label)
                valid += 1
        outer = math.prod(scores.shape[:axis])
        by = divisor(mode, outer, labels.size // outer, valid)

        loss, prob = run(text, scores, labels)
        assert loss.shape == ()
        assert float(loss) == pytest.approx(total / by, rel=1e-9, abs=1e-12)
        np.testing.assert_allclose(prob, back(probabilities, scores, axis), atol=1e-12)
        to_scores, to_labels = gradients(text, scores, labels)
        np.testing.assert_allclose(to_scores, back(columns, scores, axis) / by, atol=1e-12)
        assert not to_labels.any()

    @pytest.mark.parametrize("labels", [(3,), (3, 1), (3, 1, 1, 1), (1, 3)])
    def test_labels_in_any_shape(self, labels):
        scores = np.random.default_rng(0).normal(size=(3, 4))
        text = 'type: "SoftmaxWithLoss"'
        expected = run(text, scores, np.array([0.0, 3.0, 1.0]))
        assert run(text, scores, np.array([0.0, 3.0, 1.0]).reshape(labels)) == expected

    def test_normalization_wins_over_normalize(self):
        scores, labels = np.random.default_rng(0).normal(size=(2, 3, 4)), np.ones((2, 4))
        text = 'type: "SoftmaxWithLoss" loss_param {{ {} }}'
        both = run(text.format("normalize: true normalization: NONE"), scores, labels)
        assert both == run(text.format("normalization: NONE"), scores, labels)

    def test_the_floor_holds_however_far_a_score_lies(self):
        scores = torch.tensor([[0.0, 1e9], [3e4, 0.0]], requires_grad=True)
        loss = layer('type: "SoftmaxWithLoss"', (2, 2), (2,)).float()(scores, torch.tensor([0.0, 1.0]))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(-math.log(TINY), rel=1e-7)
        assert scores.grad.tolist() == [[-0.5, 0.5], [0.5, -0.5]]

    def test_compiled_it_is_the_same(self):
        module = layer('type: "SoftmaxWithLoss"', (2, 2), (2,))
        found = []
        for call in (module, torch.compile(module, backend="aot_eager")):
            scores = torch.tensor([[0.0, 300.0], [1.0, 0.5]], dtype=torch.float64, requires_grad=True)
            loss = call(scores, torch.tensor([0.0, 1.0], dtype=torch.float64))
            loss.backward()
            found.append((loss.detach(), scores.grad))
        torch.testing.assert_close(found[0], found[1])

    @pytest.mark.parametrize("label", [-100, -1, 3, 2.0**40, math.nan])
    def test_a_label_that_is_no_class_is_an_error(self, label):
        module = layer('type: "SoftmaxWithLoss"', (2, 3), (2,))
        with pytest.raises(NetError, match=r"label -?\d+ is out of range; it must be from 0 to 2"):
            module(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0.0, label], dtype=torch.float64))

    def test_the_ignored_label_is_not_taken_for_the_wrong_one(self):
        module = layer('type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }', (2, 3), (2,))
        with pytest.raises(NetError, match="label 7 is out of range"):
            module(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([255.0, 7.0]))

    def test_another_batch_and_channels_last(self):
        module = layer('type: "SoftmaxWithLoss"', (2, 3, 4, 5), (2, 4, 5))
        scores = torch.randn(7, 3, 4, 5, dtype=torch.float64)
        labels = torch.randint(0, 3, (7, 4, 5)).double()
        expected = torch.nn.functional.cross_entropy(scores, labels.long())
        torch.testing.assert_close(module(scores.to(memory_format=torch.channels_last), labels), expected)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_without_autograd(self, mode):
        scores = torch.tensor([[0.0, 300.0]], dtype=torch.float64)
        with mode():
            loss = layer('type: "SoftmaxWithLoss"', (1, 2), (1,))(scores, torch.zeros(1, dtype=torch.float64))
        assert float(loss) == pytest.approx(-math.log(TINY))
        assert scores.tolist() == [[0, 300]]

    def test_faults(self):
        assert "there are 5 labels, of shape (5,), for 4 predictions" in fault(
            'type: "SoftmaxWithLoss"', (4, 3), (5,)
        )
        assert "need labels of shape (4, 2)" in fault('type: "SoftmaxWithLoss"', (4, 3, 2), (4,))
        assert "axis is 2" in fault('type: "SoftmaxWithLoss" softmax_param { axis: 2 }', (4, 3), (4,))
        assert "axis is -3" in fault('type: "Softmax" softmax_param { axis: -3 }', (4, 3))


class TestInfogainLoss:
    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(
        given_=scores_and_labels(),
        mode=st.sampled_from(NORMALIZATIONS),
        ignore=st.sampled_from([None, 0, 255]),
        place=st.integers(0, 20),
        four_axes=st.booleans(),
    )
    def test_number_gradient_and_probabilities(self, given_, mode, ignore, place, four_axes):
        scores, labels, axis, named = given_
        if ignore is not None:
            labels.flat[place % labels.size] = ignore
        classes = scores.shape[axis]
        gains = np.random.default_rng(classes).normal(size=(classes, classes))
        matrix = gains.reshape(1, 1, classes, classes) if four_axes else gains
        text = (
            f'type: "InfogainLoss" top: "y" top: "p" infogain_loss_param {{ axis: {named} }} loss_param {{ {mode} '
        )
        text += f"ignore_label: {ignore} }}" if ignore is not None else "}"

        total, valid, columns, probabilities = 0.0, 0, [], []
        for _, column, label in positions(scores, labels, axis):
            p = softmax(column)
            probabilities.append(p)
            columns.append(np.zeros_like(p))
            if label != ignore:
                total -= sum(gains[label, j] * math.log(max(p[j], 1e-20)) for j in range(classes))
                columns[-1] = p * gains[label].sum() - gains[label]
                valid += 1
        outer = math.prod(scores.shape[:axis])
        by = divisor(mode, outer, labels.size // outer, valid)

        loss, prob = run(text, scores, labels, matrix)
        assert float(loss) == pytest.approx(total / by, rel=1e-9, abs=1e-9)
        np.testing.assert_allclose(prob, back(probabilities, scores, axis), atol=1e-12)
        to_scores, to_labels, to_matrix = gradients(text, scores, labels, matrix)
        np.testing.assert_allclose(to_scores, back(columns, scores, axis) / by, atol=1e-10)
        assert not to_labels.any()
        assert not to_matrix.any()

    @pytest.mark.parametrize("kind", ["packed", "unpacked", "legacy shape"])
    def test_the_matrix_from_a_file(self, kind, tmp_path):
        gains = np.arange(9, dtype=np.float32).reshape(3, 3)
        if kind == "unpacked":
            head = LooseBlobProto(num=1, channels=1, height=3, width=3).SerializeToString()
            data = head + b"".join(b"\x2d" + number.tobytes() for number in gains.flatten())
        else:
            blob = BlobProto(data=[gains.tobytes()])
            if kind == "packed":
                blob.shape.dim.extend([3, 3])
            else:
                blob.num, blob.channels, blob.height, blob.width = 1, 1, 3, 3
            data = blob.SerializeToString()
        path = tmp_path / "gains.binaryproto"
        path.write_bytes(data)
        scores, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array([0.0, 1, 2, 0])
        text = f'type: "InfogainLoss" infogain_loss_param {{ source: "{path}" }}'
        assert number(text, scores, labels) == pytest.approx(number('type: "InfogainLoss"', scores, labels, gains))
        assert "matrix" not in layer(text, (4, 3), (4,)).state_dict()

    @pytest.mark.parametrize("name", ["x" * 5000, "a\\000b"])
    def test_a_source_that_can_be_no_path(self, name):
        text = f'type: "InfogainLoss" infogain_loss_param {{ source: "{name}" }}'
        assert "cannot be read" in fault(text, (4, 3), (4,))

    def test_faults(self, tmp_path):
        assert "has no source" in fault('type: "InfogainLoss"', (4, 3), (4,))
        assert "has shape (3, 2); expected (3, 3)" in fault('type: "InfogainLoss"', (4, 3), (4,), (3, 2))
        assert "give normalization" in fault(
            'type: "InfogainLoss" loss_param { normalize: true }', (4, 3), (4,), (3, 3)
        )
        path = tmp_path / "m"
        text = f'type: "InfogainLoss" infogain_loss_param {{ source: "{path}" }}'
        assert "cannot be read" in fault(text, (4, 3), (4,))
        path.write_bytes(b"\xff\xff")
        assert "is not a binary BlobProto" in fault(text, (4, 3), (4,))
        path.write_bytes(BlobProto(data=[np.zeros(4, np.float32).tobytes()]).SerializeToString())
        assert "holds 4 numbers; expected 3 x 3" in fault(text, (4, 3), (4,))


@st.composite
def pairs(draw: st.DrawFn):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    return random.normal(size=shape) * 3, random.normal(size=shape) * 3


class TestEuclideanLoss:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(pair=pairs())
    def test_number_and_gradients(self, pair):
        a, b = pair
        expected = sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True)) / 2 / len(a)
        assert number('type: "EuclideanLoss"', a, b) == pytest.approx(expected)
        to_a, to_b = gradients('type: "EuclideanLoss"', a, b)
        np.testing.assert_allclose(to_a, (a - b) / len(a))
        np.testing.assert_allclose(to_b, (b - a) / len(a))

    def test_shapes_of_the_same_count(self):
        a, b = np.arange(12.0).reshape(3, 2, 2), np.ones((3, 4))
        assert number('type: "EuclideanLoss"', a, b) == pytest.approx(((a.reshape(3, 4) - b) ** 2).sum() / 6)

    def test_faults(self):
        assert "shapes (3, 2) and (3, 3), 6 and 9 numbers" in fault('type: "EuclideanLoss"', (3, 2), (3, 3))
        assert "the first axes must be equal" in fault('type: "EuclideanLoss"', (3, 4), (4, 3))
        assert "the first axes must be equal" in fault('type: "EuclideanLoss"', (), ())


class TestSigmoidCrossEntropyLoss:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        pair=pairs(),
        mode=st.sampled_from([*NORMALIZATIONS, "normalize: true", "normalize: false"]),
        ignore=st.sampled_from([None, 0, 1, 255, -1]),
        place=st.integers(0, 20),
        large=st.booleans(),
    )
    def test_number_and_gradient(self, pair, mode, ignore, place, large):
        x, targets = pair
        x = x * 300 if large else x
        targets = 1 / (1 + np.exp(-targets))
        targets.flat[place % targets.size] = 1 if ignore is None else ignore
        text = f'type: "SigmoidCrossEntropyLoss" loss_param {{ {mode} '
        text += f"ignore_label: {ignore} }}" if ignore is not None else "}"
        total, valid, grads = 0.0, 0, []
        for score, target in zip(x.flat, targets.flat, strict=True):
            grads.append(0.0)
            if int(target) != ignore:
                total -= score * (target - (score >= 0)) - math.log1p(math.exp(score - 2 * score * (score >= 0)))
                grads[-1] = 1 / (1 + np.exp(-score, dtype=np.longdouble)) - target
                valid += 1
        by = divisor(mode, len(x), x.size // len(x), valid, default="BATCH_SIZE")
        assert number(text, x, targets) == pytest.approx(total / by, rel=1e-9, abs=1e-12)
        to_x, to_targets = gradients(text, x, targets)
        np.testing.assert_allclose(to_x.flatten(), np.array(grads, float) / by, atol=1e-12)
        assert not to_targets.any()

    def test_targets_of_another_shape_with_as_many_numbers(self):
        x, targets = np.arange(6.0).reshape(3, 2), np.ones((3, 2, 1))
        text = 'type: "SigmoidCrossEntropyLoss"'
        assert run(text, x, targets) == run(text, x, targets.reshape(3, 2))
        assert "6 and 9 numbers" in fault(text, (3, 2), (3, 3))


class TestHingeLoss:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(pair=pairs(), norm=st.sampled_from(["L1", "L2"]), seed=st.integers(0, 99))
    def test_number_and_gradient(self, pair, norm, seed):
        x = np.round(pair[0])  # so that some margins are exactly 0
        count = x.size // len(x)
        labels = np.random.default_rng(seed).integers(0, count, len(x)).astype(float)
        flat = x.reshape(len(x), count)
        total, grad = 0.0, np.zeros_like(flat)
        for n in range(len(x)):
            for j in range(count):
                sign = -1 if j == labels[n] else 1
                margin = max(0.0, 1 + sign * flat[n, j])
                total += margin if norm == "L1" else margin**2
                grad[n, j] = sign * (float(margin > 0) if norm == "L1" else 2 * margin)
        text = f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }}'
        assert number(text, x, labels) == pytest.approx(total / len(x))
        to_x, to_labels = gradients(text, x, labels)
        np.testing.assert_allclose(to_x.reshape(flat.shape), grad / len(x))
        assert not to_labels.any()

    def test_faults(self):
        assert "there are 8 labels, of shape (4, 2)" in fault('type: "HingeLoss"', (4, 3), (4, 2))


class TestContrastiveLoss:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        batch=st.integers(1, 5),
        features=st.integers(1, 4),
        seed=st.integers(0, 999),
        margin=st.sampled_from([0.0, 1.0, 2.5]),
        legacy=st.booleans(),
        tail=st.sampled_from([(), (1,), (1, 1)]),
    )
    def test_number_and_gradients(self, batch, features, seed, margin, legacy, tail):
        random = np.random.default_rng(seed)
        a, b = random.normal(size=(2, batch, features))
        b[0] = a[0]  # a pair without distance
        labels = random.integers(0, 2, batch).astype(float)
        total, grad = 0.0, np.zeros_like(a)
        for n in range(batch):
            square = ((a[n] - b[n]) ** 2).sum()
            distance = math.sqrt(square)
            if labels[n]:
                total += square
                grad[n] = a[n] - b[n]
            elif legacy:
                total += max(margin - square, 0)
                grad[n] = -(a[n] - b[n]) * (margin - square > 0)
            else:
                missing = margin - distance
                total += max(missing, 0) ** 2
                grad[n] = -missing / (distance + 1e-4) * (a[n] - b[n]) * (missing > 0)
        param = f"contrastive_loss_param {{ margin: {margin} legacy_version: {str(legacy).lower()} }}"
        text = f'type: "ContrastiveLoss" {param}'
        bottoms = a.reshape(a.shape + tail), b.reshape(b.shape + tail), labels.reshape(batch, *tail)
        assert number(text, *bottoms) == pytest.approx(total / 2 / batch)
        to_a, to_b, to_labels = gradients(text, *bottoms)
        np.testing.assert_allclose(to_a.reshape(a.shape), grad / batch, atol=1e-12)
        np.testing.assert_allclose(to_b.reshape(b.shape), -grad / batch, atol=1e-12)
        assert not to_labels.any()

    def test_exactly_at_the_margin_nothing_moves(self):
        a, b = np.array([[1.0, 0.0]]), np.array([[0.0, 0.0]])
        for legacy in ("true", "false"):
            text = f'type: "ContrastiveLoss" contrastive_loss_param {{ margin: 1 legacy_version: {legacy} }}'
            assert run(text, a, b, np.zeros(1)) == [0.0]
            assert not gradients(text, a, b, np.zeros(1))[0].any()

    def test_faults(self):
        text = 'type: "ContrastiveLoss"'
        assert "put a Flatten layer before it" in fault(text, (2, 3, 2), (2, 3, 2), (2,))
        assert "6 and 8 numbers" in fault(text, (2, 3), (2, 4), (2,))
        assert "there are 3 labels" in fault(text, (2, 3), (2, 3), (3,))


class TestMultinomialLogisticLoss:
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(batch=st.integers(1, 5), classes=st.integers(1, 5), seed=st.integers(0, 99), spatial=st.booleans())
    def test_number_and_gradient(self, batch, classes, seed, spatial):
        random = np.random.default_rng(seed)
        p = random.dirichlet(np.ones(classes), batch)
        labels = random.integers(0, classes, batch).astype(float)
        p[0] = 0  # below the floor
        total, grad = 0.0, np.zeros_like(p)
        for n in range(batch):
            held = max(p[n, int(labels[n])], 1e-20)
            total -= math.log(held)
            grad[n, int(labels[n])] = -1 / held
        given_ = p.reshape(batch, classes, 1, 1) if spatial else p
        text = 'type: "MultinomialLogisticLoss"'
        assert number(text, given_, labels) == pytest.approx(total / batch)
        to_p, to_labels = gradients(text, given_, labels)
        np.testing.assert_allclose(to_p.reshape(p.shape), grad / batch)
        assert not to_labels.any()


RANDOM = np.random.default_rng(0)
PAIR, LABELS = RANDOM.random((2, 4, 3)), np.array([0.0, 2, 1, 0])
IMAGE, SPATIAL = RANDOM.random((2, 3, 2, 2)), RANDOM.integers(0, 3, (2, 2, 2)).astype(float)


@pytest.mark.parametrize(
    ("text", "bottoms"),
    [
        ('type: "SoftmaxWithLoss" top: "y" top: "p" loss_param { ignore_label: 0 }', (IMAGE, SPATIAL)),
        ('type: "SoftmaxWithLoss" softmax_param { axis: -1 }', (PAIR[0], LABELS)),
        ('type: "Softmax"', (IMAGE,)),
        ('type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 0 }', tuple(PAIR)),
        ('type: "EuclideanLoss"', tuple(PAIR)),
        ('type: "HingeLoss"', (PAIR[0], LABELS)),
        ('type: "ContrastiveLoss"', (*PAIR, LABELS)),
        ('type: "MultinomialLogisticLoss"', (PAIR[0], LABELS)),
    ],
)
def test_every_loss_exports(text, bottoms):
    export(text, *bottoms)


def test_infogain_exports():
    export('type: "InfogainLoss" loss_param { ignore_label: 0 }', IMAGE, SPATIAL, np.eye(3), batches=[0, 1])


@pytest.mark.parametrize("label", [-1.0, 3.0])
@pytest.mark.parametrize(
    "text",
    [
        'type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }',
        'type: "SoftmaxWithLoss" softmax_param { axis: -1 }',
        'type: "InfogainLoss"',
        'type: "HingeLoss"',
        'type: "MultinomialLogisticLoss"',
        'type: "Accuracy"',
    ],
)
def test_labels_out_of_range_are_named(text, label):
    shapes = [(2, 3), (2,), (3, 3)][: 3 if "Infogain" in text else 2]
    bottoms = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
    bottoms[1][1] = label
    with pytest.raises(NetError, match=rf"label {label:.0f} is out of range; it must be from 0 to 2"):
        layer(text, *shapes)(*bottoms)


def test_contrastive_loss_compares_as_many_features():
    module = layer('type: "ContrastiveLoss"', (3, 3), (3, 3), (3,))
    with pytest.raises(RuntimeError, match="invalid for input of size 3"):
        module(torch.ones(3, 3), torch.ones(1, 3), torch.ones(3))


class TestLossWeights:
    INPUTS = (
        'layer { name: "in" type: "Input" top: "x" top: "t" top: "l" '
        "input_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 3 } shape { dim: 4 } } }\n"
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "s" '
        'inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }\n'
    )

    def given(self) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(4, 3), "t": torch.randn(4, 3), "l": torch.tensor([0.0, 1, 2, 1])}

    def test_several_losses_add_up_by_weight(self):
        net = CaffeNet.from_prototxt(
            self.INPUTS
            + 'layer { name: "a" type: "SoftmaxWithLoss" bottom: "s" bottom: "l" top: "a" loss_weight: 0.25 }\n'
            + 'layer { name: "b" type: "EuclideanLoss" bottom: "s" bottom: "t" top: "b" }\n'
            + 'layer { name: "c" type: "HingeLoss" bottom: "s" bottom: "l" top: "c" loss_weight: 0 }\n'
        )
        out = net(self.given())
        assert set(out) == {"a", "b", "c"}
        torch.testing.assert_close(net.loss(out), 0.25 * out["a"] + out["b"])

    def test_a_loss_that_names_no_top(self):
        net = CaffeNet.from_prototxt(
            self.INPUTS
            + 'layer { name: "a" type: "EuclideanLoss" bottom: "s" bottom: "t" }\n'
            + 'layer { name: "b" type: "SoftmaxWithLoss" bottom: "s" bottom: "l" }\n'
        )
        given_ = self.given()
        s = given_["x"] @ net.weights()["ip"][0].T + net.weights()["ip"][1]
        expected = (s - given_["t"]).square().sum() / 8 + torch.nn.functional.cross_entropy(s, given_["l"].long())
        torch.testing.assert_close(net.loss(net(given_)), expected)

    def test_the_probabilities_have_no_weight_unless_given(self):
        top = 'layer { name: "a" type: "SoftmaxWithLoss" bottom: "s" bottom: "l" top: "a" top: "p" '
        net = CaffeNet.from_prototxt(self.INPUTS + top + "}\n")
        out = net(self.given())
        torch.testing.assert_close(net.loss(out), out["a"])
        assert not out["p"].requires_grad
        with pytest.raises(NetError, match="loss_weight has 1 entries for 2 tops"):
            CaffeNet.from_prototxt(self.INPUTS + top + "loss_weight: 2 }\n")

    def test_any_layer_is_a_loss_by_its_weight(self):
        net = CaffeNet.from_prototxt(
            self.INPUTS + 'layer { name: "r" type: "Reduction" bottom: "s" top: "r" loss_weight: 0.5 '
            "reduction_param { operation: SUMSQ axis: 1 } }\n"
        )
        out = net(self.given())
        torch.testing.assert_close(net.loss(out), 0.5 * out["r"].sum())

    def test_a_loss_that_another_layer_reads_still_counts(self):
        net = CaffeNet.from_prototxt(
            self.INPUTS
            + 'layer { name: "a" type: "EuclideanLoss" bottom: "s" bottom: "t" top: "a" loss_weight: 2 }\n'
            + 'layer { name: "n" type: "Power" bottom: "a" top: "n" power_param { scale: 3 } loss_weight: 1 }\n'
            + 'layer { name: "quiet" type: "Silence" bottom: "n" }\n'
        )
        out = net(self.given())
        torch.testing.assert_close(net.loss(out), 5 * out["a"])

    def test_a_weighted_blob_that_is_overwritten_counts_as_it_was(self):
        net = CaffeNet.from_prototxt(
            self.INPUTS
            + 'layer { name: "e" type: "Eltwise" bottom: "s" bottom: "t" top: "e" loss_weight: 1 }\n'
            + 'layer { name: "r" type: "ReLU" bottom: "e" top: "e" loss_weight: 10 }\n'
        )
        given_ = self.given()
        before = given_["x"] @ net.weights()["ip"][0].T + net.weights()["ip"][1] + given_["t"]
        loss = net.loss(net(given_))
        torch.testing.assert_close(loss, before.sum() + 10 * before.relu().sum())
        loss.backward()
        expected = torch.autograd.grad(before.sum() + 10 * before.relu().sum(), net.weights()["ip"][0])
        torch.testing.assert_close(net.weights()["ip"][0].grad, expected[0])

    def test_faults_name_layer_and_line(self):
        with pytest.raises(NetError, match=r":3: layer 'a' \(EuclideanLoss\): its first two bottoms have shapes"):
            CaffeNet.from_prototxt(
                self.INPUTS + 'layer { name: "a" type: "EuclideanLoss" bottom: "s" bottom: "l" }'
            )

    @pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "Accuracy"])
    def test_labels_of_another_batch(self, kind):
        net = CaffeNet.from_prototxt(
            self.INPUTS + f'layer {{ name: "a" type: "{kind}" bottom: "s" bottom: "l" top: "a" }}'
        )
        with pytest.raises(NetError, match=rf"layer 'a' \({kind}\): expected bottoms of shapes \(4, 3\), \(4,\)"):
            net(self.given() | {"l": torch.zeros(3)})
