"""What is read off the scores and never trained: Accuracy and ArgMax."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.labels import check_label_count, class_labels, in_range
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import LayerParameter
from sparknet.errors import NetError

__all__ = ["Accuracy", "ArgMax"]


class Accuracy(Layer):
    """Share of the labels that are among the `top_k` best scores along `axis`, 0..1.

    Other classes with the same score count as better than the label's. Labels equal to `ignore_label` are left
    out; where none is left the accuracy is 0. A second top holds the accuracy of each class, 0 for one that does
    not occur (caffe `accuracy_layer.cpp`).
    """

    bottom_count = (2, 2)
    top_count = (1, 2)

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.accuracy_param
        scores, labels = bottoms
        self.axis = canonical_axis(given.axis, scores)
        check_label_count(scores, labels, self.axis)
        classes = scores[self.axis]
        if not 1 <= given.top_k <= classes:
            raise NetError(f"top_k is {given.top_k}; with {classes} classes it must be from 1 to {classes}")
        self.top_k = given.top_k
        self.ignore_label = given.ignore_label if given.HasField("ignore_label") else None
        self.legal = class_labels(classes, ignored=self.ignore_label, ignored_by="ignore_label in accuracy_param")
        self.gives_classes = len(parameters.top) > 1

    @torch.no_grad()
    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores [*outer, classes, *inner] and labels, in any shape of so many, to a scalar (and [classes])."""
        one_each = (*scores.shape[: self.axis], 1, *scores.shape[self.axis + 1 :])
        targets = labels.reshape(one_each).long()
        counts = None
        if self.ignore_label is not None:
            # An ignored label is often 255, beyond the classes, which gather would refuse.
            counts = targets != self.ignore_label
            targets = targets.where(counts, 0)
        with in_range(targets, scores.shape[self.axis]):
            own = scores.gather(self.axis, targets)
        # accuracy_layer.cpp counts equal scores against the label, where topk would pick any. The label's own
        # score is among those that reach it: fewer than top_k others may.
        hits = (scores >= own).sum(self.axis, keepdim=True) <= self.top_k
        weights = torch.ones_like(hits) if counts is None else counts
        hits = hits & weights
        dtype = _counting(scores.dtype)
        accuracy = hits.sum().to(dtype) / weights.sum().clamp(min=1)
        if not self.gives_classes:
            return accuracy
        flat, classes = targets.flatten(), scores.new_zeros(scores.shape[self.axis], dtype=dtype)
        found = classes.index_add(0, flat, hits.flatten().to(dtype))
        present = classes.index_add(0, flat, weights.flatten().to(dtype))
        return accuracy, found / present.clamp(min=1)


class ArgMax(Layer):
    """Indices of the `top_k` greatest numbers, the greatest first; of equal ones the larger index comes first.

    Without `axis`, among all numbers of an item: [batch, 1, top_k] (more axes of 1 behind, as many as the bottom
    has beyond three), or with `out_max_val` [batch, 2, top_k], indices and values. With `axis`, along it:
    [*outer, top_k, *inner], indices, or values with `out_max_val` (caffe `argmax_layer.cpp`).
    """

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.argmax_param
        (shape,) = bottoms
        self.axis = canonical_axis(given.axis, shape) if given.HasField("axis") else None
        if not shape:
            raise NetError("its bottom has no axes; the first one must be the batch")
        choices = math.prod(shape[1:]) if self.axis is None else shape[self.axis]
        if not 1 <= given.top_k <= choices:
            raise NetError(f"top_k is {given.top_k}; among {choices} numbers it must be from 1 to {choices}")
        self.top_k = given.top_k
        self.gives_values = given.out_max_val

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Any shape with a batch axis to the shapes above; indices are numbers of the net's dtype."""
        dtype = _counting(x.dtype)
        if self.axis is not None:
            values, indices = _best(x, self.axis, self.top_k)
            return values if self.gives_values else indices.to(dtype)
        values, indices = _best(x.reshape(x.shape[0], 1, -1), 2, self.top_k)
        tops = torch.cat([indices.to(dtype), values], dim=1) if self.gives_values else indices.to(dtype)
        return tops.reshape(*tops.shape, *(1,) * (x.dim() - 3))


def _counting(dtype: torch.dtype) -> torch.dtype:
    """The dtype of counts and indices: half precision has no 257."""
    return torch.promote_types(dtype, torch.float32)


def _best(x: Tensor, axis: int, count: int) -> tuple[Tensor, Tensor]:
    """The greatest numbers along an axis and where they stand, as Caffe orders them: by value, then by index."""
    # argmax_layer.cpp sorts pairs of value and index downwards, so that of equal values the later one wins.
    # the first among the reversed is the last: both kernels promise to keep the order of equal numbers
    mirrored = x.flip(axis)
    if count == 1:
        places = mirrored.argmax(axis, keepdim=True)
        values = mirrored.gather(axis, places)
    else:
        values, places = mirrored.sort(dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, count), x.shape[axis] - 1 - places.narrow(axis, 0, count)
