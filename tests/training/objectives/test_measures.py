"""Measures: the defaults, any metric of torchmetrics, and the same figures however many workers share the rows."""

import math

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import classification, regression

from named_rows import Rows, classes, number, rows_of
from sparknet.config import Measure, Objective
from sparknet.errors import ConfigError, NetError
from sparknet.training.coordination.post_commit import Chores, add_up
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.worker.evaluate import Cuts, evaluate_part

COUNT = 1100
RANDOM = np.random.default_rng(0)
TABLE = Rows(
    x=RANDOM.normal(size=(COUNT, 4)).astype(np.float32),
    y=RANDOM.integers(0, 3, COUNT),
    value=RANDOM.normal(size=COUNT).astype(np.float32),
    w=RANDOM.uniform(0, 2, COUNT).astype(np.float32),
)
X = number("x", 4)
CLASS = rows_of([X], [classes("y", 3)])
REAL = rows_of([X], [number("value")])
BOTH = rows_of([X], [classes("y", 3), number("value")])


class Heads(nn.Module):
    """Three scores and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.number = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        return {"scores": self.scores(x), "number": self.number(x)}


class Token(nn.Module):
    """A score of 3 classes for each of 2 tokens."""

    def forward(self, x):
        return x.reshape(-1, 3, 2)


def first(outputs, targets):
    return outputs["scores"].square().mean() * targets["y"].float().mean()


def net(outputs: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(4, outputs)


def heads() -> nn.Module:
    torch.manual_seed(1)
    return Heads()


def objective_of(rows, module, *measures, **section) -> ModuleObjective:
    return ModuleObjective(module, rows, Objective(measures=measures, **section), name="net")


def concluded(objective, table=TABLE, *, parts=1):
    """What the driver makes of an evaluation in so many parts, which came in from the last to the first."""
    cuts = Cuts.of(objective, len(table))
    chores = Chores(parts=parts, conclude=objective.conclude)
    for part in reversed(range(parts)):
        assert chores.finish(evaluate_part(objective, table, {}, cuts=cuts, part=(part, parts)), 1.0)
    assert chores.evaluation is not None
    return chores.evaluation.outputs


def outputs_of(module, table=TABLE):
    with torch.no_grad():
        return module(torch.from_numpy(table.columns["x"]))


LABELS, VALUES, WEIGHTS = (torch.from_numpy(TABLE.columns[name]) for name in ("y", "value", "w"))

# The defaults -----------------------------------------------------------------------------------------------


def test_classes_are_measured_by_accuracy_top5_and_loss():
    module = net()
    found = concluded(objective_of(CLASS, module))
    scores = outputs_of(module)
    assert list(found) == ["accuracy", "loss"], "of three classes the right one is always among the best five"
    assert found["accuracy"] == float((scores.argmax(1) == LABELS).double().mean())
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(scores, LABELS)), rel=1e-6)


def test_of_more_than_five_classes_the_best_five_are_measured_too():
    module = net(6)
    found = concluded(objective_of(rows_of([X], [classes("y", 6)]), module))
    order = outputs_of(module).argsort(1, descending=True)[:, :5]
    assert list(found) == ["accuracy", "top5", "loss"]
    assert found["top5"] == float((order == LABELS[:, None]).any(1).double().mean())


def test_numbers_are_measured_by_loss_and_absolute_error():
    module = net(1)
    found = concluded(objective_of(REAL, module))
    errors = outputs_of(module)[:, 0] - VALUES
    assert found == {
        "loss": pytest.approx(float(errors.square().mean()), rel=1e-6),
        "mae": pytest.approx(float(errors.abs().mean()), rel=1e-6),
    }


def test_weights_of_rows_count_in_all_of_them():
    module = net()
    found = concluded(objective_of(rows_of([X], [classes("y", 3)], weight="w"), module), parts=3)
    scores, total = outputs_of(module), WEIGHTS.double().sum()
    hits = (scores.argmax(1) == LABELS).double()
    each = nn.functional.cross_entropy(scores, LABELS, reduction="none").double()
    assert found["accuracy"] == pytest.approx(float((hits * WEIGHTS).sum() / total), rel=1e-6)
    assert found["loss"] == pytest.approx(float((each * WEIGHTS).sum() / total), rel=1e-6)
    module = net(1)
    found = concluded(objective_of(rows_of([X], [number("value")], weight="w"), module))
    errors = (outputs_of(module)[:, 0] - VALUES).abs().double()
    assert found["mae"] == pytest.approx(float((errors * WEIGHTS).sum() / total), rel=1e-6)


def test_rows_that_all_weigh_nothing_have_no_figures():
    weightless = Rows(**{**TABLE.columns, "w": np.zeros(COUNT, np.float32)})
    found = concluded(objective_of(rows_of([X], [classes("y", 3)], weight="w"), net()), weightless)
    assert set(found) == {"accuracy", "loss"}
    assert all(math.isnan(value) for value in found.values())


def test_of_soft_labels_the_likeliest_class_counts():
    soft = np.eye(3, dtype=np.float32)[TABLE.columns["y"]] * 0.8 + 0.1
    rows = rows_of([X], [number("soft", 3)])
    module = net()
    found = concluded(objective_of(rows, module, loss="cross_entropy"), Rows(**TABLE.columns, soft=soft))
    assert found["accuracy"] == float((outputs_of(module).argmax(1) == LABELS).double().mean())


def test_labels_that_do_not_count_are_in_no_figure():
    # Of two tokens: both right, one of one right, one of two right, none that counts.
    scores = torch.zeros(4, 3, 2)
    scores[:, 1] = 1.0
    labels = torch.tensor([[1, 1], [1, -100], [1, 0], [-100, -100]])
    rows = rows_of([number("x", 6)], [classes("y", None, 2)])
    objective = objective_of(rows, Token())
    sums = objective.measure({"x": scores.reshape(4, 6), "y": labels})
    assert sums["accuracy"] == (2.5, 3.0)
    assert objective.conclude(sums, 4)["accuracy"] == 2.5 / 3
    # The same with a number of the user's for a row's only label.
    objective = objective_of(CLASS, nn.Identity(), loss_arguments={"ignore_index": 2})
    sums = objective.measure({"x": torch.eye(3)[[0, 1, 0]], "y": torch.tensor([0, 2, 1])})
    assert sums["accuracy"] == (1.0, 2.0)


def test_of_losses_that_nobody_knows_the_loss_alone_is_measured():
    assert list(concluded(objective_of(BOTH, heads(), loss=f"{__name__}:first"))) == ["loss"]
    rows = rows_of([X], [classes("y", 3)])
    assert list(concluded(objective_of(rows, net(), loss="multi_margin_loss"))) == ["loss"]


def test_scores_of_another_shape_are_told():
    with pytest.raises(NetError, match=r"returned \(12,\); it must return \[4, classes\]"):
        objective_of(CLASS, nn.Flatten(0)).measure({"x": torch.zeros(4, 3), "y": torch.zeros(4).long()})


# Shared rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 7])
@pytest.mark.parametrize(
    "measure",
    [
        "classification.MulticlassF1Score",
        "classification.MulticlassConfusionMatrix",
        Measure(name="auroc", metric="classification.MulticlassAUROC", arguments={"thresholds": 20}),
        Measure(name="each", metric="Accuracy", arguments={"average": "none"}),
    ],
)
def test_counts_are_the_same_to_the_last_bit_whoever_shares_them(measure, parts):
    objective = objective_of(CLASS, net(), measure)
    one, shared = concluded(objective), concluded(objective, parts=parts)
    # The loss is a sum of floats, which depends on where it is cut.
    assert shared.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-6)
    assert shared == one
    assert one


@pytest.mark.parametrize("parts", [1, 3])
def test_a_metric_is_the_one_of_all_rows(parts):
    module = net()
    names = ("classification.MulticlassF1Score", "classification.MulticlassCohenKappa")
    found = concluded(objective_of(CLASS, module, *names), parts=parts)
    scores = outputs_of(module)
    assert found["classification.MulticlassF1Score"] == float(
        classification.MulticlassF1Score(num_classes=3)(scores, LABELS)
    )
    assert found["classification.MulticlassCohenKappa"] == float(
        classification.MulticlassCohenKappa(num_classes=3)(scores, LABELS)
    )
    module = net(1)
    found = concluded(objective_of(REAL, module, "regression.R2Score", "MeanSquaredError"), parts=parts)
    numbers = outputs_of(module)[:, 0]
    assert found["regression.R2Score"] == pytest.approx(float(regression.R2Score()(numbers, VALUES)), abs=1e-5)
    assert found["MeanSquaredError"] == pytest.approx(float(regression.MeanSquaredError()(numbers, VALUES)))


def test_a_loss_of_batches_comes_from_the_same_batches():
    objective = objective_of(CLASS, net(), loss_arguments={"weight": [1.0, 1.0, 4.0]})
    assert concluded(objective, parts=3)["loss"] == pytest.approx(concluded(objective)["loss"], rel=1e-12)


# Metrics by name --------------------------------------------------------------------------------------------


def test_several_figures_have_numbers():
    module = net()
    measure = Measure(name="f1", metric="classification.MulticlassF1Score", arguments={"average": "none"})
    objective = objective_of(CLASS, module, measure)
    found = concluded(objective)
    expected = classification.MulticlassF1Score(num_classes=3, average="none")(outputs_of(module), LABELS)
    assert [found[f"f1.{at}"] for at in range(3)] == expected.double().tolist()
    assert objective.better["f1"] == "higher"


def test_task_and_number_of_classes_are_those_of_the_target():
    module = net()
    found = concluded(objective_of(CLASS, module, "F1Score"))
    expected = torchmetrics.F1Score(task="multiclass", num_classes=3)(outputs_of(module), LABELS)
    assert found["F1Score"] == float(expected)


def test_own_arguments_win():
    rows = rows_of([X], [classes("y", 2)])
    measure = Measure(name="hits", metric="Accuracy", arguments={"task": "binary", "threshold": 0.9})
    objective = objective_of(rows, net(1), measure, loss="binary_cross_entropy_with_logits")
    scores, labels = torch.tensor([[3.0], [1.0], [-1.0]]), torch.tensor([1, 1, 0])
    objective.module.weight.data.zero_()[0, 0] = 1.0
    objective.module.bias.data.zero_()
    inputs = torch.cat([scores, torch.zeros(3, 3)], 1)
    sums = objective.measure({"x": inputs, "y": labels})
    # A score of 1 is a probability of 0.73, which is below the threshold.
    assert objective.conclude(sums, 3)["hits"] == pytest.approx(2 / 3)


def test_a_measure_is_of_its_output_and_target():
    module = heads()
    measures = [
        Measure(name="kind", metric="Accuracy", arguments={"average": "micro"}, output="scores", target="y"),
        Measure(name="error", metric="MeanAbsoluteError", output="number", target="value"),
    ]
    objective = objective_of(BOTH, module, *measures, loss=f"{__name__}:first")
    found = concluded(objective, parts=3)
    outputs = outputs_of(module)
    assert found["kind"] == float((outputs["scores"].argmax(1) == LABELS).float().mean())
    assert found["error"] == pytest.approx(float((outputs["number"][:, 0] - VALUES).abs().mean()), rel=1e-6)
    assert [objective.better[name] for name in ("loss", "kind", "error")] == ["lower", "higher", "lower"]


def test_evaluations_do_not_leak_into_each_other():
    objective = objective_of(CLASS, net(), "classification.MulticlassF1Score")
    assert concluded(objective) == concluded(objective)
    batch = {"x": torch.from_numpy(TABLE.columns["x"]), "y": LABELS}
    assert objective.measure(batch) == objective.measure(batch)


def test_sums_of_parts_are_added_in_place():
    assert add_up([{"a": (1.0, 2.0)}, {"a": (10.0, 20.0), "b": (5.0,)}]) == {"a": (11.0, 22.0), "b": (5.0,)}
    with pytest.raises(ValueError, match="shorter"):
        add_up([{"a": (1.0, 2.0)}, {"a": (1.0,)}])


@pytest.mark.parametrize(
    ("rows", "measure", "message"),
    [
        (CLASS, "R2Scroe", r"has 'R2Scroe', which torchmetrics has not: did you mean R2Score\?"),
        (CLASS, "zzz.Thing", "'zzz.Thing', which torchmetrics has not: give a class of torchmetrics, as in"),
        (CLASS, "classification.MulticlassAUROC", r"keeps '.*', which is no sum .*give it thresholds \(a number"),
        (CLASS, "AUROC", "AUROC keeps .*give it thresholds"),
        (
            CLASS,
            Measure(name="a", metric="Accuracy", arguments={"multidim_average": "samplewise"}),
            "Accuracy keeps .*leave multidim_average at 'global'",
        ),
        (REAL, "SpearmanCorrCoef", "SpearmanCorrCoef keeps 'preds', which is no sum over the rows.*another one"),
        (REAL, "PearsonCorrCoef", "PearsonCorrCoef keeps 'mean_x', which is no sum"),
        (REAL, "MeanMetric", "'MeanMetric', which compares no outputs with targets by itself"),
        (REAL, "MaxMetric", "'MaxMetric', which compares no outputs with targets by itself"),
        (REAL, "MinMaxMetric", "'MinMaxMetric', which compares no outputs with targets by itself"),
        (REAL, "MetricCollection", "'MetricCollection', which compares no outputs with targets by itself"),
        (REAL, "Accuracy", r"Accuracy with \{\} cannot be made: TypeError: .*'task': correct its arguments"),
        (
            CLASS,
            Measure(name="f", metric="F1Score", arguments={"averag": "none"}),
            "F1Score with .*averag.*cannot be made.*correct its arguments",
        ),
        (CLASS, Measure(name="Accuracy", target="z"), "Accuracy is of target 'z', and the targets are y"),
    ],
)
def test_metrics_that_cannot_be_are_told_before_a_batch(rows, measure, message):
    with pytest.raises(ConfigError, match=message):
        objective_of(rows, net(), measure)


def test_what_a_metric_does_not_take_is_told():
    objective = objective_of(CLASS, net(), "classification.BinaryAccuracy")
    message = r"BinaryAccuracy does not take outputs \(4, 3\) of net net and targets y \(4,\).*take another metric"
    with pytest.raises(NetError, match=message):
        objective.measure({"x": torch.zeros(4, 4), "y": torch.zeros(4).long()})


def test_an_output_that_is_not_there_is_told():
    measure = Measure(name="Accuracy", output="digits")
    with pytest.raises(NetError, match="net net returned scores, number; there is no output 'digits'"):
        objective_of(CLASS, heads(), measure, loss=f"{__name__}:flat").measure(
            {"x": torch.zeros(4, 4), "y": torch.zeros(4).long()}
        )


def flat(outputs, targets):
    return outputs["scores"].mean()


@pytest.mark.parametrize("bias", [0.1, 0.4])
def test_small_scores_are_scores_in_every_batch(bias):
    """Torchmetrics takes a batch of numbers in 0..1 for probabilities, and of others for scores."""
    few = Rows(x=TABLE.columns["x"][:60], y=TABLE.columns["y"][:60], z=TABLE.columns["y"][:60] % 2)
    module, binary = net(), net(1)
    for one in (module, binary):
        one.weight.data.mul_(0.4)
        one.bias.data.fill_(bias)
    auroc = Measure(name="auroc", metric="classification.MulticlassAUROC", arguments={"thresholds": 50})
    objective = objective_of(CLASS, module, auroc)
    expected = classification.MulticlassAUROC(num_classes=3, thresholds=50)
    scores = outputs_of(module, few)
    assert concluded(objective, few, parts=60)["auroc"] == float(expected(scores.softmax(1), LABELS[:60]))
    rows = rows_of([X], [classes("z", 2)])
    hits = "classification.BinaryAccuracy"
    objective = objective_of(rows, binary, hits, loss="binary_cross_entropy_with_logits")
    right = (outputs_of(binary, few)[:, 0] > 0) == torch.from_numpy(few.columns["z"])
    for parts in (1, 20, 60):
        assert concluded(objective, few, parts=parts)[hits] == float(right.float().mean())


def test_outputs_of_unknown_meaning_come_in_the_same_batches():
    rows = rows_of([X], [classes("y", 3)])
    known = objective_of(rows, net(), "Accuracy")
    unknown = objective_of(rows, heads(), Measure(name="Accuracy", output="scores"), loss=f"{__name__}:first")
    assert (known.unit, unknown.unit) == (1, 256)
    numbers = objective_of(REAL, net(1), "regression.R2Score")
    assert numbers.unit == 1
    named = objective_of(rows, heads(), Measure(name="Accuracy", output="scores"))
    assert named.unit == 256
