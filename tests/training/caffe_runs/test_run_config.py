"""What Caffe's files come to as a run: every field of the mapping, and what is refused."""

from pathlib import Path

import pytest

from caffe_example import SOLVER, TRAIN_TEST, Example, write_example
from sparknet.caffe import NetSpec
from sparknet.caffe.solver.settings import SolverSettings
from sparknet.caffe.solver.solverstate import SavedState, write_state
from sparknet.config import Beside, Data, Net, Run, RunConfig, Solver, TestRows, load_config, override, write_config
from sparknet.errors import ConfigError, NetError
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.caffe_runs.run_config import CaffeFiles, scored_run, solver_run
from sparknet.training.objectives.recipe import Recipe


@pytest.fixture
def example(tmp_path: Path) -> Example:
    return write_example(tmp_path / "example")


def run_of(example: Example, solver: str = SOLVER, *settings: str, **files) -> RunConfig:
    example.solver.write_text(solver)
    return solver_run(CaffeFiles(solver=example.solver, **files), example.data, settings).config


def settings_of(config: RunConfig) -> SolverSettings:
    """As workers read them."""
    settings = Recipe.read(config.net, config.solver).settings
    assert settings is not None
    return settings


def kept(solver: str) -> str:
    """The text in a run's configuration: the example's prefix is seen from the current directory."""
    return solver.replace('"snapshots/', f'"{Path.cwd()}/snapshots/')


def test_the_example(example: Example) -> None:
    config = run_of(example)
    assert config.run == Run(
        name="cifar10_quick",
        seed=3,
        iterations=24,
        eval_iterations=8,
        eval_first=True,
        eval_batches=4,
        checkpoint_iterations=8,
    )
    assert config.solver == Solver(prototxt=kept(SOLVER), batch_size=20)
    assert config.net == Net(prototxt=example.net.read_text())
    path = str(example.directory / "data")
    assert config.data == Data(
        source="cifar10", path=path, validation_path=path, channel_order="bgr", class_values="stored"
    )
    assert config.sync.local_steps == 10


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("max_iter: 25", "iterations", 25),
        ("max_iter: 25", "rounds", None),
        ("test_interval: 9", "eval_iterations", 9),
        ("snapshot: 7", "checkpoint_iterations", 7),
        ("snapshot: 0", "checkpoint_iterations", None),
        ("snapshot: 0", "checkpoint_every", 0),
        ("random_seed: -1", "seed", 0),
        ("test_iter: 4\ntest_initialization: false", "eval_first", False),
    ],
)
def test_iterations_stay_what_they_are(example: Example, text: str, key: str, value: object) -> None:
    field = text.partition(":")[0]
    lines = [text if line.startswith(f"{field}:") else line for line in SOLVER.splitlines()]
    config = run_of(example, "\n".join(lines), "sync.local_steps=4")
    assert getattr(config.run, key) == value


def test_without_test_iter_the_last_round_alone_is_tested_on_every_row(example: Example) -> None:
    config = run_of(example, SOLVER.replace("test_iter: 4", "").replace("test_interval: 8", ""))
    assert (config.run.eval_every, config.run.eval_first, config.run.eval_batches) == (0, False, None)


def test_settings_win(example: Example) -> None:
    config = run_of(example, SOLVER, "run.rounds=5", "run.seed=9", "data.mean=image", "solver.batch_size=7")
    assert (config.run.rounds, config.run.seed, config.data.mean, config.solver.batch_size) == (5, 9, "image", 7)
    epochs = run_of(example, SOLVER, "run.epochs=2.0")
    assert (epochs.run.rounds, epochs.run.iterations, epochs.run.epochs) == (None, None, 2.0)


def test_what_is_counted_in_rounds_is_not_counted_in_iterations(example: Example) -> None:
    run = run_of(example, SOLVER, "run.rounds=5", "run.eval_every=2", "run.checkpoint_every=0").run
    assert (run.rounds, run.iterations) == (5, None)
    assert (run.eval_every, run.eval_iterations) == (2, None)
    assert (run.checkpoint_every, run.checkpoint_iterations) == (0, None)
    run = run_of(example, SOLVER, "run.iterations=9", "run.eval_iterations=2").run
    assert (run.rounds, run.iterations, run.eval_iterations, run.checkpoint_iterations) == (None, 9, 2, 8)


def test_nets_are_found_from_here_then_beside_the_solver(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_of(example).net.prototxt.lstrip().startswith('name: "CIFAR10_quick"')
    (tmp_path / example.net.name).write_text(TRAIN_TEST.replace("CIFAR10_quick", "here"))
    assert run_of(example).run.name == "here"
    other = tmp_path / "other.prototxt"
    other.write_text(TRAIN_TEST.replace("CIFAR10_quick", "other"))
    assert run_of(example, net=other).run.name == "other"


def test_mean_files_are_found_from_here_then_beside_the_solver(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    named = example.net.read_text()
    mean = next(example.net.parent.rglob("*.binaryproto"))
    found = example.solver.parent / 'a "b".binaryproto'
    mean.rename(found)
    written = named.replace(f'"{mean}"', '"/root/"  # of another machine\n \'a "b".binaryproto\'')
    example.net.write_text(written)
    config = run_of(example)
    assert config.net.prototxt != written
    layers = NetSpec.from_text(config.net.prototxt).parameters.layer
    assert [layer.transform_param.mean_file for layer in layers[:2]] == [str(found)] * 2
    assert "is taken, which has its name" in caplog.text
    # what levels and stages have been applied to is another text
    merged = run_of(example, SOLVER + 'train_state { stage: "x" }\n')
    layers = NetSpec.from_text(merged.net.prototxt).parameters.layer
    assert {layer.transform_param.mean_file for layer in layers if layer.type == "Data"} == {str(found)}
    # from here, as in Caffe
    example.net.write_text(named.replace(str(mean), "m.binaryproto"))
    found.rename(here / "m.binaryproto")
    assert run_of(example).net.prototxt == example.net.read_text()


@pytest.mark.parametrize(
    "nets", ["", 'train_net: "none"\n', 'train_net: "none"\ntest_net: "none"\n', 'net: "none"\ntest_net: "none"\n']
)
def test_a_net_of_the_command_replaces_those_of_the_solver(example: Example, nets: str) -> None:
    solver = SOLVER.replace('net: "cifar10_quick_train_test.prototxt"\n', nets)
    config = run_of(example, solver, net=example.net)
    assert config.net.prototxt == example.net.read_text()
    assert settings_of(config).test_iter == (4,)


@pytest.mark.parametrize(
    ("written", "prefix"),
    [
        ('snapshot_prefix: "some/p"', "HERE/some/p"),
        ("snapshot_prefix : 'some/'  # a directory", "HERE/some/"),
        ("snapshot_prefix: 'some'\n  \"/p\"", "HERE/some/p"),
        ('snapshot_prefix: "/abs/p"', "/abs/p"),
        ("", ""),
    ],
)
def test_a_prefix_stays_where_the_run_began(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, prefix: str
) -> None:
    here = tmp_path / 'a "quoted" place'
    here.mkdir()
    monkeypatch.chdir(here)
    config = run_of(example, SOLVER.replace('snapshot_prefix: "snapshots/cifar10_quick"', written))
    assert settings_of(config).snapshot_prefix == prefix.replace("HERE", str(here))
    monkeypatch.chdir(tmp_path)
    assert open_run(config).config == config


def test_local_paths_of_the_data_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = {"data/*.parquet": f"{tmp_path}/data/*.parquet", "rows/": f"{tmp_path}/rows/"}
    paths |= {same: same for same in ("/x/y", "hdfs://host/x", "s3a://bucket/x", "file:/x", "~/x")}
    for given, expected in paths.items():
        data = Data(source="parquet", path=given, validation_path=given)
        config = open_run(RunConfig(run=Run(rounds=1), data=data, net=Net(name="lenet"))).config
        assert (config.data.path, config.data.validation_path) == (expected, expected)
    listed = Data(
        source="hdf5",
        path="l.txt",
        root="images",
        validation_path="v.txt",
        beside={"goal": Beside(source="hdf5", path="g.txt", root="goals")},
    )
    made = open_run(RunConfig(run=Run(rounds=1), data=listed, net=Net(name="lenet"))).config.data
    assert (made.root, made.beside["goal"].root) == (f"{tmp_path}/images", f"{tmp_path}/goals")
    digits = Data(source="digits", validation_fraction=0.2)
    assert open_run(RunConfig(run=Run(rounds=1), data=digits, net=Net(name="lenet"))).config.data == digits


def test_nets_of_two_files_and_states_become_one(example: Example) -> None:
    net = example.net.read_text()
    (example.directory / "test.prototxt").write_text(net.replace("batch_size: 10", "batch_size: 5"))
    staged = net.replace('name: "loss"\n', 'name: "loss"\n  include { stage: "special" }\n')
    example.net.write_text(staged)
    solver = SOLVER.replace("net:", "train_net:") + 'test_net: "test.prototxt"\ntrain_state { stage: "special" }\n'
    example.net.write_text('force_backward: true debug_info: true state { stage: "own" }\n' + staged)
    spec = NetSpec.from_prototxt(run_of(example, solver).net.prototxt)
    said = spec.parameters
    assert (said.name, said.force_backward, said.debug_info) == ("CIFAR10_quick", True, True)
    assert list(said.state.stage) == ["own"]
    train, test = spec.select("TRAIN").parameters.layer, spec.select("TEST").parameters.layer
    assert [layer.name for layer in train][-1] == "loss"
    assert [layer.name for layer in test][-2:] == ["accuracy", "loss"]
    assert (train[0].data_param.batch_size, test[0].data_param.batch_size) == (20, 5)


def test_each_test_of_a_solver_has_its_layers_and_its_batches(example: Example) -> None:
    net = example.net.read_text()
    rule = 'top: "accuracy"\n  include {\n    phase: TEST\n'
    example.net.write_text(net.replace(rule, rule + '    stage: "b"\n'))
    (example.directory / "other.prototxt").write_text(net.replace("batch_size: 10", "batch_size: 5"))
    solver = SOLVER.replace("test_iter: 4", "test_iter: 4 test_iter: 5 test_iter: 0") + (
        'test_net: "other.prototxt"\ntest_state { stage: "x" }\ntest_state { stage: "b" }\ntest_state { }\n'
    )
    config = run_of(example, solver)
    assert config.run.eval_batches == 4
    assert config.data.tests == {"b": TestRows(batches=5), "test-net-2": TestRows()}
    spec = NetSpec.from_prototxt(config.net.prototxt)

    def tested(*stages: str) -> list[str]:
        return [layer.name for layer in spec.select("TEST", stages=stages).parameters.layer]

    assert tested()[-2:] == ["accuracy", "loss"]
    assert (tested("b")[-2:], tested("test-net-2")[-2:]) == (["accuracy", "loss"], ["ip2", "loss"])
    batch = spec.select("TEST").parameters.layer[0].data_param.batch_size
    other = spec.select("TEST", stages=["b"]).parameters.layer[0].data_param.batch_size
    assert (batch, other) == (5, 10)
    assert "accuracy" not in [layer.name for layer in spec.select("TRAIN").parameters.layer]


def test_a_net_that_is_only_trained_needs_no_rows_for_tests(example: Example) -> None:
    solver = SOLVER.replace("test_iter: 4", "").replace("test_interval: 8", "")
    table = run_of(example, solver).data
    assert (table.validation, bool(table.validation_path)) == (None, True), "rows that are there are tested"
    lmdb = f"lmdb:{example.directory}"
    example.solver.write_text(solver)
    config = solver_run(CaffeFiles(solver=example.solver), lmdb, []).config
    assert (config.data.validation, config.data.path) == ("none", str(example.directory))
    example.solver.write_text(SOLVER)
    with pytest.raises(ConfigError, match=r"say which rows are held out.*data\.validation=none holds out none"):
        solver_run(CaffeFiles(solver=example.solver), lmdb, [])


def test_weights_of_the_solver_and_of_the_command(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    solver = SOLVER + 'weights: "a.caffemodel,b.caffemodel"\n'
    here = Path.cwd()
    assert run_of(example, solver).net.weights == f"{here}/a.caffemodel,{here}/b.caffemodel"
    assert run_of(example, solver, weights="c.caffemodel").net.weights == f"{here}/c.caffemodel"
    write_state(SavedState(iteration=8, current_step=0, learned_net="", history=()), "x_iter_8.solverstate")
    resumed = run_of(example, solver, snapshot="x_iter_8.solverstate")
    assert (resumed.net.weights, resumed.solver.snapshot) == ("", f"{here}/x_iter_8.solverstate")
    assert resumed.solver.snapshot_step == (8, 0)


def test_a_configuration_holds_the_files_text(example: Example, tmp_path: Path) -> None:
    tables = f"""
        run = {{ rounds = 1 }}
        data = {{ source = "digits", validation_fraction = 0.2 }}
        net = {{ prototxt = "{example.net}", weights = "a.caffemodel" }}
        solver = {{ prototxt = "{example.solver}" }}
    """
    (tmp_path / "run.toml").write_text(tables)
    config = open_run(load_config(tmp_path / "run.toml")).config
    assert config.net.prototxt == example.net.read_text()
    assert config.solver.prototxt == kept(SOLVER)
    assert config.net.weights == str(Path("a.caffemodel").absolute())
    assert open_run(config).config == config
    write_config(config, tmp_path / "copy.toml")
    assert load_config(tmp_path / "copy.toml") == config
    assert "\\n" not in (tmp_path / "copy.toml").read_text(), "the files' lines are lines"


@pytest.mark.parametrize(
    ("setting", "key"), [("solver.momentum=0.5", "momentum"), ("solver.policy=cosine", "policy")]
)
def test_the_solver_file_alone_says_how(example: Example, setting: str, key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"solver\.{key} is .*; solver\.prototxt says how to optimise: set it in"
    ):
        override(run_of(example), [setting])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_iter: 24", ""), r"cifar10_quick_solver\.prototxt: max_iter is missing; .*set max_iter"),
        (("base_lr: 0.001", ""), r"base_lr is missing"),
        (("test_iter: 4", "test_iter: 4\ntest_state { }\ntest_state { }"), r"test_state is given 2 times"),
        (("net:", "# net:"), r"solver\.prototxt: it names no net; set net to the net's prototxt, or give --net"),
        (("max_iter: 24", "max_iter: 0"), r"max_iter is 0; the run .*: set max_iter to at least 1"),
        (("cifar10_quick_train_test", "none"), r"none\.prototxt: no such file"),
        (("momentum:", "momentun:"), r"momentun.*did you mean 'momentum'"),
    ],
)
def test_a_solver_at_fault(example: Example, change: tuple[str, str], message: str) -> None:
    with pytest.raises((ConfigError, NetError), match=message):
        run_of(example, SOLVER.replace(*change))


def test_testing_needs_no_solver(example: Example) -> None:
    config = scored_run(example.net, example.data, ["run.workers=3"]).config
    assert config.net.prototxt == example.net.read_text()
    assert (config.run.workers, config.data.validation_path) == (3, str(example.directory / "data"))
