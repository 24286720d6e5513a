"""The original's programs: what they train and on which rows, and that they run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digits import read_events
from formats import cifar_directory, random_rows, write_mnist
from image_files import jpeg, write_tar
from original_log import parse
from places import REPOSITORY
from sparknet.cli import apps
from sparknet.cli.main import _parser
from sparknet.cli.train import _start_from
from sparknet.data.sources.opening import open_sources
from sparknet.training.objectives.build_objective import check_net

APPS = REPOSITORY / "apps"


def app(name):
    spec = importlib.util.spec_from_file_location(name, APPS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.APP


@pytest.fixture
def started(monkeypatch):
    """What a program would train: the run that its command comes to."""

    def run(name, *arguments):
        commands = []
        monkeypatch.setattr(apps, "main", lambda command: commands.append(command) or 0)
        assert apps.run_app(app(name), list(arguments)) == 0
        (command,) = commands
        parsed = _parser().parse_args(command)
        return _start_from(parsed)

    return run


def recipe(solver):
    return solver.batch_size, solver.learning_rate, solver.momentum, solver.weight_decay


def test_cifar_is_trained_as_the_original_did(started, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARKNET_HOME", str(tmp_path))
    cifar_directory(tmp_path / "data" / "cifar10")
    config = started("cifar_app", "--master=yarn", "3").config
    assert (config.run.workers, config.run.rounds, config.cluster.master) == (3, 300, "yarn")
    assert (config.run.eval_every, config.run.eval_first) == (5, True)
    solver = config.solver
    assert (solver.batch_size, solver.learning_rate, solver.momentum, solver.weight_decay) == (
        100,
        0.001,
        0.9,
        0.004,
    )
    assert (config.solver.policy, config.sync.local_steps, config.sync.strategy) == ("fixed", 10, "average")
    assert (config.data.mean, config.data.scale, config.net.name) == ("none", 1.0, "cifar10_quick")
    assert open_sources(config.data).train.listed.partitions


def test_mnist_is_trained_as_the_original_did(started, tmp_path):
    for stem, rows in (("train", 40), ("t10k", 20)):
        write_mnist(tmp_path, f"{stem}", *random_rows(rows, (1, 28, 28)))
    start = started("mnist_app", "5", "--data", str(tmp_path), "--rounds", "7", "--set", "sync.local_steps=4")
    config = start.config
    assert (config.run.workers, config.run.rounds, config.sync.local_steps) == (5, 7, 4)
    solver = config.solver
    assert (solver.batch_size, solver.learning_rate, solver.momentum, solver.weight_decay) == (
        64,
        0.01,
        0.9,
        0.0005,
    )
    # Once an epoch of 60,000 rows.
    assert (config.solver.policy, config.solver.gamma, config.solver.step_size) == ("step", 0.95, 60_000 // 64)
    # x / 255 - 0.5
    pixels = np.array([0.0, 255.0])
    assert np.allclose((pixels - config.data.mean_values[0]) * config.data.scale, [-0.5, 0.5])
    net = start.objective(open_sources(config.data).schema(config.data)).module
    shapes = {name: tuple(weights.shape) for name, weights in net.named_parameters() if weights.dim() > 1}
    assert sorted(shapes.values()) == sorted([(32, 1, 5, 5), (64, 32, 5, 5), (512, 3136), (10, 512)])


def test_imagenet_is_read_and_trained_as_the_original_did(started):
    config = started("imagenet_app", "5", "my-bucket").config
    assert config.data.path == "s3://my-bucket/ILSVRC2012_img_train/train.000*.tar"
    assert config.data.validation_path == "s3://my-bucket/ILSVRC2012_img_val/val.00*.tar"
    assert (config.run.workers, config.run.eval_every, config.sync.local_steps) == (5, 10, 50)
    solver = config.solver
    assert (solver.batch_size, solver.learning_rate, solver.momentum, solver.weight_decay) == (
        256,
        0.01,
        0.9,
        0.0005,
    )
    assert (config.solver.policy, config.solver.gamma, config.solver.step_size) == ("step", 0.1, 100_000)
    data = config.data
    assert (data.resize, data.crop, data.mean, data.mirror) == ((256, 256), 227, "image", False)
    check_net(started("imagenet_app", "5", "s3://my-bucket/").recipe)


def test_a_prefix_says_how_much_of_imagenet_is_read(started, tmp_path):
    """Of a directory, which holds what the bucket would."""
    labels = []
    for split, names in {"train": ["train.00001", "train.00101"], "val": ["val.001"]}.items():
        place = tmp_path / f"ILSVRC2012_img_{split}"
        place.mkdir()
        for number, name in enumerate(names):
            write_tar(place / f"{name}.tar", {f"{name}.JPEG": jpeg(number)})
        labels = [f"{name}.JPEG 3\n" for name in names]
        (tmp_path / f"{split}.txt").write_text("".join(labels))

    def archives(*more):
        config = started("imagenet_app", "1", "--data", str(tmp_path), *more).config
        opened = open_sources(config.data)
        return sorted(Path(one.uri).name for one in opened.train.listed.partitions)

    assert archives() == ["train.00001.tar"]
    assert archives("--train-prefix", "train.") == ["train.00001.tar", "train.00101.tar"]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("cifar_app", [], "required: N"),
        ("cifar_app", ["0"], "'0' is not a whole number of at least 1"),
        ("imagenet_app", ["5"], "BUCKET is '' and --data ''; exactly one"),
        ("imagenet_app", ["5", "bucket", "--data", "/x"], "BUCKET is 'bucket' and --data '/x'; exactly one"),
    ],
)
def test_wrong_words_are_told(name, arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        apps.run_app(app(name), arguments)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_program_that_spark_has_copied_finds_its_configuration_here(started, tmp_path, monkeypatch, capsys):
    alone = apps.App(file=str(tmp_path / "staging" / "app.py"), about="", config="own.toml", rounds=1, data="data")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        apps.run_app(alone, ["1"])
    assert "give it as spark-submit --files own.toml" in capsys.readouterr().err
    (tmp_path / "own.toml").touch()
    assert apps._shipped(alone, "own.toml") == tmp_path / "own.toml"


@pytest.mark.spark
@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_program_runs_under_python_from_another_directory(tmp_path):
    for stem, rows in (("train", 64), ("t10k", 20)):
        write_mnist(tmp_path / "data" / "mnist", stem, *random_rows(rows, (1, 28, 28)))
    command = [sys.executable, APPS / "mnist_app.py", "1", "--rounds", "2", "--set", "solver.batch_size=8"]
    settings = ["--set", "sync.local_steps=2", "--run-dir", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "SPARKNET_HOME"}
    done = subprocess.run(
        [*map(str, command), *settings],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_events(tmp_path / "run")[-1]["event"] == "run_finished"
    (log,) = (tmp_path / "run").glob("training_log_*.txt")
    read = parse(log.read_text())
    assert (read.train_rows, read.test_rows, list(read.accuracy)) == (64, 20, [0, 2])
    assert len(read.weight) == 2


def featurizer_command(monkeypatch, *arguments):
    commands = []
    monkeypatch.setattr(apps, "main", lambda command: commands.append(command) or 0)
    assert apps.run_featurizer(str(APPS / "featurizer_app.py"), list(arguments)) == 0
    return _parser().parse_args(commands[0])


def test_features_are_those_of_the_last_finished_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARKNET_HOME", str(tmp_path / "home"))
    for name in ("cifar-app-20260101-000000", "cifar-app-20260102-000000", "cifar-app-20260103-000000"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("cifar-app-20260101-000000", "cifar-app-20260102-000000"):
        (tmp_path / "runs" / name / "result.json").touch()
    command = featurizer_command(monkeypatch, "3")
    assert (command.command, command.run_dir) == ("featurize", "runs/cifar-app-20260102-000000")
    assert (list(command.blobs), command.to, command.workers) == (["ip1"], "features.parquet", 3)
    assert command.data == str(tmp_path / "home" / "data" / "cifar10")
    other = featurizer_command(
        monkeypatch,
        "2",
        "--run",
        "s3://b/run",
        "--blob",
        "pool3",
        "--to",
        "x.csv",
        "--master",
        "yarn",
        "--data",
        "d",
    )
    assert (other.run_dir, list(other.blobs), other.to) == ("s3://b/run", ["pool3"], "x.csv")
    assert (other.master, other.data) == ("yarn", "d")


def test_features_want_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        apps.run_featurizer("featurizer_app.py", ["2"])
    assert ended.value.code == 2
    assert "has no finished run of cifar_app.py; run that first, or name a --run" in capsys.readouterr().err
