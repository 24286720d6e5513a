"""A fit: the run directory that it begins or goes on with, the run itself, and what it leaves."""

import json
import logging
import math
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from sparknet.config import RunConfig, encode
from sparknet.data.shards.prepared import PreparedData
from sparknet.errors import RunDirError
from sparknet.ml.settings import Fit
from sparknet.ml.summary import TrainingSummary, history_of
from sparknet.ml.turns import turn_of
from sparknet.reporting.console import open_console
from sparknet.reporting.training_log import TrainingLog
from sparknet.spark.jobs.addresses import find_driver_host
from sparknet.spark.preparing.prepare import Frames, prepare_run
from sparknet.spark.preparing.store import open_store
from sparknet.spark.running.run import Observer, train
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.run_files.remote_copy import EVENTS, ROWS
from sparknet.training.run_files.run_dir import RunDir
from sparknet.training.run_files.saved_model import Model, load_model
from sparknet.whole_files import whole_file

__all__ = ["Fitted", "fit"]

_LOG = logging.getLogger(__name__)
_MAY_DIFFER = ("cluster.", "run.workers", "run.min_workers", "run.keep_checkpoints", "data.threads", "data.store")
"""Keys that a run may be gone on with otherwise: where and how, not what."""
_CLOSE = 1e-4
"""Relative difference of means that the order of the rows alone may make."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Fitted:
    """What a fit has made."""

    model: Model
    summary: TrainingSummary


def fit(
    spark: SparkSession,
    frames: Frames,
    asked: Fit,
    *,
    run_dir: str | None,
    observers: Sequence[Observer] = (),
    verbose: bool = True,
) -> Fitted:
    """Train, or go on with the run in `run_dir`, or read what it has come to.

    Args:
        spark: the session of the frames.
        frames: the rows.
        asked: what is trained.
        run_dir: path or URI; not given: a temporary one, gone when the model is read.
        observers: told every event.
        verbose: print progress.

    Raises:
        SparkNetError: the run failed, or the directory holds another's.
        KeyboardInterrupt: it was interrupted; the workers have ended, and the session is as it was.
    """
    with ExitStack() as held:
        held.enter_context(_own_interrupts())
        held.enter_context(turn_of(spark, asked.config.run.workers))
        where = run_dir or held.enter_context(tempfile.TemporaryDirectory(prefix="sparknet-fit-"))
        start = replace(open_run(asked.config, code=asked.code), initial=asked.net.module)
        opened = held.enter_context(_opened(where, start.config))
        accept = _Rows(opened.path)
        if opened.load_result() is None:
            console = open_console() if verbose else None
            told = [*observers, *([console.on_event] if console else [])]
            if console is not None:
                held.callback(console.close)
            log = held.enter_context(TrainingLog(opened.path, int(time.time() * 1000)))
            train(start, opened, spark=spark, sources=frames, observers=[*told, log.on_event], accept=accept)
        else:
            # The rows too decide whether this is that run.
            config = start.config
            at = find_driver_host(spark, config.cluster, workers=config.run.workers)
            with open_store(spark, opened.store(config), config, at=at, note=_LOG.info) as store:
                accept(prepare_run(spark, config.data, store=store, seed=config.run.seed, sources=frames))
        return _read(opened, asked)


def _read(opened: RunDir, asked: Fit) -> Fitted:
    lines = (opened.path / EVENTS).read_text(encoding="utf-8").splitlines()
    # A killed driver may have left half a line.
    events = [event for event in map(_event, lines) if event]
    endpoint = asked.config.data.s3_endpoint
    model = load_model(f"{opened.uri.rstrip('/')}/model", code=asked.code, s3_endpoint=endpoint)
    return Fitted(
        model=model, summary=TrainingSummary(history=history_of(events), result=opened.load_result() or {})
    )


def _event(line: str) -> Mapping[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        return {}


@contextmanager
def _own_interrupts() -> Generator[None]:
    """Let Ctrl-C, or a notebook's stop button, end this fit and nothing else in the session.

    What Spark has installed cancels every job there is, and talks to the Java machine from within whatever call the
    interrupt has cut into.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        # None is what no Python has installed, and cannot be put back by one.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def _opened(where: str, config: RunConfig) -> RunDir:
    """A new run directory, or that of the same run.

    Raises:
        RunDirError: it holds another's.
    """
    endpoint = config.data.s3_endpoint
    if not RunDir.is_there(where, s3_endpoint=endpoint):
        return RunDir.create(where, config)
    opened = RunDir.reopen(where, s3_endpoint=endpoint)
    try:
        # A fit that failed before there was anything to go on with is begun anew, however it is meant now.
        if not (opened.path / ROWS).exists():
            opened.save_config(config)
            return opened
        before = opened.load_config()
        here, there = (_flat(encode(one)) for one in (config, before))
        for key in sorted(here.keys() | there.keys()):
            if here.get(key) != there.get(key) and not key.startswith(_MAY_DIFFER):
                raise RunDirError(
                    f"{where} holds another run: {key} is {there.get(key)!r} there and {here.get(key)!r} here; "
                    "give another runDir, or the same settings to go on with it"
                )
    except BaseException:
        opened.close()
        raise
    return opened


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class _Rows:
    """Holds the rows of a fit against those with which its run began.

    A DataFrame has no name by which it could be known in another application. Its rows are the same for a run if
    there are as many, of the same columns, with the same statistics, in whatever order they come.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / ROWS

    def __call__(self, data: PreparedData) -> None:
        """Record what the rows are, or compare.

        Raises:
            RunDirError: they are others.
        """
        found = _facts(data)
        if not self._path.exists():
            with whole_file(self._path) as draft:
                draft.write_text(json.dumps(found, indent=1), encoding="utf-8")
            return
        before = json.loads(self._path.read_text(encoding="utf-8"))
        for key, value in found.items():
            if not _alike(before.get(key), value):
                raise RunDirError(
                    f"{self._path.parent} holds a run on other rows: {key} is {before.get(key)} there and {value} "
                    "here; give another runDir, or the same rows to go on with it"
                )


def _facts(data: PreparedData) -> dict[str, Any]:
    facts: dict[str, Any] = {"training rows": data.train_rows, "validation rows": data.validation_rows}
    for name, (stored, _) in data.stored.items():
        facts[f"column {name}"] = stored.column.told
        facts[f"means of {name}"] = list(stored.channel_mean)
        facts[f"rows of each class of {name}"] = list(stored.counts)
    return facts


def _alike(before: object, now: object) -> bool:
    if not isinstance(before, list) or not isinstance(now, list):
        return before == now
    pairs = zip(before, now, strict=True) if len(before) == len(now) else [(0.0, 1.0)]
    return all(math.isclose(one, other, rel_tol=_CLOSE, abs_tol=_CLOSE) for one, other in pairs)
