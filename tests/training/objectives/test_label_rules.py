"""Labels held against the layers and losses that read them."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.layers import Legal
from sparknet.config import Net, Objective, Solver
from sparknet.data.rows.columns import Column
from sparknet.data.rows.extremes import Extremes, Seen
from sparknet.data.rows.row_schema import RowSchema
from sparknet.errors import DataError
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.label_rules import LabelRule, check_extremes
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.recipe import Recipe

HEAD = """
layer { name: "rows" type: "Input" top: "data" top: "label"
  input_param { shape { dim: 4 dim: 6 } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
"""
SOFTMAX = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "%s" top: "loss" %s }\n'
ACCURACY = (
    'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }\n'
)


def rows_of(label: Column) -> RowSchema:
    return RowSchema(inputs=(Column(name="data", dtype="float32", shape=(6,)),), targets=(label,))


WHOLE = rows_of(Column(name="label", dtype="int64", shape=()))


def rules_of(text: str, rows: RowSchema = WHOLE, *, testing: bool = False) -> Sequence[LabelRule]:
    spec = NetSpec.from_prototxt(HEAD + text)
    recipe = Recipe(net=Net(prototxt=spec.to_prototxt()), spec=spec, solver=Solver(batch_size=4))
    return build_objective(recipe, rows, batch_size=4, seed=0).label_rules(testing=testing)


def known(*values: float) -> dict[str, Extremes]:
    return {"label": Extremes.of(np.asarray(values), lambda row: f"row {row}")}


def rule(**more: object) -> LabelRule:
    legal = {"most": 2, "whole": True, "room": "num_output", "ignored_by": "ignore_label"} | more
    return LabelRule(column="label", reader="layer 'loss'", legal=Legal(**legal))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("values", "more", "message"),
    [
        ((1, 2, 3), {}, r"has 3 in row 2; it takes whole numbers from 0 to 2: .*numbered from 1.*num_output to 4"),
        ((0, 3), {}, r"has 3 in row 1; .*correct the rows, or set num_output to 4 at least; if 3 marks .*to 3$"),
        (
            (0, -1),
            {},
            r"has -1 in row 1; .*correct the rows; if -1 marks what does not count, set ignore_label to -1",
        ),
        ((0, 255), {"ignored": -1}, r"has 255 .* from 0 to 2, and -1, which does not count: correct the rows, or"),
        ((0, 2.5), {}, r"has 2\.5 in row 1; it takes whole numbers"),
        ((0, 7), {"room": "", "ignored_by": ""}, r"has 7 .* from 0 to 2: correct the rows$"),
    ],
)
def test_an_error_says_value_row_range_and_what_to_do(
    values: tuple[float, ...], more: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=r"layer 'loss': column label " + message):
        check_extremes([rule(**more)], known(*values))


def test_what_is_ignored_does_not_count() -> None:
    check_extremes([rule(ignored=-1)], known(0, 1, 2, -1))
    check_extremes([rule(ignored=255)], known(2, 255))
    check_extremes([rule()], {"other": Extremes(seen=(Seen(value=9, row="row 0"),))})


def test_a_softmax_takes_as_many_classes_as_it_has_scores() -> None:
    (found,) = rules_of(SOFTMAX % ("label", "loss_param { ignore_label: -1 }"))
    assert (found.column, found.legal.most, found.legal.ignored) == ("label", 2, -1)
    assert "layer 'loss' (SoftmaxWithLoss)" in found.reader
    both = rules_of(SOFTMAX % ("label", "") + ACCURACY, testing=True)
    assert [one.legal.ignored for one in both] == [None, None]
    assert len(rules_of(SOFTMAX % ("label", "") + ACCURACY)) == 1


@pytest.mark.parametrize(
    "loss",
    [
        'layer { name: "loss" type: "HingeLoss" bottom: "ip" bottom: "label" top: "loss" }',
        'layer { name: "s" type: "Softmax" bottom: "ip" top: "s" }'
        'layer { name: "loss" type: "MultinomialLogisticLoss" bottom: "s" bottom: "label" top: "loss" }',
    ],
)
def test_so_do_the_other_losses_of_classes(loss: str) -> None:
    (found,) = rules_of(loss)
    assert (found.legal.least, found.legal.most, found.legal.whole) == (0, 2, True)


def test_a_loss_of_numbers_takes_any() -> None:
    wide = rows_of(Column(name="label", dtype="float32", shape=(3,)))
    head = HEAD.replace("shape { dim: 4 } }", "shape { dim: 4 dim: 3 } }")
    for kind in ("EuclideanLoss", "SigmoidCrossEntropyLoss"):
        spec = NetSpec.from_prototxt(
            head + f'layer {{ name: "loss" type: "{kind}" bottom: "ip" bottom: "label" top: "loss" }}'
        )
        recipe = Recipe(net=Net(prototxt=spec.to_prototxt()), spec=spec, solver=Solver(batch_size=4))
        assert not build_objective(recipe, wide, batch_size=4, seed=0).label_rules()


def test_labels_are_followed_where_they_stay_what_they_are() -> None:
    same = """layer { name: "flat" type: "Reshape" bottom: "label" top: "flat"
      reshape_param { shape { dim: 4 dim: 1 } } }
    """
    (found,) = rules_of(same + SOFTMAX % ("flat", ""))
    assert found.column == "label"
    shifted = 'layer { name: "less" type: "Power" bottom: "label" top: "less" power_param { shift: -1 } }\n'
    assert not rules_of(shifted + SOFTMAX % ("less", ""))
    in_place = shifted.replace('top: "less"', 'top: "label"')
    assert not rules_of(in_place + SOFTMAX % ("label", ""))


class Looks(nn.Linear):
    """Of a shape that depends on values."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) if float(input.sum()) < 1e9 else input


def objective_of(module: nn.Module, **arguments: object) -> ModuleObjective:
    objective = Objective(loss="cross_entropy", loss_arguments=dict(arguments))
    return ModuleObjective(module, WHOLE, objective, name="net")


def test_a_loss_of_torchs_takes_as_many_classes_as_the_module_returns() -> None:
    (found,) = objective_of(nn.Linear(6, 5)).label_rules()
    assert (found.legal.most, found.legal.ignored) == (4, -100)
    (found,) = objective_of(nn.Linear(6, 5), ignore_index=-1).label_rules()
    assert found.legal.ignored == -1


def test_a_module_that_looks_at_values_is_not_judged() -> None:
    module = Looks(6, 5).train()
    assert not objective_of(module).label_rules()
    assert module.training
