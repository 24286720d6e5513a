"""What a worker is made of, from a frozen plan that travels to it: data, net, connections, and a device.

Nothing here needs Spark: a process that is given the plan is a worker as well.
"""

import contextlib
import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sparknet.config import RunConfig
from sparknet.data.loading.loader import Loader
from sparknet.data.loading.sampling_order import Cursor
from sparknet.data.shards.prepared import PreparedData, RowTable
from sparknet.errors import ClusterError
from sparknet.spark.devices.binding import Bound, bound_device
from sparknet.spark.running.dealing import Dealt
from sparknet.spark.running.driver_client import DriverAddress, DriverClient
from sparknet.training.coordination.messages import ChoreReport, Failed, Heartbeat, Pulse, Register
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.given_code import Code
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.objectives.preprocessing import Preprocessing
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.objectives.seeding import take_place
from sparknet.training.sync.gloo_groups import Groups
from sparknet.training.worker.cause import cause_of
from sparknet.training.worker.device_feed import DeviceFeed
from sparknet.training.worker.evaluate import Evaluation
from sparknet.training.worker.heartbeat import Heartbeats
from sparknet.training.worker.replica import Replica
from sparknet.training.worker.worker import Surroundings, Worker

__all__ = ["WorkerPlan", "give_back_memory", "keep_freed_memory", "train_as"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlan:
    """Everything a worker must know; it travels with the task."""

    config: RunConfig
    driver: DriverAddress
    data: PreparedData
    """The rows, and how they are reached."""
    iterations: int
    """Of the whole run, also when it resumes: a learning rate that falls to its end must know that end."""
    preprocessing: Preprocessing
    """What rows go through on their way to the net."""
    code: Code = field(default_factory=dict[str, Callable[..., Any]])
    """What a program gave for names of the configuration."""


def train_as(plan: WorkerPlan, who: Register, *, bound: Bound | None = None) -> None:
    """Be the worker `who`.

    An error that a retry cannot help ends the run through the driver and this task quietly; any other error is
    told to the driver and raised, so that it stands in the executor's log too.

    Args:
        plan: what the run is.
        who: which worker this is.
        bound: what it trains on; not given: what `cluster.device` and `cluster.leases` say.
    """
    timeout = plan.config.cluster.heartbeat_timeout_seconds
    with contextlib.ExitStack() as held:
        # Spark uses this process again: connections, and threads that decode, must not pile up in it.
        # Two connections: a heartbeat must not queue behind a checkpoint.
        client, beat_client = (
            held.enter_context(
                contextlib.closing(DriverClient(plan.driver, patience_seconds=2 * timeout, beat_seconds=timeout))
            )
            for _ in range(2)
        )
        _train_with(plan, who, bound, client=client, beat_client=beat_client, held=held)


def _train_with(
    plan: WorkerPlan,
    who: Register,
    bound: Bound | None,
    *,
    client: DriverClient,
    beat_client: DriverClient,
    held: contextlib.ExitStack,
) -> None:
    cluster = plan.config.cluster
    # By the interface that leads to the driver: gloo would take the address of the host's name, which on many
    # machines is a loopback one.
    groups = Groups(client, host=plan.driver.local_host(), timeout_seconds=cluster.exchange_seconds)
    worker: Worker | None = None

    # First of all: torch must not look for devices before it is told which one is this worker's.
    bound = bound or held.enter_context(
        bound_device(cluster, host=who.host, holder=f"{plan.config.run.name} worker {who.slot} pid {who.pid}")
    )

    def beat() -> Pulse:
        # Read without a lock from another thread: a count that is one behind is told at the next beat.
        # Who waits for a large shard over a slow line does not hang.
        progress = worker.progress + sum(table.arrived for table in means.tables) if worker is not None else 0
        return beat_client.tell(Heartbeat(slot=who.slot, attempt=who.attempt, progress=progress))

    beats = Heartbeats(beat, groups.abort, cluster.heartbeat_timeout_seconds, device_valid=bound.valid)
    who = replace(who, device=bound.shown)
    means: _Means
    try:
        means = _Means(client=client, groups=groups, beats=beats, device=bound.device, held=held)
        worker = _prepare(plan, who, means)
        # Only now: the driver watches who has registered, and that is the worker's first word.
        with beats:
            worker.run()
    except Exception as error:
        phase = worker.phase if worker is not None else "opening the data and building the net"
        cause = cause_of(error)
        lost = ClusterError(f"worker {who.slot} lost the driver while {phase}: {cause.text}")
        # Nobody is there to be told.
        if beats.driver_lost:
            raise lost from error
        failed = Failed(
            slot=who.slot,
            attempt=who.attempt,
            host=who.host,
            phase=phase,
            cause=cause.text,
            fatal=cause.fatal,
            place=cause.place,
            trace=cause.trace,
        )
        try:
            beat_client.tell(failed)
        except ClusterError as untold:
            # A call to the driver fails before its silence has lasted long enough for the heartbeat to give it up.
            if isinstance(error, ClusterError):
                raise lost from error
            # The driver does not know why: at least the task's own log must say it, and not that nobody listened.
            error.add_note(str(untold))
            raise error from None
        # A fatal one ends quietly: the run's own error says all there is to say.
        if not cause.fatal:
            raise


def keep_freed_memory() -> None:
    """Let this process keep what a training step frees, for the next step; call it before threads are started.

    glibc's malloc otherwise may hand a step's activations back to the kernel and fault them in again, page by page,
    at the next: up to a fourth of the time of a small net. The price is that a worker's memory stays at its peak.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library: it has rules of its own
        malloc = ctypes.CDLL(None)
        malloc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        malloc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD: nor take tensors of less than 1 GiB from outside it
        malloc.mallopt(-8, 1)  # M_ARENA_MAX: the loader's threads use that heap too, and not ones of their own


def give_back_memory() -> None:
    """Give back now what was freed, once: the net's own weights, whose values have moved into one vector."""
    with contextlib.suppress(OSError, AttributeError):  # another C library keeps nothing back
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class _Means:
    """What a worker is given to work with."""

    client: DriverClient
    groups: Groups
    beats: Heartbeats
    device: torch.device
    held: contextlib.ExitStack
    """Is given what must be closed at the worker's end."""
    tables: list[RowTable] = field(default_factory=list[RowTable])
    """Is given what rows are read from."""


def _prepare(plan: WorkerPlan, who: Register, means: _Means) -> Worker:
    """The worker with all that it needs."""
    config = plan.config
    # Spark starts Python workers with OMP_NUM_THREADS set to the cores of a task, which is 1 by default.
    torch.set_num_threads(config.cluster.threads_per_worker)
    keep_freed_memory()
    threads = config.data.threads
    preprocessing = plan.preprocessing
    dealt = Dealt.of(plan.data, config, slot=who.slot, cuts=preprocessing.train)
    train = means.held.enter_context(dealt.table)
    recipe = Recipe.read(config.net, config.solver, objective=config.objective, code=plan.code)
    # Before the net is built, whose Python layers may ask for it.
    take_place(who.slot, workers=config.run.workers)
    # Spark uses this process again.
    means.held.callback(take_place, 0, workers=1)
    # The same seed in every slot: replicas begin with equal weights, and none need be sent.
    objective = build_objective(
        recipe, plan.data.rows, batch_size=config.solver.batch_size, seed=config.run.seed, data=config.data
    )
    # Before the optimiser is built: it keeps the tensors that it finds.
    objective.to(means.device)
    evaluation = Evaluation.of(objective, plan.data, config)
    held_out = plan.data.validation_table(threads=threads, cuts=preprocessing.test)
    tables = {"": means.held.enter_context(held_out)}
    for name, rows in plan.data.tests.items():
        tables[name] = means.held.enter_context(rows.table(threads=threads, cuts=preprocessing.evaluated[name]))
    means.tables.extend([train, *tables.values()])
    feed = DeviceFeed.of(objective, plan.preprocessing.train)
    solver = build_inner_solver(recipe, objective, total_iterations=plan.iterations)
    replica = Replica(objective, solver, config, slot=who.slot, feed=feed)

    def open_loader(cursor: Cursor) -> Loader:
        return Loader(
            train,
            dealt.order,
            batch_size=config.solver.batch_size,
            cursor=cursor.among(dealt.rows),
            preprocess=feed.for_loaders,
            threads=threads,
        )

    def initial_weights() -> Mapping[str, torch.Tensor]:
        # Once more from the seed, which costs seconds where it is needed, and no memory where it is not.
        again = build_objective(
            recipe, plan.data.rows, batch_size=config.solver.batch_size, seed=config.run.seed, data=config.data
        )
        return again.module.state_dict()

    def evaluate(part: int) -> ChoreReport:
        try:
            return evaluation.measure(part, tables, plan.preprocessing.evaluated)
        finally:
            for table in tables.values():
                table.expect(())  # where they are copies, their room is for the shards of the training

    if config.net.compile:
        with open_loader(Cursor()) as loader:
            reason = replica.compile(loader)
        if reason:
            who = replace(who, note=f"net.compile: it runs as it is, since torch.compile failed: {reason}")
    around = Surroundings(
        driver=means.client,
        groups=means.groups,
        open_loader=open_loader,
        initial_weights=initial_weights,
        evaluate=evaluate,
        ended=means.beats.ended,
        broken=lambda: means.beats.broken,
    )
    worker = Worker(who, config, replica=replica, around=around)
    give_back_memory()
    return worker
