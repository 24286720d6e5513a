"""Losses over pairs of blobs and over plain scores; those that take a softmax are in `softmax.py`."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparknet.caffe.layers.labels import class_labels, in_range, normalizer_of, with_gradient_of
from sparknet.caffe.layers.layer import Layer, Legal, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.caffe.schema.net_format_pb2 import HingeLossParameter
from sparknet.errors import NetError

__all__ = ["ContrastiveLoss", "EuclideanLoss", "HingeLoss", "MultinomialLogisticLoss", "SigmoidCrossEntropyLoss"]

_LEAST_PROBABILITY = 1e-20
"""Caffe's floor under the logarithm of the older losses."""
_DISTANCE_GUARD = 1e-4
"""What Caffe adds to a distance before it divides a gradient by it."""


class EuclideanLoss(Layer):
    """sum (a - b)^2 / (2 N), N the first axis; both bottoms get a gradient (caffe `euclidean_loss_layer.cpp`)."""

    bottom_count = (2, 2)
    is_loss = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        _check_batches(bottoms)
        _check_counts(bottoms[0], bottoms[1])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Two blobs of as many numbers to a scalar."""
        # euclidean_loss_layer.cpp subtracts number by number: the shapes need only hold as many.
        return functional.mse_loss(a, b.reshape(a.shape), reduction="sum") / (2 * a.shape[0])


class SigmoidCrossEntropyLoss(Layer):
    """-sum [t log s(x) + (1 - t) log(1 - s(x))] / normaliser, s the sigmoid; the gradient is s(x) - t over it.

    The normaliser is the batch size unless `loss_param` says otherwise. Targets get no gradient (caffe
    `sigmoid_cross_entropy_loss_layer.cpp`).
    """

    bottom_count = (2, 2)
    is_loss = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        _check_batches(bottoms)
        _check_counts(bottoms[0], bottoms[1])
        self.normalizer = normalizer_of(parameters.loss_param, default="BATCH_SIZE")
        ignored = self.normalizer.ignore_label
        # sigmoid_cross_entropy_loss_layer.cpp takes any; beyond 0 and 1 the loss has no least value.
        self.legal = {1: Legal(most=1, whole=False, ignored=ignored, ignored_by="ignore_label in loss_param")}

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Any x, and targets 0..1 of as many numbers, to a scalar."""
        targets = targets.detach().reshape(x.shape)
        # Caffe compares the target's whole part: with ignore_label 0 all targets between -1 and 1 are ignored
        counts = self.normalizer.counts(targets.trunc())
        weight = None if counts is None else counts.to(x.dtype)
        kept = targets if counts is None else targets.where(counts, 0)
        # The kernel takes the logarithm of the sigmoid in one step, as Caffe's `x - log(1 + e^x)` by the sign of
        # x: neither overflows where the sigmoid is 0 or 1.
        total = functional.binary_cross_entropy_with_logits(x, kept, weight, reduction="sum")
        return total / self.normalizer.divisor(x.shape[0], math.prod(x.shape[1:]), counts)


class HingeLoss(Layer):
    """sum max(0, 1 - d x)^p / N with d = 1 for the label's score and -1 for all others; p is 1 or 2 (`norm`).

    Scores are everything behind the first axis. Labels get no gradient (caffe `hinge_loss_layer.cpp`).
    """

    bottom_count = (2, 2)
    is_loss = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        _check_batches(bottoms)
        _check_one_label_each(bottoms[0], bottoms[1])
        self.legal = class_labels(math.prod(bottoms[0][1:]))
        self.squared = parameters.hinge_loss_param.norm == HingeLossParameter.L2

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """X [batch, *scores] and labels, in any shape of so many, to a scalar."""
        scores = x.reshape(x.shape[0], -1)
        targets = labels.reshape(x.shape[0], 1).long()
        with in_range(targets, scores.shape[1]):
            signs = torch.ones_like(scores).scatter(1, targets, -1)
        # `signs` is -d: so 1 - d x.
        margins = functional.relu(1 + signs * scores)
        return (margins.square() if self.squared else margins).sum() / x.shape[0]


class ContrastiveLoss(Layer):
    """sum [y d^2 + (1 - y) max(margin - d, 0)^2] / (2 N), d the distance of a pair, y whether it is similar.

    With `legacy_version` the second term is max(margin - d^2, 0). The gradient of d is (a - b) / (d + 1e-4), as
    in Caffe, not (a - b) / d; labels get none (caffe `contrastive_loss_layer.cpp`).
    """

    bottom_count = (3, 3)
    is_loss = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        _check_batches(bottoms)
        a, b, labels = bottoms
        _check_counts(a, b)
        _check_one_label_each(a, labels)
        # contrastive_loss_layer.cpp: CHECK_EQ(height, 1) and CHECK_EQ(width, 1), of both.
        if math.prod(a[2:]) != 1 or math.prod(b[2:]) != 1:
            raise NetError(
                f"the bottoms have shapes {a} and {b}; expected [batch, features] with only axes of 1 behind: "
                "put a Flatten layer before it"
            )
        given = parameters.contrastive_loss_param
        self.margin, self.legacy = given.margin, given.legacy_version

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        """A and b [batch, features], labels (0: not similar) in any shape of so many, to a scalar."""
        batch = a.shape[0]
        rows = a.reshape(batch, -1)
        squares = (rows - b.reshape(rows.shape)).square().sum(1)
        similar = labels.reshape(batch).long() != 0
        known = squares.detach()
        if self.legacy:
            apart = (self.margin - known).clamp(min=0)
            slope = -torch.ones_like(known)
            pushed = known < self.margin
        else:
            # Not left to autograd: the slope of the root is infinite at distance 0, where two equal rows stand.
            distance = known.sqrt()
            missing = self.margin - distance
            apart = missing.clamp(min=0).square()
            slope = -missing / (distance + _DISTANCE_GUARD)
            pushed = missing > 0
        value = torch.where(similar, known, apart).sum()
        # d(d^2/2) = a - b: what each pair's difference is multiplied with in Caffe's gradient
        factor = torch.where(similar, 1, slope * pushed)
        return with_gradient_of(value, (factor * squares).sum()) / (2 * batch)


class MultinomialLogisticLoss(Layer):
    """-sum log(max(p[label], 1e-20)) / N over probabilities p, everything behind the first axis.

    The gradient is -1 / (N max(p[label], 1e-20)), also where the floor holds p; labels get none (caffe
    `multinomial_logistic_loss_layer.cpp`).
    """

    bottom_count = (2, 2)
    is_loss = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        _check_batches(bottoms)
        _check_one_label_each(bottoms[0], bottoms[1])
        self.legal = class_labels(math.prod(bottoms[0][1:]))

    def forward(self, p: Tensor, labels: Tensor) -> Tensor:
        """P [batch, *classes], 0..1, and labels, in any shape of so many, to a scalar."""
        batch = p.shape[0]
        rows, targets = p.reshape(batch, -1), labels.reshape(batch, 1).long()
        with in_range(targets, rows.shape[1]):
            chosen = rows.gather(1, targets)
        # The floor is for the number; Caffe's gradient divides by the held probability and is not 0 there, as
        # that of a clamp would be.
        held = chosen.detach().clamp(min=_LEAST_PROBABILITY)
        return with_gradient_of(-held.log().sum(), -(chosen / held).sum()) / batch


def _check_batches(bottoms: Sequence[Shape]) -> None:
    first, second = bottoms[:2]
    if not first or not second or first[0] != second[0]:
        raise NetError(f"its first two bottoms have shapes {first} and {second}; the first axes must be equal")


def _check_counts(first: Shape, second: Shape) -> None:
    if math.prod(first) != math.prod(second):
        raise NetError(
            f"its first two bottoms have shapes {first} and {second}, {math.prod(first)} and {math.prod(second)} "
            "numbers; they must have as many"
        )


def _check_one_label_each(scores: Shape, labels: Shape) -> None:
    if math.prod(labels) != scores[0]:
        raise NetError(
            f"there are {math.prod(labels)} labels, of shape {labels}, for a bottom of shape {scores}; "
            f"expected {scores[0]}: give one label for each"
        )
