"""A run from the driver's side: prepare the data, place the workers, watch them, keep what they made."""

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from pyspark.sql import SparkSession

from sparknet.config import Run, RunConfig, encode
from sparknet.data.loading.sampling_order import Cursor
from sparknet.data.shards.prepared import PreparedData
from sparknet.data.sources.opening import OpenedSources
from sparknet.errors import CheckpointError, ClusterError, ConfigError, RunDirError, WorkerError
from sparknet.spark.devices.preflight import check_devices
from sparknet.spark.jobs.addresses import find_driver_host
from sparknet.spark.jobs.ports import DriverHost, read_tls
from sparknet.spark.jobs.session import session_for
from sparknet.spark.preparing.prepare import Frames, prepare_run
from sparknet.spark.preparing.store import Store, open_store
from sparknet.spark.running.driver_client import DriverAddress
from sparknet.spark.running.driver_service import DriverService
from sparknet.spark.running.side_jobs import DONE, SideJobs
from sparknet.spark.running.supervision import Supervision
from sparknet.spark.running.worker_job import run_slot
from sparknet.spark.running.worker_jobs import WorkerJobs
from sparknet.spark.running.worker_task import WorkerPlan
from sparknet.training.caffe_runs.open_run import RunStart, open_run
from sparknet.training.coordination.best_round import Aim
from sparknet.training.coordination.coordinator import Coordinator
from sparknet.training.coordination.post_commit import as_fields
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.coordination.rules import Rules, RunProgress
from sparknet.training.objectives.build_objective import check_net
from sparknet.training.objectives.label_check import check_prepared
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.optimiser import check_solver
from sparknet.training.objectives.preprocessing import Chain, make_preprocessing
from sparknet.training.run_files.checkpoint import WEIGHTS, Checkpoints, Saved
from sparknet.training.run_files.event_log import EventLog
from sparknet.training.run_files.pretrained import begin_with
from sparknet.training.run_files.run_dir import RunDir
from sparknet.training.run_files.run_hook import RunHook
from sparknet.training.run_files.saved_model import describe, save_model
from sparknet.training.worker.cause import cause_of
from sparknet.training.worker.evaluate import Evaluation
from sparknet.training.worker.rehearsal import rehearse

__all__ = ["Observer", "RunLength", "RunResult", "train"]

_NEARLY = 0.99
"""Share of the passes asked for below which it is told that some are missing."""
_KEPT = ("checkpoint", "snapshot", "evaluation")
"""What a run directory in a store should hear of at once."""
Observer = Callable[[dict[str, object]], None]
"""Is told every event record, in the driver's main thread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What `result.json` holds."""

    accuracy: float | None = None
    """Top-1 on the validation rows after the last round, 0..1; so are the other measures."""
    top5: float | None = None
    loss: float | None = None
    outputs: dict[str, float] = field(default_factory=dict[str, float])
    """What else the net measures, by name."""
    training_loss: float | None = None
    """Mean loss of the local steps of the last round that this start trained."""
    model_round: int
    """The round whose weights are the model: the last one, or the best with `run.keep = "best"`."""
    best_round: int | None = None
    """The round of the best validation, where validations are judged."""
    best_measure: str | None = None
    """By which measure."""
    best: float | None = None
    """Its figure there."""
    stopped_early: bool = False
    """The run ended before its last round, since validations no longer improved."""
    rounds: int
    workers: int
    """Asked for."""
    rounds_by_workers: dict[int, int] = field(default_factory=dict[int, int])
    """By how many workers took part, in how many rounds."""
    samples: int
    """Samples of all committed rounds."""
    epochs: float
    """Passes over the training rows that these are."""
    asked_epochs: float | None = None
    """Passes that were asked for, where `run.epochs` says them."""
    seconds: float
    """From the first local step of this start (or resumption) to the end."""
    images_per_second: float
    """Over those seconds, validation and checkpoints included."""
    sync_seconds: float
    """Of those, what the mean worker spent waiting for others and exchanging weights."""
    failures: int
    """Workers lost, of this start."""
    weights_hash: str
    """Hash of the final weights, which all replicas reported; empty for strategy none, where they differ."""
    run_dir: str


def train(
    run: RunConfig | RunStart,
    run_dir: RunDir,
    *,
    spark: SparkSession | None = None,
    sources: OpenedSources | Frames | None = None,
    observers: Sequence[Observer] = (),
    accept: Callable[[PreparedData], None] | None = None,
) -> RunResult:
    """Train to the end, from the beginning or from the run directory's newest good checkpoint.

    Args:
        run: what to do; a start that the caller has opened and looked at, so that nothing is read or built twice.
        run_dir: where everything about the run is kept; owned by the caller.
        spark: the session to use; not given: the active one, else one is opened and stopped again.
        sources: what `config.data` names, if it is open already, or DataFrames in its place; not given: it is
            opened.
        observers: told every event.
        accept: is shown the rows when they are prepared, before anything is trained, and raises if they are not
            those that are meant.

    Raises:
        SparkNetError: the run failed; the message names value, rule and remedy.
        KeyboardInterrupt: it was interrupted; all workers have ended.
    """
    began = time.time()
    with EventLog(run_dir.path, began) as log:

        def tell(event: str, **fields: object) -> None:
            record = log.write(event, **{key: run_dir.as_found(value) for key, value in fields.items()})
            if event in _KEPT:
                run_dir.nudge()
            for observer in observers:
                observer(record)

        try:
            start = run if isinstance(run, RunStart) else open_run(run)
            if start.config != run:
                run_dir.save_config(start.config)
            return _Run(start, run_dir, tell, accept).train(spark, sources)
        except BaseException as error:
            try:
                if isinstance(error, KeyboardInterrupt):
                    tell("run_stopped", reason="interrupted")
                else:
                    cause = cause_of(error)
                    trace = error.trace if isinstance(error, WorkerError) else cause.trace
                    if cause.place:
                        error.add_note(f"it came from {cause.place}")
                    tell("run_failed", error=cause.text, **({"trace": trace} if trace else {}))
            except RunDirError as unwritten:  # the disk is full: the error itself still reaches the caller
                error.add_note(str(unwritten))
            raise


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLength:
    """How long a run is."""

    plan: RoundPlan
    """How long its rounds are."""
    rounds: int
    """Of the whole run, so that a resumed one ends where it would have ended."""
    iterations: int
    """At which it ends."""

    @classmethod
    def of(cls, start: RunStart, training_rows: int, done: RunProgress) -> "RunLength":
        """As given, or enough for the iterations or epochs asked for beyond what is done."""
        config, run = start.config, start.config.run
        end = run.iterations or 0
        if run.epochs is not None:
            per_iteration = run.workers * config.solver.batch_size * start.recipe.batches_per_step
            missing = run.epochs * training_rows - done.samples
            end = done.iteration + math.ceil(max(0, missing) / per_iteration)
        plan = RoundPlan.of(config, end=end)
        rounds = run.rounds or max(1, done.round + plan.count_rounds(done.iteration, end))
        return cls(
            plan=plan, rounds=rounds, iterations=end or plan.iteration_after(rounds - done.round, done.iteration)
        )


class _Run:
    """One start of a run."""

    def __init__(
        self,
        start: RunStart,
        run_dir: RunDir,
        tell: Callable[..., None],
        accept: Callable[[PreparedData], None] | None,
    ) -> None:
        self._start = start
        self._hook = start.hook
        self._config = config = start.config
        self._run_dir = run_dir
        self._tell = tell
        self._accept = accept
        self._checkpoints = Checkpoints(
            run_dir.path, config.run.keep_checkpoints, until_released=self._hook is not None
        )
        self._token = secrets.token_urlsafe(32)
        self._tls = read_tls(config.cluster)

    def train(self, given: SparkSession | None, sources: OpenedSources | Frames | None) -> RunResult:
        # A misspelt name should not cost a Spark start.
        check_net(self._start.recipe)
        check_solver(self._start.recipe)
        self._tell("note", message="starting Spark")
        config = self._config
        with ExitStack() as held:
            spark = held.enter_context(
                session_for(
                    config.cluster,
                    given,
                    workers=config.run.workers,
                    name=config.run.name,
                    log_path=self._run_dir.path / "spark.log",
                )
            )
            # First of all that asks Spark for anything: it refuses what would wait for ever.
            check_devices(config, spark)
            at = find_driver_host(spark, config.cluster, workers=config.run.workers)
            store = held.enter_context(self._store(spark, at))
            self._tell("note", message="preparing data")
            data = prepare_run(
                spark,
                config.data,
                store=store,
                seed=config.run.seed,
                workers=config.run.workers,
                sources=sources,
            )
            if self._accept is not None:
                self._accept(data)
            # On the driver too: a net that does not fit the rows fails here, once, and not in every task.
            objective = self._start.objective(data.rows)
            check_solver(self._start.recipe, objective)
            # Here, and not by a worker's kernel, which could not say which row it was.
            check_prepared(objective, data)
            preprocessing = make_preprocessing(
                config, objective, data.stored, rows=data.rows, run_dir=self._run_dir.path
            )
            rehearse(objective, data, preprocessing)
            # A checkpoint of this run is newer than whatever it once began from.
            saved = self._resume_point() or self._beginning(objective)
            done = saved.progress if saved else RunProgress()
            length = RunLength.of(self._start, data.train_rows, done)
            if self._hook is not None:
                self._hook.start(objective, self._run_dir.path, length.rounds)
            # After the preparation, which may take hours: its clock runs from here, and workers have only so long
            # to come.
            coordinator = self._coordinator(data, objective, length, saved)
            self._announce(data, objective, length, done=done)
            with self._service(coordinator, at) as service:
                self._tell("note", message="waiting for workers")
                plan = WorkerPlan(
                    config=config,
                    driver=self._address(service),
                    data=data,
                    iterations=length.iterations,
                    preprocessing=preprocessing,
                    code=self._start.recipe.code,
                )
                self._supervise(spark, service, plan)
        # Outside the session: one of our own has given back its cores by then.
        return self._finish(coordinator, data, preprocessing.test, saved)

    def _supervise(self, spark: SparkSession, service: DriverService, plan: WorkerPlan) -> None:
        """Run the workers to the end, and what the hook does beside them."""
        with SideJobs(service.events.put) as jobs:
            self._run_dir.watch(lambda: service.events.put({"event": DONE}))

            def tell(event: str, **fields: object) -> None:
                self._run_dir.check_up()
                if event != DONE:
                    self._tell(event, **fields)
                if event == "checkpoint" and self._hook is not None:
                    # Only made here; writing a net's files takes seconds, in which no hung task would be freed.
                    self._do_beside(
                        jobs, self._hook, round=int(str(fields["round"])), iteration=int(str(fields["iteration"]))
                    )
                self._tell_all(jobs.collect())

            run, cluster = self._config.run, self._config.cluster
            workers = WorkerJobs(
                spark, partial(partial, run_slot, plan), slots=run.workers, most_failures=cluster.task_failures
            )
            Supervision(workers, service, tell).run()
            # The last checkpoint's files are part of the result: the run ends when they are written.
            self._tell_all(jobs.finish())

    def _do_beside(self, jobs: SideJobs, hook: RunHook, *, round: int, iteration: int) -> None:
        job = hook.on_checkpoint(round, iteration, self._checkpoints.path(round))
        if job is None:
            self._checkpoints.release(round)
            return

        def work() -> Mapping[str, object]:
            try:
                return job()
            finally:
                self._checkpoints.release(round)

        jobs.submit(work)

    def _tell_all(self, records: Sequence[dict[str, object]]) -> None:
        for record in records:
            self._tell(str(record.pop("event")), **record)

    def _beginning(self, objective: Objective) -> Saved | None:
        """The checkpoint that a new run begins from where not from the net's initial weights."""
        if self._start.initial is not None:
            return begin_with(self._start.initial, objective, self._checkpoints)
        saved = self._hook.begin(objective, self._checkpoints, self._tell) if self._hook else None
        if saved is not None:
            self._checkpoints.release(saved.round)
        return saved

    def _resume_point(self) -> Saved | None:
        self._run_dir.fetch_checkpoints(self._checkpoints)
        saved, skipped = self._checkpoints.newest_good()
        if saved is not None or skipped:
            self._tell(
                "run_resumed",
                round=saved.round if saved else 0,
                path=str(self._checkpoints.path(saved.round)) if saved else "",
                skipped=[str(path) for path in skipped],
            )
        return saved

    def _coordinator(
        self, data: PreparedData, objective: Objective, length: RunLength, saved: Saved | None
    ) -> Coordinator:
        run, sync, cluster = self._config.run, self._config.sync, self._config.cluster
        evaluation = Evaluation.of(objective, data, self._config)
        rules = Rules(
            slots=run.workers,
            rounds=length.rounds,
            plan=length.plan,
            samples=math.ceil((run.epochs or 0) * data.train_rows) if run.make_up else 0,
            min_workers=run.min_workers,
            waits_below=run.below_min_workers == "wait",
            balanced=sync.pace == "balanced",
            evaluation_parts=evaluation.parts,
            validation_rows=data.validation_rows,
            evaluate_first=run.eval_first and evaluation.parts > 0,
            replicas_agree=sync.strategy != "none",
            heartbeat_timeout_seconds=cluster.heartbeat_timeout_seconds,
            hang_seconds=cluster.hang_seconds,
            grace_seconds=cluster.grace_seconds,
            start_seconds=cluster.start_seconds,
            aim=_aim(run, objective),
        )
        # What decides how rows are dealt: a cursor means nothing in another order.
        dealt = ", by shard" if data.by_shard else ""
        order = f"{run.workers} slots, seed {run.seed}, data {data.content}{dealt}"
        start = _progress_for(saved.progress if saved else RunProgress(), order, run.workers)
        checkpoint = saved.round if saved else None
        return Coordinator(
            rules, now=time.monotonic(), start=start, checkpoint=checkpoint, conclude=evaluation.conclude
        )

    def _announce(self, data: PreparedData, objective: Objective, length: RunLength, *, done: RunProgress) -> None:
        config = self._config
        if data.skipped:
            told = f"damaged rows that were left out: {data.skipped:,}; the first: {data.skipped_examples[0]}"
            self._tell("note", level="warning", message=told)
        for message in (note for part in data.parts for note in part.notes):
            self._tell("note", level="warning", message=message)
        if data.by_shard:
            told = (
                "the shards are fetched and many: each worker reads its share of them, and mixes rows among four "
                "shards at a time; sort no such data by class, or use a directory that the workers share"
            )
            self._tell("note", message=told)
        self._tell(
            "run_started",
            name=config.run.name,
            run_dir=self._run_dir.uri,
            net=config.net.name or objective.name,
            parameters=sum(parameter.numel() for parameter in objective.module.parameters()),
            workers=config.run.workers,
            rounds=length.rounds,
            first_round=done.round + 1,
            local_steps=config.sync.local_steps,
            iterations=length.iterations,
            strategy=config.sync.strategy,
            training_rows=data.train_rows,
            validation_rows=data.validation_rows,
            columns=[column.told for column in data.rows.columns],
        )

    def _service(self, coordinator: Coordinator, at: DriverHost) -> DriverService:
        return DriverService(coordinator, self._checkpoints, at=at, token=self._token, tls=self._tls)

    def _store(self, spark: SparkSession, at: DriverHost) -> AbstractContextManager[Store]:
        """Where the shards lie, as the workers find it."""

        def note(message: str) -> None:
            self._tell("note", level="warning", message=message)

        return open_store(spark, self._run_dir.store(self._config), self._config, at=at, note=note)

    def _address(self, service: DriverService) -> DriverAddress:
        # Workers trust this very certificate: it needs no authority behind it.
        roots = self._tls[0] if self._tls else b""
        return DriverAddress(uri=service.address, token=self._token, tls_roots=roots)

    def _finish(self, coordinator: Coordinator, data: PreparedData, chain: Chain, saved: Saved | None) -> RunResult:
        config, evaluation, best = self._config, coordinator.evaluation, coordinator.judge.best
        if evaluation is None and config.data.validation is None:
            raise ClusterError("the run finished without a validation result; this is a defect, please report it")
        chosen = best.round if best is not None and config.run.keep == "best" else coordinator.round
        weights = self._checkpoints.path(chosen) / WEIGHTS
        if not weights.exists():
            raise CheckpointError(f"{weights} is gone; do not delete checkpoints of a run that is going on")
        save_model(self._run_dir.path / "model", weights, describe(config, data.rows, data.table), chain)
        seconds = time.monotonic() - coordinator.began_training
        # Of this start alone, as the seconds are.
        samples = coordinator.samples - (saved.samples if saved else 0)
        result = RunResult(
            **as_fields(evaluation.outputs if evaluation else {}),
            training_loss=coordinator.loss,
            model_round=chosen,
            best_round=best.round if best else None,
            best_measure=best.measure if best else None,
            best=best.value if best else None,
            stopped_early=coordinator.judge.ended and coordinator.round < coordinator.rules.rounds,
            rounds=coordinator.round,
            workers=config.run.workers,
            rounds_by_workers=dict(sorted(coordinator.rounds_by_workers.items())),
            samples=coordinator.samples,
            epochs=coordinator.samples / data.train_rows,
            asked_epochs=config.run.epochs,
            seconds=seconds,
            images_per_second=samples / seconds,
            sync_seconds=coordinator.sync_seconds,
            failures=coordinator.failures,
            weights_hash=coordinator.anchor_hash,
            run_dir=self._run_dir.uri,
        )
        asked = result.asked_epochs or 0.0
        if result.epochs < _NEARLY * asked and not result.stopped_early:
            self._tell(
                "note",
                level="warning",
                message=f"{result.epochs:.1f} of {asked:g} passes over the rows were made, since workers were "
                "missing in some rounds; run.make_up=true goes on until all are",
            )
        if self._run_dir.is_remote:
            self._tell("note", message=f"waiting until all of the run is in {self._run_dir.uri}")
            self._run_dir.catch_up()
        self._run_dir.save_result(encode(result))
        self._tell("run_finished", **encode(result))
        return result


def _aim(run: Run, objective: Objective) -> Aim | None:
    """How validations are judged; None where neither an end nor a model depends on it.

    Raises:
        ConfigError: what should become better is not measured.
    """
    stop = run.early_stop
    if stop is None and run.keep == "last":
        return None
    measure, better = stop.measure if stop else "", objective.better
    # One class of several has a name of its own, behind that of the measure.
    if measure and not {measure, measure.rpartition(".")[0]} & better.keys():
        raise ConfigError(
            f"run.early_stop.measure is {measure!r}, and the run measures {', '.join(better)}: set it to one of "
            "these"
        )
    return Aim(
        measure=measure,
        higher=tuple(name for name, which in better.items() if which == "higher"),
        min_delta=stop.min_delta if stop else 0.0,
        patience=stop.patience if stop else None,
        keep_best=run.keep == "best",
    )


def _progress_for(progress: RunProgress, order: str, workers: int) -> RunProgress:
    """Where a run goes on in this sampling order.

    With another number of workers, seed or data the rows are dealt out anew, so every slot begins the next epoch of
    the data: rows of the broken-off epoch may be skipped once, none is repeated within an epoch.
    """
    if not progress.cursors or progress.order == order:
        return replace(progress, order=order)
    epoch = 1 + max(cursor.epoch for cursor in progress.cursors.values())
    cursors = {slot: Cursor(epoch=epoch, position=0) for slot in range(workers)}
    return replace(progress, order=order, cursors=cursors)
