"""Local steps: the same as a hand-written loop, repeatable, and clear about what goes wrong."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from image_rows import image_rows
from sparknet.config import Data, Net, Run, RunConfig, Solver, Sync
from sparknet.data.loading.loader import Batch
from sparknet.data.loading.sampling_order import Cursor
from sparknet.errors import NetError, TrainingDiverged
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.worker.replica import Replica

CONFIG = RunConfig(
    data=Data(source="digits", validation_fraction=0.2),
    net=Net(name="my_nets:small"),
    run=Run(rounds=10),
    solver=Solver(learning_rate=0.1, momentum=0.9),
    sync=Sync(local_steps=4),
)
GOES_ON = threading.Event()


def batches(rows=6, *, seed=0, shape=(3,)):
    """Random batches without end, as a loader gives them."""
    random, number = np.random.default_rng(seed), 0
    while True:
        number += 1
        images = random.standard_normal((rows, *shape)).astype(np.float32)
        cursor = Cursor(epoch=0, position=rows * number)
        yield Batch(columns={"image": images, "label": random.integers(0, 4, rows)}, cursor=cursor)


def net(*, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4))


def replica(module, config=CONFIG, *, slot=0):
    objective = ModuleObjective(
        module, image_rows(classes=4), name=config.net.name, channels_last=config.net.channels_last
    )
    recipe = Recipe(net=config.net, solver=config.solver)
    solver = build_inner_solver(recipe, objective, total_iterations=10 * config.sync.local_steps)
    return Replica(objective, solver, config, slot=slot)


def weights(module):
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def of_round(round):
    return range(4 * round, 4 * round + 4)


def test_they_are_the_steps_of_a_hand_written_loop():
    module, reference = net(), net()
    report = replica(module).take_steps(batches(), 4, round=2, iterations=of_round(2), ended=GOES_ON)
    optimiser = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    losses, source = [], batches()
    for _ in range(4):
        batch = next(source)
        loss = functional.cross_entropy(
            reference(torch.from_numpy(batch.columns["image"])), torch.from_numpy(batch.columns["label"])
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert torch.equal(weights(module), weights(reference))
    assert (report.steps, report.samples, report.cursor) == (4, 24, Cursor(epoch=0, position=24))
    assert report.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert report.seconds > 0


def test_the_rate_follows_the_rounds_iterations_whatever_the_pace():
    config = replace(CONFIG, solver=Solver(learning_rate=1e-3, policy="step", gamma=0.5, step_size=4))
    for steps in (1, 4, 9):
        report = replica(net(), config).take_steps(batches(), steps, round=2, iterations=of_round(2), ended=GOES_ON)
        assert report.learning_rate == 1e-3 * 0.25
    cosine = replace(CONFIG, solver=Solver(learning_rate=1.0, policy="cosine"))
    report = replica(net(), cosine).take_steps(batches(), 2, round=5, iterations=of_round(5), ended=GOES_ON)
    # the second of two steps in round 5 of 10: iteration (5 + 1/2) * 4 of 40
    assert report.learning_rate == pytest.approx((1 + np.cos(np.pi * 0.55)) / 2)


def test_dropout_repeats_for_a_slot_and_round_and_differs_between_them():
    def after(slot, round, *, drawn_before=0):
        module = net(dropout=0.5)
        torch.rand(drawn_before)
        replica(module, slot=slot).take_steps(batches(), 3, round=round, iterations=of_round(round), ended=GOES_ON)
        return weights(module)

    assert torch.equal(after(0, 1), after(0, 1, drawn_before=17))
    assert not torch.equal(after(0, 1), after(0, 2))
    assert not torch.equal(after(0, 1), after(1, 1))


def test_it_trains_in_training_mode_even_after_an_evaluation():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4))
    module.eval()
    replica(module).take_steps(batches(), 1, round=0, iterations=of_round(0), ended=GOES_ON)
    assert module[0].num_batches_tracked.item() == 1


def test_it_stops_between_two_steps_when_the_run_has_ended():
    ended, served = threading.Event(), []

    def watched():
        for batch in batches():
            served.append(batch)
            if len(served) == 2:
                ended.set()
            yield batch

    assert replica(net()).take_steps(watched(), 50, round=0, iterations=of_round(0), ended=ended) is None
    assert len(served) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_round_rate_and_remedy(bad):
    def poisoned():
        for batch in batches():
            batch.columns["image"][0, 0] = bad
            yield batch

    with pytest.raises(TrainingDiverged, match=r"loss of round 3 is nan.*lower solver\.learning_rate \(now 0\.1\)"):
        replica(net()).take_steps(poisoned(), 4, round=2, iterations=of_round(2), ended=GOES_ON)


def test_steps_that_diverge_are_noticed():
    config = replace(CONFIG, solver=Solver(learning_rate=1e30))
    with pytest.raises(TrainingDiverged, match=r"now 1e\+30"):
        replica(net(), config).take_steps(batches(), 10, round=0, iterations=of_round(0), ended=GOES_ON)


def test_accumulated_batches_are_one_large_one():
    parts, whole = net(), net()
    solver = Solver(learning_rate=0.1, accumulate=3, clip_norm=0.2)
    report = replica(parts, replace(CONFIG, solver=solver)).take_steps(
        batches(), 2, round=0, iterations=of_round(0), ended=GOES_ON
    )
    assert (report.steps, report.samples, report.cursor) == (2, 36, Cursor(epoch=0, position=36))

    def joined():
        source = batches()
        while True:
            three = [next(source) for _ in range(3)]
            columns = {key: np.concatenate([one.columns[key] for one in three]) for key in ("image", "label")}
            yield Batch(columns=columns, cursor=three[-1].cursor)

    alone = replace(CONFIG, solver=replace(solver, accumulate=1))
    other = replica(whole, alone).take_steps(joined(), 2, round=0, iterations=of_round(0), ended=GOES_ON)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-6)
    assert report.loss == pytest.approx(other.loss, rel=1e-5)
    assert (weights(parts) - weights(net())).abs().max() > 1e-3


def test_bf16_trains_float32_weights():
    module, reference = net(), net()
    config = replace(CONFIG, solver=Solver(learning_rate=0.1, precision="bf16"))
    report = replica(module, config).take_steps(batches(), 4, round=0, iterations=of_round(0), ended=GOES_ON)
    other = replica(reference).take_steps(batches(), 4, round=0, iterations=of_round(0), ended=GOES_ON)
    assert weights(module).dtype == torch.float32
    assert not torch.equal(weights(module), weights(reference))
    torch.testing.assert_close(weights(module), weights(reference), rtol=0, atol=0.02)
    assert report.loss == pytest.approx(other.loss, rel=0.02)


def with_bad_batches(*numbers):
    for number, batch in enumerate(batches()):
        if number in numbers:
            batch.columns["image"][0, 0] = np.inf
        yield batch


FP16 = replace(CONFIG, solver=Solver(learning_rate=0.1, precision="fp16"))


def test_under_fp16_a_batch_that_overflows_costs_its_step_alone():
    module, clean = net(), net()
    report = replica(module, FP16).take_steps(
        with_bad_batches(1), 2, round=0, iterations=of_round(0), ended=GOES_ON
    )
    other = replica(clean, FP16).take_steps(batches(), 1, round=0, iterations=of_round(0), ended=GOES_ON)
    assert torch.equal(weights(module), weights(clean))
    # It was tried, and counts: whoever trains with it has taken as many.
    assert (report.steps, report.samples) == (2, 12)
    assert report.loss == pytest.approx(other.loss, rel=1e-6)


def test_under_fp16_a_round_of_nothing_else_names_bf16_too():
    message = r"loss of round 1 is nan.*solver\.learning_rate \(now 0\.1\), set solver\.precision to 'bf16' or look"
    with pytest.raises(TrainingDiverged, match=message):
        replica(net(), FP16).take_steps(with_bad_batches(0, 1), 2, round=0, iterations=of_round(0), ended=GOES_ON)


def test_gradients_that_always_overflow_in_fp16_end_the_run():
    class Steep(nn.Module):
        """A finite loss whose slope is not, whatever it is scaled by."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def forward(self, images):
            return images[:, :1] + self.weight.sqrt()

    module = Steep()
    goes_on = replica(module, FP16)
    # From 2^16 to 2^-24: a loss that may still be scaled down is no reason to end.
    goes_on.take_steps(batches(), 40, round=0, iterations=of_round(0), ended=GOES_ON)
    message = (
        r"round 2 cannot be trained: the gradients overflow in fp16 at a loss scale of 2\.98023e-08; .* 'bf16'"
    )
    with pytest.raises(TrainingDiverged, match=message):
        goes_on.take_steps(batches(), 1, round=1, iterations=of_round(1), ended=GOES_ON)
    assert not module.weight.any()


class Answers(nn.Module):
    """Returns what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answer = answer

    def forward(self, images):
        return self.answer(images, self.weight)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda images, w: images[:, 0] + w, r"\(6,\)"),
        (lambda images, w: (images + w)[:2], r"\(2, 3\)"),
        (lambda images, w: (images + w)[:, :, None], r"\(6, 3, 1\)"),
        (lambda images, w: {"features": None}, "features"),
        (lambda images, w: None, "NoneType"),
    ],
)
def test_a_net_that_returns_no_logits_is_named(answer, found):
    message = rf"net my_nets:small returned {found}; it must return (\[6, classes\]|a tensor)"
    with pytest.raises(NetError, match=message):
        replica(Answers(answer)).take_steps(batches(), 1, round=0, iterations=of_round(0), ended=GOES_ON)


def test_a_label_that_has_no_logit_is_a_net_error():
    def labelled():
        for batch in batches():
            batch.columns["label"][:] = [0, 1, 2, 3, 0, 1]
            yield batch

    message = r"net my_nets:small returned \(6, 3\) and a label is 3; it must return a score for every class"
    with pytest.raises(NetError, match=message):
        replica(nn.Linear(3, 3)).take_steps(labelled(), 1, round=0, iterations=of_round(0), ended=GOES_ON)


def test_images_reach_the_net_channels_last_when_told_so():
    seen = []

    def answer(images, w):
        seen.append(images.is_contiguous(memory_format=torch.channels_last))
        return images.mean((2, 3)) + w

    config = replace(CONFIG, net=Net(name="x", channels_last=True))
    source = batches(shape=(4, 5, 6))
    replica(Answers(answer), config).take_steps(source, 2, round=0, iterations=of_round(0), ended=GOES_ON)
    replica(Answers(answer)).take_steps(source, 1, round=0, iterations=of_round(0), ended=GOES_ON)
    assert seen == [True, True, False]
