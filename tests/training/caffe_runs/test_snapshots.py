"""Snapshots that a run is to write or begin from: which are due, and what is found wrong before Spark starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from caffe_example import SOLVER, Example, write_example
from sparknet.caffe.solver.caffe_solver import CaffeSolver
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.solverstate import read_state
from sparknet.data.sources.opening import open_source
from sparknet.errors import CheckpointError, ConfigError
from sparknet.training.caffe_runs import snapshots
from sparknet.training.caffe_runs.open_run import RunStart
from sparknet.training.caffe_runs.preflight import check_caffe
from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run
from sparknet.training.caffe_runs.snapshots import make_snapshots
from sparknet.training.coordination.round_plan import RoundPlan
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.optimiser import build_inner_solver
from sparknet.training.run_files.checkpoint import INNER, WEIGHTS
from sparknet.training.run_files.state_bytes import dump_optimizer, dump_weights


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    monkeypatch.chdir(tmp_path)
    return write_example(tmp_path / "example")


def run_of(example: Example, solver: str = SOLVER, *settings: str, **files) -> RunStart:
    example.solver.write_text(solver)
    return solver_run(CaffeFiles(solver=example.solver, **files), example.data, settings)


def objective_of(start: RunStart) -> CaffeObjective:
    rows = open_source(start.config.data).schema(start.config.data)
    assert rows is not None
    objective = start.objective(rows)
    assert isinstance(objective, CaffeObjective)
    return objective


def settings_of(start: RunStart) -> SolverSettings:
    assert start.recipe.settings is not None
    return start.recipe.settings


def check(start: RunStart) -> None:
    check_caffe(start, open_source(start.config.data).schema(start.config.data))


def snapshot_of(example: Example, iteration: int, solver: str = SOLVER) -> str:
    """A snapshot of the untrained net."""
    start = run_of(example, solver)
    writer = CaffeSolver(replace(settings_of(start), weights=()), objective_of(start).train)
    writer.iteration = iteration
    return str(writer.snapshot(str(example.directory / "state"))[1])


@pytest.mark.parametrize(
    ("snapshot", "settings", "due"),
    [
        (8, (), True),
        (16, (), False),
        (16, ("run.rounds=4",), True),
        (0, (), False),
        (8, ("sync.local_steps=4",), True),
        (8, ("run.rounds=2", "run.checkpoint_every=2"), True),
        (8, ("run.rounds=3", "run.checkpoint_every=2"), False),
    ],
)
def test_the_last_round_has_a_regular_snapshot_where_its_checkpoint_is_one(
    example: Example, snapshot: int, settings: tuple[str, ...], due: bool
) -> None:
    text = SOLVER.replace("snapshot: 8", f"snapshot: {snapshot}\nsnapshot_after_train: false")
    start = run_of(example, text, *settings)
    config = start.config
    writer = make_snapshots(config, settings_of(start), objective_of(start), run_dir=example.directory)
    plan = RoundPlan.of(config)
    rounds = config.run.rounds or plan.count_rounds(0, config.run.iterations or 0)
    assert writer.due(rounds, plan.iteration_after(rounds, 0), last=True) == due


@pytest.mark.parametrize(("kind", "histories"), [("Nesterov", 1), ("Adam", 2)])
def test_what_is_too_large_for_protobuf_is_written_as_hdf5(
    example: Example, monkeypatch: pytest.MonkeyPatch, kind: str, histories: int
) -> None:
    start = run_of(example, SOLVER + f'type: "{kind}"\n')
    objective, settings = objective_of(start), settings_of(start)
    size = histories * sum(blob.tensor.nbytes for blob in objective.train.learnable)
    tensors = dump_weights(objective.train)
    inner = dump_optimizer(build_inner_solver(start.recipe, objective, total_iterations=8).optimizer)
    (example.directory / WEIGHTS).write_bytes(tensors)
    (example.directory / INNER).write_bytes(inner)
    for limit, ending in ((size, ""), (size - 1, ".h5")):
        monkeypatch.setattr(snapshots, "LIMIT_BYTES", limit)
        writer = make_snapshots(start.config, settings, objective, run_dir=example.directory)
        written = writer.write(1, example.directory)
        assert written is not None
        model, state = written
        assert (model.name.rpartition("caffemodel")[2], state.name.rpartition("solverstate")[2]) == (ending, ending)
        assert read_state(state).learned_net == str(model)
        objective.train.load_weights(model)


@pytest.mark.parametrize("prefix", ["file/p", "file/deep/p", "file/", "closed/p", "closed/deep/p"])
def test_a_prefix_that_cannot_be_written(example: Example, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    Path("file").touch()
    closed = Path("closed").absolute()
    closed.mkdir()
    # Not by its mode, which does not keep a superuser out.
    monkeypatch.setattr("os.access", lambda place, mode: Path(place) != closed)
    start = run_of(example, SOLVER.replace("snapshots/cifar10_quick", prefix))
    message = rf"snapshot_prefix is '{Path.cwd()}/{prefix}' and .*; correct it in the solver"
    with pytest.raises(CheckpointError, match=message):
        check(start)


def test_a_prefix_is_looked_at_without_making_its_directory(example: Example) -> None:
    check(run_of(example))
    assert not Path("snapshots").exists()


def test_a_snapshot_that_fits(example: Example) -> None:
    check(run_of(example, snapshot=snapshot_of(example, 20)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('type: "Nesterov"', 'type: "Adam"'), r"the history has 10 blobs; type Adam over 10 parameters has 20"),
        (("num_output: 64", "num_output: 32"), r"history"),
    ],
)
def test_a_snapshot_of_another_solver_or_net(example: Example, change: tuple[str, str], message: str) -> None:
    solver = SOLVER + 'type: "Nesterov"\n'
    state = snapshot_of(example, 10, solver)
    net = example.net.read_text()
    assert change[0] in solver + net
    ip1 = net.index('name: "ip1"')
    example.net.write_text(net[:ip1] + net[ip1:].replace(*change))
    with pytest.raises(CheckpointError, match=message):
        check(run_of(example, solver.replace(*change), snapshot=state))


@pytest.mark.parametrize(
    ("most", "settings", "message"),
    [
        (5, (), r"the snapshot is at iteration 10 and max_iter is 5: raise max_iter in the solver file, or"),
        (10, (), r"the snapshot is at iteration 10 and max_iter is 10: raise max_iter"),
        (24, ("run.rounds=2",), r"at iteration 10 and run\.rounds is 2, and round 2 ends there: raise run\.rounds"),
    ],
)
def test_a_snapshot_at_the_end_of_the_run(
    example: Example, most: int, settings: tuple[str, ...], message: str
) -> None:
    state = snapshot_of(example, 10)
    solver = SOLVER.replace("max_iter: 24", f"max_iter: {most}")
    with pytest.raises(ConfigError, match=message):
        check(run_of(example, solver, *settings, snapshot=state))
