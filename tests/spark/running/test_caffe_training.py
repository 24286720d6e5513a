"""Caffe's own CIFAR-10 example through Spark with unchanged files: train, resume, go on from a snapshot, test."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from safetensors.numpy import load_file

from caffe_example import SOLVER, Example, learnable_rows, write_example
from digits import Story, open_test_session, read_events
from formats import write_cifar
from sparknet.caffe import CaffeNet, NetSpec
from sparknet.caffe.description.spec import PhaseName
from sparknet.caffe.prototxt import parse
from sparknet.caffe.prototxt.tokens import Tokens
from sparknet.caffe.solver.caffe_solver import CaffeSolver
from sparknet.caffe.solver.solverstate import read_state
from sparknet.cli.main import main
from sparknet.config import load_config, override
from sparknet.spark.running.run import train
from sparknet.training.run_files.run_dir import RunDir

pytestmark = pytest.mark.spark

SETTINGS = ["--workers", "2", "--set", "sync.local_steps=4", "--set", "cluster.heartbeat_timeout_seconds=20.0"]


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2]")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return write_example(tmp_path_factory.mktemp("caffe") / "example")


@dataclass
class Shell:
    """Runs commands in one directory, in this process, with the session that is there."""

    place: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: object, code: int = 0) -> str:
        self.capsys.readouterr()
        got = main([str(argument) for argument in arguments])
        out, err = self.capsys.readouterr()
        assert got == code, err + out
        return out

    def train(self, example: Example, run_dir: str, *arguments: object) -> list[dict]:
        files = ["--solver", example.solver, "--data", example.data, "--run-dir", run_dir]
        store = ["--set", f"data.store={example.directory / 'store'}"]
        self.run("train", *files, *SETTINGS, *store, *arguments)
        return read_events(self.place / run_dir)


@pytest.fixture(scope="module")
def place(spark: SparkSession, example: Example, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The current directory of the module's commands, with a finished run in `run`."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        files = ["--solver", str(example.solver), "--data", example.data, "--run-dir", "run"]
        assert main(["train", *files, *SETTINGS, "--set", f"data.store={example.directory / 'store'}"]) == 0
    return place


@pytest.fixture
def shell(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(place)
    return Shell(place, capsys)


def of(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["event"] == kind]


def scores(printed: str) -> dict[str, float]:
    """What `sparknet test` printed as Caffe does."""
    return {name: float(value) for name, value in re.findall(r"^(\w+)(?: =|:) (\S+)", printed, flags=re.MULTILINE)}


def test_it_trains_as_the_solver_says(place: Path) -> None:
    events = read_events(place / "run")
    (started,) = of(events, "run_started")
    assert (started["net"], started["parameters"], started["local_steps"]) == ("CIFAR10_quick", 145578, 4)
    losses = [event["loss"] for event in of(events, "round")]
    assert len(losses) == 24 / 4
    assert losses[0] == pytest.approx(np.log(10), abs=0.05)
    assert losses[-1] < losses[0] / 3
    tests = of(events, "evaluation")
    assert [event["round"] for event in tests] == [0, 2, 4, 6], "before the first iteration, then every 8"
    assert {event["rows"] for event in tests} == {4 * 10}
    assert tests[-1]["accuracy"] > tests[0]["accuracy"] + 0.3
    assert "top5" not in tests[-1]
    assert [event["learning_rate"] for event in of(events, "round")] == pytest.approx([0.001] * 6)


def test_snapshots_are_named_as_caffe_names_them(place: Path, example: Example) -> None:
    written = {path.name for path in (place / "snapshots").iterdir()}
    wanted = {
        f"cifar10_quick_iter_{iteration}.{kind}"
        for iteration in (8, 16, 24)
        for kind in ("caffemodel", "solverstate")
    }
    assert written >= wanted
    assert not [name for name in written if name.startswith(".")]
    told = of(read_events(place / "run"), "snapshot")
    assert [event["iteration"] for event in told] == [8, 16, 24]
    state = read_state(place / "snapshots" / "cifar10_quick_iter_16.solverstate")
    assert (state.iteration, state.learned_net) == (16, str(place / "snapshots/cifar10_quick_iter_16.caffemodel"))
    assert all(np.abs(history).max() > 0 for history in state.history)


def test_caffes_own_solver_goes_on_from_a_snapshot(
    place: Path, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    solver = CaffeSolver.from_prototxt(example.solver, input_shapes={"data": (20, 3, 32, 32)})
    solver.restore("snapshots/cifar10_quick_iter_16.solverstate")
    assert solver.iteration == 16
    weights = load_file(place / "run" / "checkpoints" / "round-000004" / "weights.safetensors")
    for name, blobs in solver.net.weights().items():
        np.testing.assert_array_equal(blobs[0].detach().numpy(), weights[f"{name}.weight"])
    rows = slice(0, 20)
    loss = solver.step([{"data": example.images[rows] - example.mean, "label": example.labels[rows]}])[0]
    assert loss == pytest.approx(of(read_events(place / "run"), "round")[4]["loss"], abs=0.5)


def test_others_may_read_all_that_a_run_leaves(place: Path) -> None:
    umask = os.umask(0o022)
    os.umask(umask)
    files = [path for part in ("run", "snapshots") for path in (place / part).rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds >= {".safetensors", ".json", ".jsonl", ".toml", ".txt", ".caffemodel", ".solverstate"}
    wanted = 0o044 & ~umask
    assert [str(path) for path in files if path.stat().st_mode & 0o044 != wanted] == []


def test_the_run_directory_needs_none_of_the_files(place: Path, example: Example) -> None:
    config = load_config(place / "run" / "config.toml")
    assert config.net.prototxt == example.net.read_text()
    solver = example.solver.read_text()
    assert config.solver.prototxt == solver.replace('"snapshots/', f'"{place}/snapshots/')
    run = config.run
    assert (run.iterations, run.eval_iterations, run.checkpoint_iterations) == (24, 8, 8)
    assert (config.run.eval_batches, config.run.eval_first, config.run.seed) == (4, True, 3)
    assert config.solver.batch_size == 20


def test_testing_the_run_gives_its_last_result(shell: Shell) -> None:
    result = json.loads((shell.place / "run" / "result.json").read_text())
    printed = shell.run("test", "run")
    assert f"accuracy       {100 * result['accuracy']:.2f} %" in printed
    assert f"loss           {result['loss']:.4f}" in printed
    assert "top-5" not in printed


def test_testing_files_prints_what_caffe_prints(shell: Shell, example: Example) -> None:
    files = [
        "--model",
        example.net,
        "--weights",
        "snapshots/cifar10_quick_iter_8.caffemodel",
        "--data",
        example.data,
    ]
    expected = of(read_events(shell.place / "run"), "evaluation")[1]
    printed = shell.run("test", *files)
    found = scores(printed)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["Loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(expected["accuracy"], rel=1e-5)
    assert printed.splitlines()[-1] == f"loss = {found['loss']:g} (* 1 = {found['loss']:g} loss)"
    one = scores(shell.run("test", *files, "--iterations", 1))
    assert round(one["accuracy"] * 10, 4) in range(11), "one batch of 10 rows"
    assert "tested 40 rows" in shell.run("test", *files, "--iterations", 4)
    # Caffe's data layers begin anew behind the last row.
    wrapped = shell.run("test", *files, "--iterations", 6)
    assert "tested 40 rows, gone through 1.5 times (60 looks)" in wrapped


def test_an_interrupted_run_goes_on_without_its_files(shell: Shell, spark: SparkSession, tmp_path: Path) -> None:
    example = write_example(tmp_path / "example")
    arguments = ["--set", "run.checkpoint_every=1", "--set", "run.rounds=8"]
    config = config_of(shell, example, tmp_path, *arguments)
    story, run_dir = Story(), tmp_path / "run"

    def interrupt() -> None:
        raise KeyboardInterrupt

    story.at_round("interrupt", 3, interrupt)
    with RunDir.create(run_dir, config) as opened, pytest.raises(KeyboardInterrupt):
        train(config, opened, spark=spark, observers=[story.observe])
    for path in (example.net, example.solver, tmp_path / "example" / "mean.binaryproto"):
        path.unlink()
    shell.run("resume", run_dir)
    events = read_events(run_dir)
    (resumed,) = of(events, "run_resumed")
    assert resumed["round"] >= 2
    rounds = [event["round"] for event in of(events, "round")]
    assert rounds[-1] == 8
    assert rounds[rounds.index(resumed["round"] + 1, 3) :] == list(range(resumed["round"] + 1, 9))
    assert (shell.place / "snapshots" / "cifar10_quick_iter_32.solverstate").exists()


def test_tests_snapshots_and_the_end_come_at_their_iterations(shell: Shell, tmp_path: Path) -> None:
    """Whatever a round has; and a run of rounds of another length goes on from any of its snapshots."""
    solver = SOLVER
    for key, value in (("max_iter", 25), ("snapshot", 7), ("test_interval", 9)):
        solver = re.sub(rf"^{key}: \d+$", f"{key}: {value}", solver, flags=re.MULTILINE)
    example = write_example(tmp_path / "example", solver=solver)
    snapshots = shell.place / "snapshots"

    def trained(name: str, *more: object) -> tuple[list[int], list[int], list[str]]:
        shutil.rmtree(snapshots, ignore_errors=True)
        events = shell.train(example, name, "--set", "sync.local_steps=10", *more)
        at = {0: 0} | {event["round"]: event["iteration"] for event in of(events, "round")}
        tested = [at[event["round"]] for event in of(events, "evaluation")]
        states = sorted(path.name for path in snapshots.glob("*.solverstate"))
        return list(at.values()), tested, states

    def states(*iterations: int) -> list[str]:
        return sorted(f"cifar10_quick_iter_{iteration}.solverstate" for iteration in iterations)

    assert trained("exact") == ([0, 7, 9, 14, 18, 21, 25], [0, 9, 18, 25], states(7, 14, 21, 25))
    last = read_state(snapshots / states(25)[0])
    assert last.iteration == 25
    kept = shutil.copytree(snapshots, tmp_path / "kept")
    found = trained("goes-on", "--snapshot", kept / states(14)[0], "--set", "sync.local_steps=3")
    assert found == ([0, 17, 18, 21, 24, 25], [18, 25], states(21, 25))
    by_rounds = ("--set", "run.rounds=2", "--set", "run.eval_every=1", "--set", "run.checkpoint_every=2")
    assert trained("rounds", *by_rounds) == ([0, 10, 20], [0, 10, 20], states(20))


def test_a_worker_that_dies_costs_its_round(shell: Shell, spark: SparkSession, tmp_path: Path) -> None:
    example = write_example(tmp_path / "example")
    config = config_of(shell, example, tmp_path, "--set", "run.rounds=60", "--set", "run.eval_every=30")
    config = override(config, ["cluster.heartbeat_timeout_seconds=2.0"])
    story = Story()
    story.at_round("kill", 5, story.kill(1))
    with RunDir.create(tmp_path / "run", config) as opened:
        result = train(config, opened, spark=spark, observers=[story.observe])
    assert "kill" in story.fired
    assert (result.rounds, result.failures) == (60, 1)
    assert [event["round"] for event in story.of("round")] == list(range(1, 61))
    assert {event["rows"] for event in story.of("evaluation")} == {40}
    assert result.accuracy is not None
    assert result.accuracy > 0.9


def config_of(shell: Shell, example: Example, tmp_path: Path, *arguments: str):
    """The configuration that the command line resolves to: it is written before anything starts."""
    from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run

    words = [*SETTINGS, *arguments, "--set", f"data.store={tmp_path / 'store'}"]
    settings = ["run.workers=2", *(word for word in words if "=" in word)]
    return solver_run(CaffeFiles(solver=example.solver), example.data, settings).config


def test_each_file_is_read_once_and_each_net_built_once(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the driver: workers are processes of their own."""
    example = write_example(tmp_path / "example")
    read, built = Counter[str](), Counter[str]()
    parser, init = parse._Parser, CaffeNet.__init__

    def counted_parser(tokens: Tokens) -> parse._Parser:
        read[tokens.source] += 1
        return parser(tokens)

    def counted_init(net: CaffeNet, spec: NetSpec, phase: PhaseName = "TRAIN", **options: Any) -> None:
        built[phase] += 1
        init(net, spec, phase, **options)

    monkeypatch.setattr(parse, "_Parser", counted_parser)
    monkeypatch.setattr(CaffeNet, "__init__", counted_init)
    events = shell.train(example, "counted", "--set", "run.rounds=1")
    assert of(events, "run_finished")
    assert read == {str(example.solver): 1, str(example.net): 1}
    assert built == {"TRAIN": 1, "TEST": 1}


def test_a_snapshot_is_gone_on_from(shell: Shell, example: Example) -> None:
    snapshot = shell.place / "snapshots" / "cifar10_quick_iter_8.solverstate"
    kept = shutil.copytree(shell.place / "snapshots", shell.place / "kept")  # the run below writes its own
    events = shell.train(example, "from-snapshot", "--snapshot", kept / snapshot.name)
    assert [event["round"] for event in of(events, "round")] == [3, 4, 5, 6]
    assert [event["round"] for event in of(events, "evaluation")] == [4, 6]
    first = of(events, "round")[0]["loss"]
    assert first == pytest.approx(of(read_events(shell.place / "run"), "round")[2]["loss"], abs=0.3)
    assert not of(events, "run_resumed")


def test_weights_are_a_beginning(shell: Shell, example: Example) -> None:
    before = of(read_events(shell.place / "run"), "evaluation")[1]
    weights = shell.place / "snapshots" / "cifar10_quick_iter_8.caffemodel"
    copy = shutil.copy(weights, shell.place / "start.caffemodel")
    events = shell.train(example, "fine-tuned", "--weights", copy, "--set", "run.rounds=1")
    first, last = of(events, "evaluation")
    assert (first["round"], last["round"]) == (0, 1)
    assert first["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert not [event for event in of(events, "note") if event.get("level") == "warning"]


def test_layers_that_the_weights_lack_are_named(shell: Shell, tmp_path: Path) -> None:
    example = write_example(tmp_path / "example")
    example.net.write_text(example.net.read_text().replace('name: "ip2"', 'name: "ip2_mine"'))
    weights = shell.place / "snapshots" / "cifar10_quick_iter_8.caffemodel"
    copy = shutil.copy(weights, tmp_path / "start.caffemodel")
    events = shell.train(example, "other-classes", "--weights", copy, "--set", "run.rounds=1")
    (told,) = [event["message"] for event in of(events, "note") if event.get("level") == "warning"]
    assert told == f"{copy} has no weights for layers ip2_mine: they begin as their fillers make them"


def test_labels_beyond_the_nets_scores_are_named(shell: Shell, tmp_path: Path) -> None:
    example = write_example(tmp_path / "example")
    example.net.write_text(example.net.read_text().replace("num_output: 10", "num_output: 5"))
    files = ["--solver", example.solver, "--data", example.data, "--run-dir", tmp_path / "run"]
    shell.capsys.readouterr()
    assert main([*map(str, ["train", *files]), *SETTINGS]) == 1
    message = shell.capsys.readouterr().err
    assert re.search(
        r"layer 'loss' \(SoftmaxWithLoss\): column label has \d in row .* from 0 to 4.*num_output", message
    )
    # Nothing was made, nor Spark started: the first rows tell.
    assert not (tmp_path / "run").exists()


def test_the_training_rows_mean_replaces_a_missing_file(shell: Shell, tmp_path: Path) -> None:
    example = write_example(tmp_path / "example")
    (tmp_path / "example" / "mean.binaryproto").unlink()
    events = shell.train(example, "own-mean", "--set", "data.mean=image", "--set", "run.rounds=1")
    same = of(read_events(shell.place / "run"), "evaluation")[0]
    assert of(events, "evaluation")[0]["loss"] == pytest.approx(same["loss"], rel=1e-4)


def test_one_file_of_rows_with_a_drawn_share_cut_and_mirrored(shell: Shell, tmp_path: Path) -> None:
    example = write_example(tmp_path / "example", solver=SOLVER.replace("snapshots/", f"{tmp_path}/snapshots/"))
    cut = "transform_param {\n    crop_size: 28\n    mirror: true\n    scale: 0.5\n"
    example.net.write_text(example.net.read_text().replace("transform_param {\n", cut))
    path = write_cifar(tmp_path / "rows.bin", *learnable_rows(60, seed=4))
    files = ["--solver", example.solver, "--data", f"cifar10:{path}", "--run-dir", tmp_path / "run"]
    share = ["--set", "data.validation_fraction=0.5", "--set", "run.rounds=2"]
    shell.run("train", *files, *SETTINGS, *share)
    (started,) = of(read_events(tmp_path / "run"), "run_started")
    assert started["training_rows"] + started["validation_rows"] == 60
    kept = load_file(tmp_path / "run" / "model" / "preprocess.safetensors")
    assert {name: kept[f"image/{name}"].item() for name in ("scale", "crop", "mirror")} == {
        "scale": 0.5,
        "crop": 28,
        "mirror": 1,
    }
    assert kept["image/mean"].shape == (3, 32, 32)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"loss           {result['loss']:.4f}" in shell.run("test", tmp_path / "run")


def test_rows_of_a_table_score_as_those_of_a_file(shell: Shell, example: Example, tmp_path: Path) -> None:
    images, labels = learnable_rows(40, seed=2)
    table = pa.table({"image": [image.tobytes() for image in images], "label": labels})
    pq.write_table(table, tmp_path / "rows.parquet")
    weights = "snapshots/cifar10_quick_iter_8.caffemodel"
    files = ["--model", example.net, "--weights", weights]
    shape = ["--set", "data.shape=[3, 32, 32]"]
    found = scores(shell.run("test", *files, "--data", f"parquet:{tmp_path / 'rows.parquet'}", *shape))
    assert found == pytest.approx(scores(shell.run("test", *files, "--data", example.data)), rel=1e-4)


def test_a_configuration_file_may_name_the_files(shell: Shell, example: Example, tmp_path: Path) -> None:
    """With torch's optimiser and DiLoCo: a Caffe net needs no Caffe solver."""
    config = tmp_path / "run.toml"
    config.write_text(
        f"""
        [run]
        workers = 2
        rounds = 2
        [data]
        source = "cifar10"
        path = "{example.directory / "data"}"
        validation_path = "{example.directory / "data"}"
        [net]
        prototxt = "{example.net}"
        [solver]
        batch_size = 20
        learning_rate = 0.001
        [sync]
        strategy = "diloco"
        local_steps = 2
        [cluster]
        heartbeat_timeout_seconds = 20.0
        """
    )
    shell.run("train", config, "--run-dir", tmp_path / "run")
    events = read_events(tmp_path / "run")
    assert not of(events, "snapshot")
    assert [(event["round"], event["rows"]) for event in of(events, "evaluation")] == [(2, 40)]
    kept = (tmp_path / "run" / "config.toml").read_text()
    assert "CIFAR10_quick" in kept
