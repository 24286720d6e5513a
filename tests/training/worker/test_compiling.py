"""Compiling a net: the same numbers, nothing of it moved; and what cannot be compiled runs as it is."""

import functools

import torch
from torch import nn

from image_rows import as_batch, image_rows
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.worker import compiling
from sparknet.training.worker.compiling import compile_net
from sparknet.training.worker.precision import Precision

BATCH = as_batch(torch.rand(4, 3), torch.tensor([0, 1, 2, 1]))
FP32 = Precision("fp32", torch.device("cpu"))


def objective() -> ModuleObjective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    return ModuleObjective(net, image_rows((3,), dtype="float32", classes=3), name="net")


def test_a_compiled_net_computes_the_same_and_was_not_moved(monkeypatch):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling.torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled, still = objective(), objective()
    assert compile_net(compiled, BATCH, FP32) == ""
    for mine, theirs in zip(compiled.module.state_dict().items(), still.module.state_dict().items(), strict=True):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
    assert all(parameter.grad is None for parameter in compiled.module.parameters())
    count = len(seen)
    assert count
    assert torch.equal(compiled.loss(BATCH).detach(), still.loss(BATCH).detach())
    assert len(seen) == count, "the same batch is not compiled anew"


def test_what_cannot_be_compiled_says_so_and_runs(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr(compiling.torch, "compile", functools.partial(torch.compile, backend=broken))
    compiled, still = objective(), objective()
    reason = compile_net(compiled, BATCH, FP32)
    assert "no compiler here" in reason
    assert "\n" not in reason
    assert torch.equal(compiled.loss(BATCH).detach(), still.loss(BATCH).detach())


def test_an_evaluation_runs_as_it_is(monkeypatch):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling.torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled, still = objective(), objective()
    assert compile_net(compiled, BATCH, FP32) == ""
    count = len(seen)
    # Another number of rows, in evaluation mode: each would be compiled anew.
    rows = as_batch(torch.rand(3, 3), torch.tensor([0, 1, 2]))
    assert torch.equal(compiled.scores(rows), still.scores(rows))
    assert compiled.measure(rows) == still.measure(rows)
    assert len(seen) == count
    for one in (compiled, still):
        one.train_mode()
    assert torch.equal(compiled.loss(BATCH).detach(), still.loss(BATCH).detach())
    assert len(seen) == count


def test_a_compiled_pass_is_in_the_precision_of_the_steps(monkeypatch):
    seen = []

    def backend(graph, inputs):
        return lambda *given: seen.append(torch.is_autocast_enabled("cpu")) or graph.forward(*given)

    monkeypatch.setattr(compiling.torch, "compile", functools.partial(torch.compile, backend=backend))
    assert compile_net(objective(), BATCH, Precision("bf16", torch.device("cpu"))) == ""
    assert seen
    assert all(seen)
