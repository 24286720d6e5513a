"""Softmax, and the losses that take its logarithm: SoftmaxWithLoss and InfogainLoss."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor
from torch.nn import functional

from sparknet.caffe.layers.axes import canonical_axis
from sparknet.caffe.layers.labels import (
    check_label_count,
    class_labels,
    in_range,
    normalizer_of,
    with_gradient_of,
)
from sparknet.caffe.layers.layer import Layer, Shape
from sparknet.caffe.schema import BlobProto, LayerParameter
from sparknet.caffe.weights.blobs import array_of
from sparknet.errors import NetError

__all__ = ["InfogainLoss", "Softmax", "SoftmaxWithLoss"]

_GREATEST_SOFTMAX_LOSS = -math.log(np.finfo(np.float32).tiny)
"""Caffe holds the label's probability at the smallest normal float32, in double precision too."""
_LEAST_LOG = math.log(1e-20)
"""Caffe's floor of a probability in the older losses."""
_NO_LABEL = -(2**62) - 1
"""An `ignore_index` that no label can be: no float, of either precision, becomes this integer."""


class Softmax(Layer):
    """p = exp(x) / sum exp(x) along `axis`."""

    caffe_in_place = "right"

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        self.axis = canonical_axis(parameters.softmax_param.axis, bottoms[0])

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape, 0..1."""
        return functional.softmax(x, self.axis)


class SoftmaxWithLoss(Layer):
    """-sum log(max(p[label], FLT_MIN)) / normaliser, p the softmax of the scores along `axis`.

    The gradient is (p - onehot(label)) / normaliser, also where the floor holds p (caffe
    `softmax_loss_layer.cpp`). Labels get none. A second top holds p.
    """

    bottom_count = (2, 2)
    top_count = (1, 2)
    is_loss = True

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        scores, labels = bottoms
        self.axis = canonical_axis(parameters.softmax_param.axis, scores)
        check_label_count(scores, labels, self.axis)
        self.normalizer = normalizer_of(parameters.loss_param)
        ignored = self.normalizer.ignore_label
        self.legal = class_labels(scores[self.axis], ignored=ignored, ignored_by="ignore_label in loss_param")
        self.gives_probabilities = len(parameters.top) > 1

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Scores [*outer, classes, *inner] and labels, in any shape of so many, to a scalar."""
        shape, axis = scores.shape, self.axis
        outer, inner = shape[:axis], shape[axis + 1 :]
        # The kernel has the classes along axis 1, as nearly every net has them: no other shape is needed then.
        if axis == 1:
            table, targets = scores, labels.long().reshape(outer + inner)
        else:
            table = scores.reshape(math.prod(outer), shape[axis], math.prod(inner))
            targets = labels.long().reshape(math.prod(outer), math.prod(inner))
        normalizer = self.normalizer
        ignored = _NO_LABEL if normalizer.ignore_label is None else normalizer.ignore_label
        with in_range(targets, shape[axis], ignored=ignored):
            each = functional.cross_entropy(table, targets, reduction="none", ignore_index=ignored)
        # Behind autograd's back: the number is held at the floor, the gradient is not. The backward pass does not
        # read `each`.
        each.detach().clamp_(max=_GREATEST_SOFTMAX_LOSS)
        # The commonest case in one kernel; the divisor is never below 1, as no axis of a blob is empty.
        if normalizer.is_mean:
            loss = each.mean()
        else:
            counts = normalizer.counts(targets)
            loss = each.sum() / normalizer.divisor(math.prod(outer), math.prod(inner), counts)
        # Worked out again only where a second top asks for them; the kernel of the loss keeps logarithms.
        if not self.gives_probabilities:
            return loss
        return loss, functional.softmax(scores.detach(), self.axis)


class InfogainLoss(Layer):
    """-sum_j H[label, j] log(max(p_j, 1e-20)) / normaliser, p the softmax of the scores along `axis`.

    H is a third bottom, or stands in the file `source` (a binary BlobProto). The gradient is that without the
    floor, p_k sum_j H[label, j] - H[label, k], over the normaliser (caffe `infogain_loss_layer.cpp`). Labels and H
    get none. A second top holds p.
    """

    bottom_count = (2, 3)
    top_count = (1, 2)
    is_loss = True
    matrix: Tensor
    """H, float32 [classes, classes], where a file gives it."""

    def __init__(self, parameters: LayerParameter, bottoms: Sequence[Shape]) -> None:
        super().__init__(parameters, bottoms)
        given = parameters.infogain_loss_param
        self.axis = canonical_axis(given.axis, bottoms[0])
        check_label_count(bottoms[0], bottoms[1], self.axis)
        if parameters.loss_param.HasField("normalize"):
            raise NetError("loss_param has normalize, which this layer does not read; give normalization")
        self.normalizer = normalizer_of(parameters.loss_param)
        self.gives_probabilities = len(parameters.top) > 1
        classes = bottoms[0][self.axis]
        self.legal = class_labels(
            classes, ignored=self.normalizer.ignore_label, ignored_by="ignore_label in loss_param"
        )
        if len(bottoms) == 2:
            if not given.source:
                raise NetError("infogain_loss_param has no source; give the matrix's file, or a third bottom")
            self.register_buffer("matrix", _read_matrix(Path(given.source), classes), persistent=False)
        elif math.prod(bottoms[2]) != classes**2:
            raise NetError(
                f"the third bottom, the matrix, has shape {bottoms[2]}; expected {(classes, classes)}, for so many "
                "are the classes"
            )

    def forward(self, scores: Tensor, labels: Tensor, matrix: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        """Scores [*outer, classes, *inner], labels in any shape of so many and H [classes, classes] to a scalar."""
        outer, inner = math.prod(scores.shape[: self.axis]), math.prod(scores.shape[self.axis + 1 :])
        classes = scores.shape[self.axis]
        gains = self.matrix if matrix is None else matrix.detach().reshape(classes, classes)
        logs = functional.log_softmax(scores, self.axis)
        table = logs.reshape(outer, classes, inner).transpose(1, 2)
        targets = labels.reshape(outer, inner).long()
        counts = self.normalizer.counts(targets)
        # An ignored label is often 255, beyond the classes: it is looked up as 0, and counts nothing.
        places = targets if counts is None else targets.where(counts, 0)
        with in_range(places, classes):
            rows = functional.embedding(places, gains)
        if counts is not None:
            rows = rows * counts[..., None]
        value = -(rows * table.detach().clamp(min=_LEAST_LOG)).sum()
        loss = with_gradient_of(value, -(rows * table).sum()) / self.normalizer.divisor(outer, inner, counts)
        return (loss, logs.detach().exp()) if self.gives_probabilities else loss


def _read_matrix(path: Path, classes: int) -> Tensor:
    """Float32 [classes, classes] from a binary BlobProto."""
    try:
        numbers = array_of(BlobProto.FromString(path.read_bytes()))
    except (DecodeError, NetError) as error:
        raise NetError(f"infogain_loss_param's source {str(path)!r} is not a binary BlobProto: {error}") from error
    except (OSError, ValueError, MemoryError) as error:  # ValueError: of a name that none can have
        raise NetError(f"infogain_loss_param's source {str(path)!r} cannot be read: {error}") from error
    if numbers.size != classes**2:
        raise NetError(
            f"infogain_loss_param's source {str(path)!r} holds {numbers.size} numbers; expected {classes} x "
            f"{classes}, for so many are the classes"
        )
    return torch.from_numpy(numbers.astype(np.float32).reshape(classes, classes))
