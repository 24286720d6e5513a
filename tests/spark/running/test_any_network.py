"""Every kind of network of `examples/`, in threads and in executors of their own: equal to one process, killed,
resumed.

Rounds of one step with plain SGD are steps of one process on all workers' rows (arXiv 1511.06051, section 2.1:
averaged weights are weights after the averaged gradient), so a loop by hand must come to the same weights.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pyspark.sql import SparkSession
from safetensors.torch import load_file

from digits import Story, assert_rounds_in_order, open_test_session
from one_process import trained_by_hand
from places import REPOSITORY
from sparknet.config import load_config
from sparknet.spark.preparing.prepare import prepare_run
from sparknet.spark.running.run import RunResult, train
from sparknet.training.caffe_runs.open_run import RunStart, open_run
from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run
from sparknet.training.run_files.run_dir import RunDir

pytestmark = pytest.mark.spark

SAMPLE = ("two_heads", "two_lmdbs")
"""Those that every run of the tests trains; the others are slow together."""
KINDS = [
    pytest.param(kind, marks=() if kind in SAMPLE else pytest.mark.slow)
    for kind in ("regression", "tokens", "soft_labels", "two_heads", "frozen", "two_lmdbs", "captions")
]
# Its death alone takes a minute.
KILLED = [
    pytest.param("two_lmdbs", marks=pytest.mark.slow) if "two_lmdbs" in kind.values else kind for kind in KINDS
]
PLACES = [pytest.param("local"), pytest.param("local-cluster", marks=pytest.mark.slow)]
EVERY = ("run.workers=2", "run.eval_every=0", "run.checkpoint_every=4", "sync.local_steps=1")
NO_CAFFE = ("run.early_stop=", "run.keep=last", "sync.strategy=average")
SGD = (
    "solver.optimizer=SGD",
    "solver.arguments=",
    "solver.momentum=0",
    "solver.weight_decay=0.01",
    "solver.policy=fixed",
    "solver.warmup_steps=0",
    "solver.clip_norm=",
    "solver.learning_rate=0.01",
    "solver.precision=fp32",
)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples with their data, as a user has them after the first command of their page."""
    folder = tmp_path_factory.mktemp("examples") / "examples"
    shutil.copytree(REPOSITORY / "examples", folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    subprocess.run([sys.executable, "make_data.py"], cwd=folder, check=True, capture_output=True, timeout=300)
    # Without momentum, which is one worker's own after a resumption.
    solver = folder / "two_lmdbs_solver.prototxt"
    solver.write_text(solver.read_text().replace("momentum: 0.9\n", ""))
    return folder


@pytest.fixture(scope="module", params=PLACES)
def spark(request: pytest.FixtureRequest, examples: Path) -> Iterator[SparkSession]:
    settings = {"spark.executorEnv.PYTHONPATH": str(examples)}
    if request.param == "local":
        session = open_test_session("local[2]", **settings)
    else:
        session = open_test_session("local-cluster[2,1,1024]", **settings, **{"spark.executor.memory": "512m"})
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def in_examples(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(examples)
    monkeypatch.syspath_prepend(str(examples))


def start_of(kind: str, store: Path, *settings: str) -> RunStart:
    """The start of an example's run, with overrides."""
    settings = (*EVERY, f"data.store={str(store)!r}", *settings)
    if kind == "two_lmdbs":
        return solver_run(CaffeFiles(solver=Path("two_lmdbs_solver.prototxt")), None, settings)
    return open_run(load_config(f"{kind}.toml", [*NO_CAFFE, *SGD, *settings]))


def run(spark: SparkSession, run_dir: Path, start: RunStart, story: Story) -> RunResult:
    with RunDir.create(run_dir, start.config) as opened:
        return train(start, opened, spark=spark, observers=[story.observe])


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "weights.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_one_process_on_all_rows(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    start = start_of(kind, tmp_path / "store", "run.rounds=6")
    result = run(spark, tmp_path / "run", start, Story())
    assert result.rounds == 6
    config = start.config
    data = prepare_run(spark, config.data, store=tmp_path / "store", seed=config.run.seed)
    # A backbone from elsewhere is what all begin with.
    begun = tmp_path / "run" / "checkpoints" / "round-000000" / "weights.safetensors"
    begin = load_file(begun) if begun.exists() else None
    assert (kind == "frozen") == (begin is not None)
    expected = trained_by_hand(config, data, tmp_path / "run", rounds=6, begin=begin).module.state_dict()
    found = weights_of(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6, msg=name)
    if begin is not None:
        assert all(torch.equal(found[name], begin[name]) for name in found if name.startswith("backbone."))


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_worker_costs_its_open_round(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    story = Story()
    story.at_round("kill", 40, story.kill(1))
    # Fast ones run on before a replacement is there: it must still come in.
    result = run(spark, tmp_path / "run", start_of(kind, tmp_path / "store", "run.rounds=1500"), story)
    assert "kill" in story.fired
    assert result.failures == 1
    assert result.weights_hash
    assert_rounds_in_order(story, 1500)
    assert not story.of("rollback")
    healed = [event for event in story.of("worker_joined") if event["heal"]]
    assert [event["slot"] for event in healed] == [1]
    losses = [event["loss"] for event in story.of("round")]
    assert sum(losses[-100:]) < sum(losses[:100])


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_it_ends_where_it_would_have_ended(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    store, whole, broken = tmp_path / "store", tmp_path / "whole", tmp_path / "broken"
    first = run(spark, whole, start_of(kind, store, "run.rounds=8"), Story())
    run(spark, broken, start_of(kind, store, "run.rounds=4"), Story())
    story = Story()
    with RunDir.reopen(broken) as opened:
        start = start_of(kind, store, "run.rounds=8")
        second = train(start, opened, spark=spark, observers=[story.observe])
    (resumed,) = story.of("run_resumed")
    assert resumed["round"] == 4
    assert second.weights_hash == first.weights_hash
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(broken)[name]), name
