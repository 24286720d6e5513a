"""A whole run of a solver, in Caffe's order (solver.cpp, Solve, Step and TestAll)."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.caffe.solver.batches import Feed, Inputs, as_tensors
from sparknet.caffe.solver.log_lines import SmoothedLoss, output_lines
from sparknet.caffe.solver.named_files import is_directory
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.errors import CheckpointError, ConfigError, DataError, TrainingDiverged

__all__ = ["Log", "Solver", "TestBatches", "solve"]

Log = Callable[[str], None]
TestBatches = Iterable[Inputs] | Sequence[Iterable[Inputs]]
"""Batches of the test nets: the same for each of them, or a list with one iterable for each."""


class Solver(Protocol):
    """What a whole run needs of a solver: `CaffeSolver`, which is built on this module."""

    settings: SolverSettings
    iteration: int
    outputs: dict[str, Tensor]
    """What the last pass of the training net gave."""
    last_rate: float

    @property
    def net(self) -> CaffeNet:
        """The training net."""
        ...

    @property
    def test_nets(self) -> list[CaffeNet]:
        """The test nets."""
        ...

    @property
    def is_built(self) -> bool:
        """Whether the nets are there."""
        ...

    @property
    def current_step(self) -> int:
        """Steps of the learning-rate policy that were passed."""
        ...

    def build_for(self, batch: Inputs) -> None:
        """Build the nets, if they are not."""
        ...

    def step(self, batches: Iterable[Inputs]) -> list[float]:
        """Train for as many iterations as the batches last."""
        ...

    def snapshot(self) -> tuple[Path, Path]:
        """Write weights and state."""
        ...

    def snapshot_name(self, ending: str) -> str:
        """The name of a snapshot's file."""
        ...


def solve(solver: Solver, batches: Iterable[Inputs], test_batches: TestBatches | None, log: Log) -> None:
    """Train to max_iter, test, display and snapshot on the way; see `CaffeSolver.solve`."""
    settings = solver.settings
    if settings.max_iter is None:
        raise ConfigError("max_iter is missing; a whole run ends there: set max_iter")
    _check_prefix(solver)
    feed = Feed(batches, "training")
    if solver.iteration < settings.max_iter or not solver.is_built:
        solver.build_for(feed.peek())
    run = _Run(solver, feed, _test_feeds(solver.test_nets, test_batches), log)
    log(f"Solving {solver.net.spec.parameters.name}")
    log(f"Learning Rate Policy: {settings.policy.lr_policy}")
    if test_batches is None and any(net.inputs for net in solver.test_nets):
        log("No batches for tests were given: the test nets that need them are not run")
    while solver.iteration < settings.max_iter:
        run.iterate()
    run.finish()
    log("Optimization Done.")


class _Run:
    def __init__(self, solver: Solver, feed: Feed, tests: Sequence[Feed | None], log: Log) -> None:
        self._solver = solver
        self._feed = feed
        self._tests = tests
        self._log = log
        self._smoothed = SmoothedLoss(solver.settings.average_loss)

    def iterate(self) -> None:
        """One iteration, the test before it and the snapshot after it."""
        solver, settings = self._solver, self._solver.settings
        iteration, steps_before = solver.iteration, solver.current_step
        if iteration > 0 or settings.test_initialization:
            self._test_if_due()
        loss = solver.step([self._feed.next() for _ in range(settings.rule.iter_size)])[0]
        smoothed = self._smoothed.add(loss)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the training loss of iteration {iteration} is {loss}; it must be finite: lower base_lr (the rate "
                f"is {solver.last_rate:g}), set clip_gradients, or look for bad values in the data"
            )
        displayed = settings.display > 0 and iteration % settings.display == 0
        if displayed:
            self._log(f"Iteration {iteration}, loss = {smoothed:g}")
            self._tell(output_lines("Train", solver.net, solver.outputs))
        if settings.policy.lr_policy == "multistep" and solver.current_step != steps_before:
            self._log(f"MultiStep Status: Iteration {iteration}, step = {solver.current_step}")
        if displayed:
            self._log(f"Iteration {iteration}, lr = {solver.last_rate:g}")
        if settings.snapshot and solver.iteration % settings.snapshot == 0:
            self._snapshot()

    def finish(self) -> None:
        """The last snapshot, and the loss and the scores of the trained net."""
        solver, settings = self._solver, self._solver.settings
        if settings.snapshot_after_train and (not settings.snapshot or solver.iteration % settings.snapshot):
            self._snapshot()
        if settings.display and solver.iteration % settings.display == 0:
            self._display_last_loss()
        self._test_if_due()

    def _display_last_loss(self) -> None:
        """As Caffe, by one more training pass; not where the batches have come to an end."""
        net = self._solver.net
        try:
            batch = self._feed.next()
        except DataError:
            return
        with torch.no_grad():
            loss = float(net.loss(net(as_tensors(batch))))
        self._log(f"Iteration {self._solver.iteration}, loss = {self._smoothed.add(loss):g}")

    def _test_if_due(self) -> None:
        solver, settings = self._solver, self._solver.settings
        if not settings.test_interval or solver.iteration % settings.test_interval:
            return
        for place, (net, feed) in enumerate(zip(solver.test_nets, self._tests, strict=True)):
            if feed is not None:
                self._test(place, net, feed)

    def _test(self, place: int, net: CaffeNet, feed: Feed) -> None:
        settings = self._solver.settings
        self._log(f"Iteration {self._solver.iteration}, Testing net (#{place})")
        count = settings.test_iter[place]
        if not count:
            return
        scores, loss = _mean_outputs(net, feed, count)
        if settings.test_compute_loss:
            self._log(f"Test loss: {loss:g}")
        self._tell(output_lines("Test", net, scores))

    def _snapshot(self) -> None:
        model, state = self._solver.snapshot()
        form = "HDF5" if self._solver.settings.snapshot_format == "HDF5" else "binary proto"
        self._log(f"Snapshotting to {form} file {model}")
        self._log(f"Snapshotting solver state to {form} file {state}")

    def _tell(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._log(line)


def _mean_outputs(net: CaffeNet, feed: Feed, count: int) -> tuple[Mapping[str, Tensor], float]:
    """The means of the net's outputs and of its loss over so many batches."""
    sums: dict[str, Tensor] = {}
    loss = 0.0
    with torch.no_grad():
        for _ in range(count):
            outputs = net(as_tensors(feed.next()))
            for name in net.outputs:
                value = outputs[name].float()
                sums[name] = sums[name] + value if name in sums else value
            if any(any(step.weights) for step in net.steps):
                loss += float(net.loss(outputs))
    return {name: value / count for name, value in sums.items()}, loss / count


def _test_feeds(nets: Sequence[CaffeNet], given: TestBatches | None) -> list[Feed | None]:
    """Where each test net's batches come from; None for a net that needs some and has none."""
    if given is None:
        return [None if net.inputs else Feed([{}], "test") for net in nets]
    if isinstance(given, Sequence) and given and not isinstance(given[0], Mapping):
        sources = cast("Sequence[Iterable[Inputs]]", given)
        if len(sources) != len(nets):
            raise ConfigError(
                f"test_batches has {len(sources)} entries for {len(nets)} test nets; give one for each"
            )
        return [Feed(source, "test") for source in sources]
    common = cast("Iterable[Inputs]", given)
    return [Feed(common, "test") for _ in nets]


def _check_prefix(solver: Solver) -> None:
    """A run that could not write its snapshot is to fail before it trains."""
    settings = solver.settings
    if not settings.snapshot and not settings.snapshot_after_train:
        return
    directory = Path(solver.snapshot_name(".caffemodel")).parent
    if not is_directory(directory):
        raise CheckpointError(
            f"snapshot_prefix is {settings.snapshot_prefix!r}; its directory {directory} does not exist: create "
            "it, or change snapshot_prefix"
        )
