"""A Caffe net as an objective: a TRAIN net that is optimised, and a TEST net over the same tensors as its judge."""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from sparknet.caffe.description.spec import PhaseName
from sparknet.caffe.layers import INPUT_LAYERS
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.module.net_plan import Learnable
from sparknet.errors import NetError
from sparknet.training.objectives.answer import Answer, Kind
from sparknet.training.objectives.input_binding import Intake, transform_of
from sparknet.training.objectives.label_rules import LabelRule
from sparknet.training.objectives.objective import (
    Better,
    InputTransform,
    InputTransforms,
    Sums,
    Tensors,
    check_rows,
    in_channels_last,
    in_memory_order,
)
from sparknet.training.objectives.time_axis import check_steps

__all__ = ["CaffeObjective"]

_SCORED = (("SoftmaxWithLoss", "Softmax"), ("Accuracy",))
"""Layers whose first bottom is a score for every class, the surest first."""
_JUDGED: dict[str, Kind] = {"SigmoidCrossEntropyLoss": "logits", "EuclideanLoss": "numbers"}
"""Layers whose first bottom says something else."""


class CaffeObjective:
    """The loss of the TRAIN net; measures are the scalar outputs of the TEST net.

    The two nets share the tensors of layers of the same name, as in Caffe: what moves the one moves the other.

    Args:
        train: phase TRAIN.
        test: phase TEST; the same net for one that is only to be tested.
        intakes: which input of the two nets is given which column.
        test_batch: rows of a forward pass of the TEST net.
        channels_last: keep images and filters in channels-last memory order.
        judged_as_trained: measure in training mode: what is tested is a net of phase TRAIN.

    Attributes:
        train: the TRAIN net.
        test: the TEST net.
        intakes: of the two.
        transforms: what the data layers of the two do to an image.
        measured: by output of the TEST net that is a measure, how many numbers it has: one, or one for each class.
        loss_weights: by output of the TEST net, its weight in that net's loss, where it has one.
        judges: by name of further rows the same TRAIN net with another TEST net.
    """

    fits_when_built = True

    def __init__(
        self,
        train: CaffeNet,
        test: CaffeNet,
        *,
        intakes: tuple[Intake, Intake],
        test_batch: int,
        channels_last: bool = False,
        judged_as_trained: bool = False,
    ) -> None:
        self.train = train
        self.test = test
        for net in (train, test):
            in_memory_order(net, channels_last)
        # As Caffe does before each test (solver.cpp); here the tensors are the same, so that once is enough.
        if test is not train:
            test.share_weights(train)
        self.learnable: Sequence[Learnable] = train.learnable
        # Outputs are means over a batch: which rows make one must not depend on how an evaluation is shared.
        self.evaluation_batch = self.unit = test_batch
        self.intakes = intakes
        self.transforms: InputTransforms = _transforms(*intakes)
        self.judges: dict[str, CaffeObjective] = {}
        self._channels_last = channels_last
        self._judged_as_trained = judged_as_trained
        self.measured = _measured(test)
        self._measures = list(self.measured)
        self.loss_weights = _loss_weights(test, self._measures)

    @property
    def module(self) -> nn.Module:
        """The TRAIN net."""
        return self.train

    @property
    def name(self) -> str:
        """As the description says."""
        return self.train.spec.parameters.name or "net"

    def check(self) -> None:
        """Refuse a net that cannot be trained or judged.

        Raises:
            NetError: the TRAIN net has no loss or no weights, the TEST net has no scalar output, or one of them
                writes files or takes rows for steps in time.
        """
        self.check_training()
        self.check_measures()

    def check_training(self) -> None:
        """Refuse a net that cannot be trained.

        Raises:
            NetError: the TRAIN net has no loss or no weights.
        """
        where = self.train.spec.source
        if not any(weight for step in self.train.steps for weight in step.weights):
            raise NetError(
                f"{where}: no layer of phase TRAIN is a loss, so there is nothing to train: add one, "
                "SoftmaxWithLoss say, or give the file that Caffe trains with (train_val.prototxt)"
            )
        if not any(blob.lr_mult for blob in self.train.learnable):
            raise NetError(f"{where}: phase TRAIN has no blob with a lr_mult above 0; it must have at least one")
        _check_files(self.train)
        check_steps(self.train)

    def check_measures(self) -> None:
        """Refuse a TEST net that measures nothing.

        Raises:
            NetError: it has no scalar output, writes files, or takes rows for steps in time.
        """
        _check_files(self.test)
        check_steps(self.test)
        if not self._measures:
            outputs = ", ".join(f"{name} {self.test.shapes[name]}" for name in self.test.outputs) or "none"
            raise NetError(
                f"{self.test.spec.source}: no output of phase TEST is a single number (outputs: {outputs}), so "
                "there is nothing to measure: add a loss or an Accuracy layer to that phase"
            )

    def to(self, device: torch.device) -> Self:
        """Move both nets; they go on sharing their tensors."""
        # A move replaces what lies in a parameter and leaves the object, which is the other net's too: the second
        # net finds it there. Buffers become new objects, which the TEST net takes over before its next pass.
        for net in (self.train, self.test, *(judge.test for judge in self.judges.values())):
            net.to(device)
        return self

    def train_mode(self) -> None:
        """Phase TRAIN needs no more than torch's own mode."""
        self.train.train()

    def label_rules(self, *, testing: bool = False) -> Sequence[LabelRule]:
        """Of the layers of one of the nets."""
        return _rules_of(self.test, self.intakes[1]) if testing else _rules_of(self.train, self.intakes[0])

    @property
    def better(self) -> dict[str, Better]:
        """Lower of outputs that count in the loss, higher of others, as Accuracy."""
        return {name: "lower" if name in self.loss_weights else "higher" for name in self._measures}

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The TRAIN net's loss.

        Raises:
            NetError: the rows do not fit the net.
        """
        return self.train.loss(self._run(self.train, self.intakes[0], batch))

    @torch.no_grad()
    def measure(self, batch: Mapping[str, Tensor]) -> Sums:
        """The TEST net's measures, times the rows.

        Raises:
            NetError: the rows do not fit the net.
        """
        self.test.train(self._judged_as_trained)
        outputs = self._run(self.test, self.intakes[1], batch)
        rows = len(next(iter(batch.values())))
        # Means of a batch become sums of its rows: the last batch may be shorter, and weighs less then.
        return {name: tuple(value * rows for value in outputs[name].flatten().tolist()) for name in self._measures}

    def conclude(self, sums: Sums, rows: int) -> dict[str, float]:
        """The means over all rows; of an output with a number for each class `NAME.CLASS`."""
        return {
            name if count == 1 else f"{name}.{place}": value / rows
            for name, count in self.measured.items()
            for place, value in enumerate(sums[name])
        }

    @torch.no_grad()
    def scores(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What goes into the TEST net's last Softmax or SoftmaxWithLoss layer, else into its last Accuracy layer.

        Raises:
            NetError: the net has none of these layers, or what goes into it is not one score for every class.
        """
        self.test.eval()
        name, rows = _score_blob(self.test), len(batch[self.intakes[1].inputs[0]])
        scores = self._run(self.test, self.intakes[1], batch, blobs=[name])[name]
        if scores.dim() < 2 or len(scores) != rows or math.prod(scores.shape[2:]) != 1:
            raise NetError(
                f"{self.test.spec.source}: blob {name!r} has shape {tuple(scores.shape)} for {rows} rows; a "
                "prediction takes a score for every class, [rows, classes]"
            )
        return scores.flatten(1).float()

    def answer(self) -> Answer:
        """By the TEST net's last layer that judges scores, else by its last loss.

        Raises:
            NetError: it has none of these layers.
        """
        name, kind = _judged_blob(self.test)
        axis = 2 if kind == "classes" else 1
        return Answer(kind=kind, several=math.prod(self.test.shapes[name][axis:]) != 1)

    @property
    def blobs(self) -> list[str]:
        """The TEST net's blobs."""
        return list(self.test.shapes)

    @torch.no_grad()
    def infer(self, batch: Mapping[str, Tensor], blobs: Sequence[str] = (), *, output: bool = True) -> Tensors:
        """What is in the TEST net's blobs after a pass; the output is what goes into the layer of `answer`.

        Raises:
            NetError: there is no such layer, or a blob has not the rows in front.
        """
        self.test.eval()
        judged = [_judged_blob(self.test)[0]] if output else []
        made = self._run(self.test, self.intakes[1], batch, blobs=list(dict.fromkeys([*judged, *blobs])))
        found = {name: made[name] for name in blobs}
        if judged:
            found[""] = made[judged[0]]
        check_rows(found, len(batch[self.intakes[1].inputs[0]]), net=self.name)
        return found

    def _run(
        self, net: CaffeNet, intake: Intake, batch: Mapping[str, Tensor], *, blobs: Sequence[str] | None = None
    ) -> Mapping[str, Tensor]:
        given = intake.blobs(batch)
        if self._channels_last:
            given = {name: in_channels_last(values) for name, values in given.items()}
        # Caffe's recurrent layers go on where the batch before ended. Here the next batch is of other rows, and
        # what is measured must not depend on who measured what before.
        net.reset()
        return net(given, blobs)


def _check_files(net: CaffeNet) -> None:
    """Refuse layers that write files: each worker has its own rows and its own disk.

    Raises:
        NetError: it names the layer.
    """
    for step in net.steps:
        if step.layer.writes_files:
            raise NetError(
                f"{net.spec.source}: layer {step.name!r} ({step.description.type}) writes a file, and workers "
                "would write one each, with parts of the rows in no order: leave it out of this phase with exclude "
                "and run the net in one process to have the file (CaffeNet)"
            )


def _rules_of(net: CaffeNet, intake: Intake) -> list[LabelRule]:
    """What the layers of a net take that read a column as it is stored.

    A column is followed through layers that leave its numbers as they are. What others make of it, nobody judges.
    """
    spec = net.spec
    columns = {one.blob.name: one.column for one in intake.bound if one.column in intake.unchanged}
    places = [at for at, layer in enumerate(spec.parameters.layer) if layer.type not in INPUT_LAYERS]
    rules: list[LabelRule] = []
    for step, place in zip(net.steps, places, strict=True):
        read = [columns.get(bottom) for bottom in step.bottoms]
        rules += [
            LabelRule(column=column, reader=spec.place(place), legal=step.layer.legal[at])
            for at, column in enumerate(read)
            if column is not None and at in step.layer.legal
        ]
        for top in step.tops:
            # A layer in place: whoever reads the name later gets what this one made.
            columns.pop(top, None)
            if step.layer.keeps_numbers and read[0] is not None:
                columns[top] = read[0]
    return rules


def _transforms(train: Intake, test: Intake) -> InputTransforms:
    """By column what its data layer does to it in training and in a test."""
    said: dict[str, list[InputTransform | None]] = {}
    states: tuple[tuple[Intake, PhaseName], ...] = ((train, "TRAIN"), (test, "TEST"))
    for place, (intake, phase) in enumerate(states):
        for one in intake.bound:
            # The first top is what a layer transforms; its second is the label.
            if one.blob.place == 0 and (found := transform_of(one.blob, phase)) is not None:
                said.setdefault(one.column, [None, None])[place] = found
    return {column: (train, test) for column, (train, test) in said.items()}


def _measured(net: CaffeNet) -> dict[str, int]:
    """By output that measures a batch as a whole its numbers: scalars, and the accuracy of each class."""
    of_classes = [step.tops[1] for step in net.steps if step.description.type == "Accuracy" and len(step.tops) > 1]
    counts = {name: math.prod(net.shapes[name]) for name in net.outputs}
    return {name: count for name, count in counts.items() if count == 1 or name in of_classes}


def _score_blob(net: CaffeNet) -> str:
    """The blob that holds the scores; of several classifiers, as GoogLeNet has, the last one's.

    Raises:
        NetError: there is none, or a later layer writes over it.
    """
    for kinds in _SCORED:
        places = [at for at, step in enumerate(net.steps) if step.description.type in kinds]
        if not places:
            continue
        step = net.steps[places[-1]]
        name = step.bottoms[0]
        # Caffe's layers may work in place: what is left in the blob at the end is then no longer what was read.
        over = [later.name for later in net.steps[places[-1] :] if name in later.tops]
        if over:
            raise NetError(
                f"{net.spec.source}: layer {over[0]!r} writes over blob {name!r}, the scores that layer "
                f"{step.name!r} reads, so there is nothing to predict from: give that layer a top of its own"
            )
        return name
    listed = ", ".join(kind for kinds in _SCORED for kind in kinds)
    raise NetError(
        f"{net.spec.source}: phase {net.phase} has no layer that reads the score of every class ({listed}), so "
        "there is nothing to predict from: add one of these"
    )


def _judged_blob(net: CaffeNet) -> tuple[str, Kind]:
    """The blob that says what the net takes a row for, and how it says it.

    Raises:
        NetError: there is none, or a later layer writes over it.
    """
    kinds = {step.description.type: step for step in net.steps}
    if not any(kind in kinds for group in _SCORED for kind in group):
        for kind, said in _JUDGED.items():
            if kind in kinds:
                return kinds[kind].bottoms[0], said
    return _score_blob(net), "classes"


def _loss_weights(net: CaffeNet, names: Sequence[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for step in net.steps:
        for name, weight in zip(step.tops, step.weights, strict=True):
            weights[name] = weight  # a later layer of the same top stands for the blob
    return {name: weights[name] for name in names if weights.get(name)}
