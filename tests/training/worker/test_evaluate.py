"""Validation in parts: every row once, ties count against, and the sums are right."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from formats import make_table
from image_rows import image_rows
from sparknet.data.loading.row_random import row_draws
from sparknet.data.loading.transform import Normalise
from sparknet.training.coordination.post_commit import add_up
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.worker.evaluate import EVALUATION_BATCH, Cuts, Evaluation, Judged, evaluate_part

PLAIN = Normalise(mean=None, scale=1 / 255)


class Scores(nn.Module):
    """Gives every row the same scores; its parameter is not used."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.register_buffer("scores", torch.tensor(scores))
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return self.scores.expand(len(images), -1)


def objective(module, **options):
    return ModuleObjective(module, image_rows((2, 3)), name="net", **options)


def evaluate(module, table, part=0, parts=1, normalise=PLAIN, **options):
    judged = objective(module, **options)
    cuts = Cuts.of(judged, len(table))
    return evaluate_part(judged, table, {"image": normalise}, cuts=cuts, part=(part, parts))


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (7, 3), (100, 7), (257, 2), (1031, 5), (5, 5)])
def test_the_parts_together_cover_every_row_once(tmp_path, rows, parts):
    table, images, labels = make_table(tmp_path, [rows - rows // 3, rows // 3])
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 10))
    reports = [evaluate(module, table, part, parts) for part in range(parts)]
    with torch.no_grad():
        logits = module(torch.from_numpy(images).float() / 255).double()
    truth = torch.from_numpy(labels)
    order = logits.argsort(1, descending=True)
    assert [report.part for report in reports] == list(range(parts))
    assert sum(report.rows for report in reports) == rows
    assert max(r.rows for r in reports) - min(r.rows for r in reports) <= 1
    assert sum(report.sums["accuracy"][0] for report in reports) == int((order[:, 0] == truth).sum())
    assert sum(report.sums["top5"][0] for report in reports) == int((order[:, :5] == truth[:, None]).any(1).sum())
    loss = float(functional.cross_entropy(logits, truth, reduction="sum"))
    assert sum(report.sums["loss"][0] for report in reports) == pytest.approx(loss, rel=1e-5)


def one_row(tmp_path, label):
    table, _, labels = make_table(tmp_path, [1])
    seed = 0
    while labels[0] != label:
        seed += 1
        (tmp_path / str(seed)).mkdir()
        table, _, labels = make_table(tmp_path / str(seed), [1], seed=seed)
    return table


@pytest.mark.parametrize(
    ("scores", "correct", "top5"),
    [
        ((0, 0, 9, 0, 0, 0, 0), 1, 1),
        ((0, 0, 9, 9, 0, 0, 0), 0, 1),  # a tie for the first place
        ((5, 5, 5, 5, 5, 5, 5), 0, 0),
        ((8, 8, 7, 8, 8, 0, 0), 0, 1),  # fifth
        ((8, 8, 7, 8, 8, 7, 0), 0, 0),  # a tie for the fifth place
        ((8, 8, 7, 8, 8, 8, 0), 0, 0),
    ],
)
def test_ties_count_against_as_in_caffe(tmp_path, scores, correct, top5):
    report = evaluate(Scores(*map(float, scores)), one_row(tmp_path, 2))
    assert (report.sums["accuracy"], report.sums["top5"]) == ((correct,), (top5,))


@pytest.mark.parametrize("scores", [[math.nan] * 7, [math.nan, 0, 1, 0, 0, 0, 0], [0, 0, math.nan, 0, 0, 0, 0]])
def test_scores_that_are_no_numbers_are_never_right(tmp_path, scores):
    report = evaluate(Scores(*scores), one_row(tmp_path, 2))
    assert report.sums["accuracy"] == (0,)


def test_the_module_is_evaluated_in_evaluation_mode(tmp_path):
    table, _, _ = make_table(tmp_path, [40])
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 10))
    module.train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first, second = evaluate(module, table), evaluate(module, table)
    assert first == second
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_inputs_go_through_the_same_preprocessing(tmp_path):
    table, images, _ = make_table(tmp_path, [3])
    seen = []

    class Watch(Scores):
        def forward(self, images):
            seen.append(images.numpy().copy())
            return super().forward(images)

    normalise = Normalise(mean=np.full((2, 3), 100, np.float32), scale=0.5)
    evaluate(Watch(*[0.0] * 10), table, normalise=normalise)
    np.testing.assert_array_equal(np.concatenate(seen), (images.astype(np.float32) - 100) * 0.5)


class Keeps(Scores):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__(*[0.0] * 10)
        self.seen = []

    def forward(self, images):
        self.seen.append(images.numpy().copy())
        return super().forward(images)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_row_is_cut_alike_in_every_evaluation_and_by_whoever(tmp_path, parts):
    """As Caffe's TEST nets with `mirror: true` ask for."""
    table, images, _ = make_table(tmp_path, [7, 6], shape=(3, 6, 6))
    normalise = Normalise(mean=None, scale=1.0, crop=4, cut="random", mirror=True)
    keeps = Keeps()
    judged = objective(keeps)
    cuts = Cuts(rows=30, batch=4)  # more than there are: the table starts over
    for part in range(parts):
        evaluate_part(judged, table, {"image": normalise}, cuts=cuts, part=(part, parts))
    draws = row_draws(0, 0, np.arange(13), stream="evaluation")
    once = normalise(images, draws)
    np.testing.assert_array_equal(np.concatenate(keeps.seen), np.concatenate([once] * 3)[:30])
    training = normalise(images, row_draws(0, 0, np.arange(13)))
    assert not np.array_equal(once, training)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_there_is_a_part_for_every_worker_and_no_part_without_rows(workers):
    def count_parts(rows):
        return Cuts(rows=rows, batch=EVALUATION_BATCH).count_parts(workers)

    assert count_parts(3) == min(3, workers)
    assert count_parts(1) == 1
    assert count_parts(100 * 4 * EVALUATION_BATCH) == 100
    assert count_parts(100 * 4 * EVALUATION_BATCH + 1) == 101


def test_channels_last_gives_the_same(tmp_path):
    table, _, _ = make_table(tmp_path, [30], shape=(3, 8, 8))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    plain = evaluate(module, table)
    other = evaluate(module, table, channels_last=True)
    assert other.sums["accuracy"] == plain.sums["accuracy"]
    assert other.sums["loss"] == pytest.approx(plain.sums["loss"], rel=1e-5)


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_further_rows_are_measured_by_themselves(tmp_path, workers):
    """Each set's measures are those of its rows alone, whoever measures which part."""
    tables = {}
    for name, rows in (("", 30), ("b", 17)):
        directory = tmp_path / f"rows{name}"
        directory.mkdir()
        tables[name] = make_table(directory, [rows])[0]
    torch.manual_seed(0)
    modules = {name: nn.Sequential(nn.Flatten(), nn.Linear(6, 10)) for name in tables}
    chains = {name: {"image": PLAIN} for name in tables}
    batches = {"": 40, "b": 17}
    judged = [
        Judged(name=name, objective=objective(modules[name]), cuts=Cuts(rows=batches[name], batch=8))
        for name in tables
    ]
    evaluation = Evaluation(judged, workers)
    reports = [evaluation.measure(part, tables, chains) for part in range(evaluation.parts)]
    assert [report.part for report in reports] == list(range(evaluation.parts))
    rows = sum(report.rows for report in reports)
    assert rows == 40, "of the held-out rows alone"
    concluded = evaluation.conclude(add_up(report.sums for report in reports), rows)
    expected = {}
    for one in judged:
        whole = evaluate_part(one.objective, tables[one.name], {"image": PLAIN}, cuts=one.cuts, part=(0, 1))
        found = one.objective.conclude(whole.sums, whole.rows)
        expected |= {f"b/{name}" if one.name else name: value for name, value in found.items()}
    assert concluded == pytest.approx(expected, rel=1e-6)
    assert list(concluded)[:3] == ["accuracy", "top5", "loss"]
