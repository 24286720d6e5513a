"""The whole path on real digits, with real Spark workers: accuracy, repeatability, strategies, one death."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from safetensors.numpy import load_file

from digits import BAR, Story, assert_rounds_in_order, open_test_session, run_digits
from sparknet.errors import ConfigError

pytestmark = pytest.mark.spark

PATIENT = "cluster.heartbeat_timeout_seconds=20.0"
"""For runs without faults: a loaded test machine must not count as a silent worker."""


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2]")
    yield session
    session.stop()


def test_workers_are_born_with_what_training_imports(spark: SparkSession) -> None:
    """In a task of its own, before any worker has trained in the process."""

    def imported(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            names = [name for name in ("sparknet.spark.running.worker_job", "torch._dynamo") if name in sys.modules]
            yield pa.record_batch({"name": pa.array(names, pa.string())})

    rows = spark.range(0, 1, 1, 1).mapInArrow(imported, "name string").collect()
    assert [row.name for row in rows] == ["sparknet.spark.running.worker_job", "torch._dynamo"]


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_two_workers_reach_the_bar(spark: SparkSession, tmp_path: Path, seed: int) -> None:
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, f"run.seed={seed}", PATIENT)
    assert result.accuracy >= BAR
    assert result.rounds == 80
    assert result.samples == 80 * 2 * 10 * 32
    assert_rounds_in_order(story, 80)
    assert [event["round"] for event in story.of("evaluation")] == list(range(10, 81, 10))
    (started,) = story.of("run_started")
    assert {event["rows"] for event in story.of("evaluation")} == {started["validation_rows"]}
    assert started["validation_rows"] + started["training_rows"] == 1797


def test_the_same_seed_gives_the_same_bits(spark: SparkSession, tmp_path: Path) -> None:
    settings = ("run.rounds=12", "sync.strategy=diloco", PATIENT)
    first = run_digits(spark, tmp_path / "a", Story(), *settings)
    again = run_digits(spark, tmp_path / "b", Story(), *settings)
    other = run_digits(spark, tmp_path / "c", Story(), *settings, "run.seed=7")
    assert first.weights_hash == again.weights_hash != other.weights_hash
    weights = [load_file(tmp_path / run / "model" / "weights.safetensors") for run in ("a", "b")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_killed_worker_is_replaced(spark: SparkSession, tmp_path: Path) -> None:
    """The sample of test_deaths.py that always runs; how fast, that one measures on a quiet machine."""
    story = Story()
    story.at_round("kill", 20, story.kill(1))
    result = run_digits(spark, tmp_path / "run", story, "run.rounds=120")
    assert "kill" in story.fired
    assert result.accuracy >= BAR
    assert_rounds_in_order(story, 120)
    assert story.back_after("kill", 1) < 60
    assert 1 in [event["slot"] for event in story.of("worker_lost")]


def test_strategy_none_trains_each_by_itself(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, "sync.strategy=none", "run.rounds=30", PATIENT)
    assert result.accuracy >= 0.9
    assert_rounds_in_order(story, 30)


NO_GAIN = (
    "run.early_stop={ patience = 2, min_delta = 1.0 }",
    "run.eval_every=2",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=2",
    "sync.local_steps=2",
)
"""No accuracy is better than the first one by more than 1: validated after rounds 2, 4 and 6, the run ends."""


def test_a_run_that_no_longer_improves_ends_and_gives_its_best_round(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, *NO_GAIN, "run.keep=best", PATIENT)
    assert (result.rounds, result.stopped_early) == (6, True)
    assert (result.model_round, result.best_round, result.best_measure) == (2, 2, "accuracy")
    judged = {event["round"]: event for event in story.of("evaluation")}
    assert {round: event["best"] for round, event in judged.items()} == {2: True, 4: False, 6: False}
    assert result.best == judged[2]["accuracy"]
    assert result.accuracy == judged[6]["accuracy"]
    (ended,) = story.of("early_stop")
    assert ended["round"] == 6
    # The best round's is kept beside the newest two.
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["round-000002", "round-000005", "round-000006"]
    model = (tmp_path / "run" / "model" / "weights.safetensors").read_bytes()
    assert model == (checkpoints / "round-000002" / "weights.safetensors").read_bytes()


def test_what_should_improve_is_known_before_workers_start(spark: SparkSession, tmp_path: Path) -> None:
    story = Story()
    with pytest.raises(ConfigError, match=r"measure is 'f1', and the run measures accuracy, top5, loss: set"):
        run_digits(spark, tmp_path / "run", story, "run.early_stop.measure=f1")
    assert not story.of("worker_joined")


def test_balanced_pace_and_one_thread_more(spark: SparkSession, tmp_path: Path) -> None:
    result = run_digits(
        spark, tmp_path / "run", Story(), "sync.pace=balanced", "sync.inner_state=reset", "run.rounds=40", PATIENT
    )
    assert result.accuracy >= BAR


ADAMW = (
    "solver.optimizer=AdamW",
    "solver.arguments={ betas = [0.9, 0.95] }",
    "solver.momentum=",
    "solver.learning_rate=0.005",
    "solver.weight_decay=0.05",
    "solver.decay_norms_and_biases=false",
    "solver.groups=[{ pattern = '*.weight', rate_factor = 0.5 }]",
    "solver.warmup_steps=40",
    "solver.clip_norm=1.0",
    "solver.accumulate=2",
    "solver.precision=bf16",
)


@pytest.mark.slow
def test_any_optimiser_with_warm_up_clipping_accumulation_and_half_the_bits(
    spark: SparkSession, tmp_path: Path
) -> None:
    story = Story()
    result = run_digits(spark, tmp_path / "run", story, *ADAMW, "run.rounds=40", PATIENT)
    assert result.accuracy >= BAR
    # Twice the rows of a step without accumulation.
    assert result.samples == 40 * 2 * 10 * 32 * 2
    rates = [event["learning_rate"] for event in story.of("round")]
    assert rates[0] == pytest.approx(0.005 * 10 / 40), "the last step of the first round is the tenth of 40"
    assert max(rates) == rates[3] == pytest.approx(0.005)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    weights = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert {array.dtype.name for name, array in weights.items() if "tracked" not in name} == {"float32"}


def test_epochs_count_the_batches_of_a_step(spark: SparkSession, tmp_path: Path) -> None:
    result = run_digits(
        spark, tmp_path / "run", Story(), *ADAMW, "run.rounds=", "run.epochs=2", "run.eval_every=0", PATIENT
    )
    rows = 1797 - 359
    per_round = 2 * 10 * 32 * 2
    assert result.rounds == -(-2 * rows // per_round)
    # The last round is shorter, so that no worker makes a step that nobody asked for.
    per_iteration = per_round // 10
    assert result.samples == -(-2 * rows // per_iteration) * per_iteration
    assert result.epochs == result.samples / rows
    assert result.rounds_by_workers == {2: result.rounds}


def test_an_optimiser_that_always_has_its_state_survives_a_death(spark: SparkSession, tmp_path: Path) -> None:
    """Adagrad makes its state before the first step: a newcomer begins with it, and is then given another's."""
    story = Story()
    story.at_round("kill", 20, story.kill(1))
    settings = ("solver.optimizer=Adagrad", "solver.momentum=", "solver.learning_rate=0.02", "run.rounds=120")
    result = run_digits(spark, tmp_path / "run", story, *settings)
    assert "kill" in story.fired
    assert result.accuracy >= 0.9
    assert_rounds_in_order(story, 120)
    assert story.back_after("kill", 1) < 60
