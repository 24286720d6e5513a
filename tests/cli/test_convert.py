"""`sparknet data to-lmdb` and `to-parquet` as users meet them, and other rows for `sparknet test`."""

import io
import re
import shutil
import tarfile

import cv2
import lmdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from caffe_example import TRAIN_TEST, write_example
from cli_process import CONFIGS, Host, result_of, table_of
from encoded import jpeg
from formats import cifar_directory, random_rows
from sparknet.caffe.schema import Datum
from sparknet.cli import convert as command
from sparknet.cli.main import main

spark = pytest.mark.spark


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cifar")
    cifar_directory(directory, rows=30, batches=2, test_rows=17)
    return directory


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Runs commands with a session that is there already."""
    host = Host(tmp_path_factory.mktemp("warm"), with_spark=True)
    yield host
    host.close()


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A conversion that must end with a code and a message before Spark starts, and make nothing."""

    def no_spark(*arguments, **options):
        raise AssertionError("Spark was started")

    monkeypatch.setattr(command, "session_for", no_spark)
    monkeypatch.chdir(tmp_path)

    def check(*arguments, code, told):
        before = sorted(tmp_path.rglob("*"))
        assert main(["data", *map(str, arguments)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(f"sparknet: error: .*{told}.*\n", err), err
        assert sorted(tmp_path.rglob("*")) == before

    return check


BAD_COMMANDS = {
    "a kind that is not": (["cifar:x"], 2, "did you mean cifar10"),
    "a source that is not": (["cifar10:missing"], 1, "missing: no such file, directory or glob match"),
    "no place": (["CIFAR", "--to", ""], 2, "--to is ''; .*give a directory or URI"),
    "another section": (["CIFAR", "--set", "run.rounds=3"], 2, r"only data\.\* and cluster\.\* settings"),
    "a key that is not": (["CIFAR", "--set", "data.lable=x"], 2, "data.lable is not a known key; did you mean"),
    "workers of a cluster": (["CIFAR", "--workers", 3, "--master", "spark://h:1"], 2, "--workers 3 and the master"),
    "tests of digits": (["digits", "--split", "test"], 2, "--split test and SOURCE digits are given; only dir"),
    "tests of a table": (["csv:x.csv", "--split", "test"], 2, "name the test rows as SOURCE, and leave --split"),
    "files of a size": (["image_tar:x", "--encoded", "--resize", "8x9"], 2, "--encoded and --resize 8x9 are given"),
}


@pytest.mark.parametrize("action", ["to-lmdb", "to-parquet"])
@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_what_is_wrong_is_told_before_spark_starts(name, action, refused, cifar):
    words, code, told = BAD_COMMANDS[name]
    words = [f"cifar10:{cifar}" if word == "CIFAR" else word for word in words]
    to = [] if "--to" in words else ["--to", "made"]
    refused(action, *words, *to, code=code, told=told)


def test_a_place_that_is_taken_is_told_before_spark_starts(refused, cifar, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").touch()
    for place in ("file", "made"):
        told = f"{tmp_path / place}: there is something already; remove it, or give another place: --to"
        refused("to-lmdb", f"cifar10:{cifar}", "--to", place, code=1, told=re.escape(told))


@spark
def test_a_caffe_user_needs_no_more_than_the_databases(warm, tmp_path):
    net = TRAIN_TEST.replace("examples/cifar10/cifar10_", "")
    example = write_example(tmp_path / "caffe", net=net)
    here = example.directory
    made = warm.run("data", "to-lmdb", example.data, "--to", "train_lmdb", cwd=here)
    assert (made.code, made.out.splitlines()[0]) == (0, "rows           160 in 1 database"), made.err
    made = warm.run("data", "to-lmdb", example.data, "--split", "test", "--to", "test_lmdb", cwd=here)
    assert (made.code, made.out.splitlines()[0]) == (0, "rows           40 in 1 database"), made.err

    done = warm.run("train", "--solver", example.solver, "--workers", 2, "--run-dir", "run", cwd=here)
    assert done.code == 0, done.err
    assert "160 training rows, 40 held out" in done.out
    weights = here / "snapshots" / "cifar10_quick_iter_24.caffemodel"
    test = ["test", "--model", example.net, "--weights", weights]
    scores = [
        [line for line in warm.run(*test, *data, cwd=here).out.splitlines() if " s  " not in line]
        for data in ([], ["--data", "lmdb:test_lmdb"], ["--data", example.data])
    ]
    assert len(scores[0]) == 3
    assert scores[0] == scores[1] == scores[2]

    shutil.rmtree(here / "test_lmdb")
    warm.run(*test, cwd=here).refused(2, "layer 'cifar' of .* names 'test_lmdb', which is not here: give --data")


@spark
def test_parquet_of_a_table_is_told_and_written(warm, tmp_path):
    rows = "\n".join(f"{age},{word},{label}" for age, word, label in [(31, "a", "no"), (44, "b", "yes")] * 4)
    table = tmp_path / "table.csv"
    table.write_text(f"age,word,bought\n{rows}\n")
    sets = ["--set", "data.label=bought", "--set", 'data.features=["*"]']
    done = warm.run("data", "to-parquet", f"csv:{table}", "--to", tmp_path / "made", "--keys", 3, *sets)
    assert (done.code, done.out.splitlines()[0]) == (0, "rows           8 in 3 keys"), done.err
    made = pq.read_table(tmp_path / "made")
    ids, keys = (made.column(name).to_pylist() for name in ("id", "key"))
    assert sorted(ids) == list(range(8))
    assert all(key == row % 3 for row, key in zip(ids, keys, strict=True))
    assert {tuple(cell) for cell in made.column("data").to_pylist()} == {(31, 1, 0), (44, 0, 1)}


def write_tars(directory, labels, *, flip=False):
    """Forty JPEGs, dark and bright, in one tar file, with their labels, or with each other's, in a file beside."""
    directory.mkdir()
    pixels = random_rows(40, (3, 24, 24), seed=5)[0] // 4
    names = [f"{number:03}.jpg" for number in range(40)]
    with tarfile.open(directory / "images.tar", "w") as tar:
        for number, name in enumerate(names):
            data = jpeg((pixels[number] + np.uint8(150 * (number % 2))).astype(np.uint8))
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    lines = [f"{name} {(number + flip) % 2}" for number, name in enumerate(names)]
    (directory / labels).write_text("\n".join(lines) + "\n")


@spark
def test_other_rows_come_with_their_own_labels(warm, tmp_path):
    write_tars(tmp_path / "train", "train.txt")
    write_tars(tmp_path / "held", "mine.txt")
    write_tars(tmp_path / "other", "val.txt", flip=True)
    shutil.copy(tmp_path / "held" / "mine.txt", tmp_path / "other" / "right.txt")
    sets = [
        "data.source=image_tar",
        f"data.path={tmp_path / 'train'}",
        f"data.validation_path={tmp_path / 'held'}",
        f"data.validation_labels={tmp_path / 'held' / 'mine.txt'}",
        "data.crop=20",
        "run.epochs=",
        "run.rounds=6",
        "solver.batch_size=10",
        "solver.learning_rate=0.003",
        "solver.policy=fixed",
        "solver.step_size=",
    ]
    run_dir = tmp_path / "run"
    words = [word for setting in sets for word in ("--set", setting)]
    done = warm.run("train", CONFIGS / "cifar10_quick.toml", "--workers", 2, "--run-dir", run_dir, *words)
    assert done.code == 0, done.err
    right = result_of(run_dir)["accuracy"]
    assert right > 0.5

    assert table_of(warm.run("test", run_dir))["accuracy"] == f"{100 * right:.2f} %"
    other = warm.run("test", run_dir, "--data", tmp_path / "other")
    assert table_of(other)["accuracy"] == f"{100 * (1 - right):.2f} %"
    named = ["--set", f"data.validation_labels={tmp_path / 'other' / 'right.txt'}"]
    assert table_of(warm.run("test", run_dir, "--data", tmp_path / "other", *named)) | {
        "time": "",
        "speed": "",
    } == table_of(warm.run("test", run_dir, "--data", tmp_path / "held", *named)) | {
        "rows": f"40 from {tmp_path / 'other'}",
        "time": "",
        "speed": "",
    }
    warm.run("test", run_dir, "--data", tmp_path / "train").refused(1, "no label file .*val.txt.*data.labels")


@spark
@pytest.mark.parametrize("action", ["to-lmdb", "to-parquet"])
def test_windows_have_the_channels_order_of_what_is_written(warm, tmp_path, action):
    """Caffe's databases hold blue first, tables red: the source itself decodes the images."""
    pixels = np.zeros((12, 12, 3), np.uint8)
    pixels[..., 0] = 200  # blue, as OpenCV writes it
    cv2.imwrite(str(tmp_path / "blue.png"), pixels)
    (tmp_path / "list.txt").write_text("# 0 blue.png 3 12 12 2\n3 0.9 0 0 5 5\n1 0.1 2 2 9 9\n")
    made = warm.run(
        "data", action, "windows:list.txt", "--to", "made", "--set", "data.windows.size=4",
        "--set", "data.windows.foreground_fraction=0.5", cwd=tmp_path,
    )  # fmt: skip
    assert made.code == 0, made.err
    if action == "to-lmdb":
        with lmdb.open(str(tmp_path / "made"), readonly=True, lock=False) as database, database.begin() as rows:
            found = [Datum.FromString(value) for _, value in rows.cursor()]
        data, labels, blue = [list(one.data) for one in found], [one.label for one in found], 0
    else:
        rows = pq.read_table(tmp_path / "made").to_pylist()
        data, labels, blue = [list(row["data"]) for row in rows], [row["label"] for row in rows], 2
    assert sorted(labels) == [0, 3]
    expected = np.zeros((3, 4, 4), np.uint8)
    expected[blue] = 200
    assert data == [expected.ravel().tolist()] * 2
