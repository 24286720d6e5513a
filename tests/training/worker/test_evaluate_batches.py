"""Evaluations of a number of batches: over the rows and round again, whoever has which part."""

import numpy as np
import pytest
import torch
from torch import nn

from formats import make_table
from image_rows import image_rows
from sparknet.data.loading.transform import Normalise
from sparknet.training.coordination.messages import ChoreReport
from sparknet.training.coordination.post_commit import Chores, as_fields
from sparknet.training.worker.evaluate import Cuts, evaluate_part


class Watch:
    """An objective that keeps what it is given."""

    module = nn.Identity()
    name = "watch"
    learnable = ()

    def __init__(self, batch, unit):
        self.evaluation_batch, self.unit = batch, unit
        self.seen = []

    def loss(self, batch):
        raise AssertionError("nothing is trained here")

    def measure(self, batch):
        images, labels = batch["image"], batch["label"]
        self.seen.append(images.numpy().copy())
        return {"mean": (float(images.mean()) * len(labels),), "one": (float(len(labels)),)}


def evaluate(objective, table, parts, *, batches=None):
    cuts = Cuts.of(objective, len(table), batches=batches)
    normalise = Normalise(mean=None, scale=1.0)
    return [
        evaluate_part(objective, table, {"image": normalise}, cuts=cuts, part=(part, parts))
        for part in range(parts)
    ]


@pytest.mark.parametrize("parts", [1, 3, 5])
@pytest.mark.parametrize("batches", [2, 5, 11])
def test_so_many_batches_from_the_first_row_on_and_round_again(tmp_path, batches, parts):
    table, images, _ = make_table(tmp_path, [13, 8])
    watch = Watch(4, 4)
    reports = evaluate(watch, table, parts, batches=batches)
    assert {len(batch) for batch in watch.seen} == {4}
    wanted = np.arange(4 * batches) % 21
    np.testing.assert_array_equal(np.concatenate(watch.seen), images[wanted].astype(np.float32))
    assert sum(report.sums.get("one", (0,))[0] for report in reports) == 4 * batches


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_without_a_number_every_row_once(tmp_path, parts):
    table, images, _ = make_table(tmp_path, [13, 8])
    watch = Watch(4, 4)
    evaluate(watch, table, parts)
    np.testing.assert_array_equal(np.concatenate(watch.seen), images.astype(np.float32))
    assert [len(batch) for batch in watch.seen] == [4] * 5 + [1], "batches are whole but for the last row's"


def test_parts_are_whole_batches_of_the_net():
    cuts = Cuts(rows=100, batch=10, unit=10)
    assert cuts.count_parts(3) == 3
    assert cuts.count_parts(30) == 10
    assert all(start % 10 == 0 for part in range(3) for start, _ in cuts.batches(part, 3))


def test_means_are_weighted_by_rows_and_summed_in_the_order_of_the_parts():
    def total(order):
        chores = Chores(round=3, parts=3)
        reports = [
            ChoreReport(part=p, rows=p + 1, sums={"loss": (0.1 * (p + 1),), "x": (float(p),)}) for p in range(3)
        ]
        for part in order:
            assert chores.finish(reports[part], 1.0)
        return chores.evaluation

    one, other = total([0, 1, 2]), total([2, 0, 1])
    assert one == other
    assert one.rows == 6
    assert one.outputs == {"loss": pytest.approx(0.1), "x": 0.5}
    assert one.as_record()["outputs"] == {"x": 0.5}


def test_standard_measures_have_fields_of_their_own():
    assert as_fields({"loss": 1.0, "accuracy": 0.5, "loss1/top-5": 0.7}) == {
        "accuracy": 0.5,
        "loss": 1.0,
        "outputs": {"loss1/top-5": 0.7},
    }
    assert as_fields({"top5": 1.0}) == {"top5": 1.0}


def test_torch_is_not_asked_for_gradients(tmp_path):
    from sparknet.training.objectives.module_objective import ModuleObjective

    table, _, _ = make_table(tmp_path, [6])
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 10))
    seen = []
    module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    evaluate(ModuleObjective(module, image_rows((2, 3)), name="net"), table, 1)
    assert seen == [False]
