"""Images of several sizes, of which a square is cut: trained by two workers, resumed, tested, and refused."""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from digits import open_test_session, read_events
from encoded import png
from sparknet.caffe.weights.mean_image import write_mean
from sparknet.cli.main import main
from sparknet.config import load_config
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources.datum import write
from sparknet.spark.running.run import train
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.run_files.run_dir import RunDir

pytestmark = pytest.mark.spark

SIZES = ((9, 7), (6, 12), (8, 8), (11, 6))
SIDE = 6
SOLVER = """
net: "net.prototxt"
base_lr: 0.01
lr_policy: "fixed"
max_iter: 4
test_iter: 3
test_interval: 4
snapshot_prefix: "snapshots/net"
random_seed: 1
"""


def picture(row: int) -> np.ndarray:
    """uint8 [3, height, width] of a size that goes round."""
    return np.random.default_rng(row).integers(0, 256, (3, *SIZES[row % len(SIZES)]), dtype=np.uint8)


def centre_means(rows: range, taken_off: float = 0.0) -> list[float]:
    """Of each image the mean of its middle, in float64."""
    means: list[float] = []
    for row in rows:
        image = picture(row)
        y, x = (image.shape[1] - SIDE) // 2, (image.shape[2] - SIDE) // 2
        means.append(float(image[:, y : y + SIDE, x : x + SIDE].mean() - taken_off))
    return means


def database(path: str, rows: range, *, encoded: bool) -> None:
    with DatabaseWriter(Path(path)) as writer:
        for row in rows:
            image = picture(row)
            if encoded:
                # Databases hold blue first, and so do these pixels.
                writer.append(write(data=png(image[::-1]), label=row % 2, encoded=True))
            else:
                writer.append(write(shape=image.shape, data=image.tobytes(), label=row % 2))


def data_layer(phase: str, transform: str) -> str:
    return (
        f'layer {{ name: "rows" type: "Data" top: "data" top: "label" include {{ phase: {phase} }} '
        f"transform_param {{ {transform} }} "
        f'data_param {{ source: "{phase.lower()}_lmdb" batch_size: 4 backend: LMDB }} }}\n'
    )


def net(train_crop: str, test_crop: str) -> str:
    return (
        data_layer("TRAIN", train_crop)
        + data_layer("TEST", test_crop)
        + 'layer { name: "level" type: "Reduction" bottom: "data" top: "level" include { phase: TEST } '
        "reduction_param { operation: MEAN } }\n"
        'layer { name: "score" type: "InnerProduct" bottom: "data" top: "score" '
        'inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }\n'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }\n'
    )


INPUTS = (
    'layer { name: "rows" type: "Input" top: "image" top: "label" '
    "input_param { shape { dim: 4 dim: 3 dim: 6 dim: 6 } shape { dim: 4 } } }\n"
    'layer { name: "score" type: "InnerProduct" bottom: "image" top: "score" '
    'inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }\n'
    'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }\n'
    'layer { name: "level" type: "Reduction" bottom: "image" top: "level" include { phase: TEST } '
    "reduction_param { operation: MEAN } }\n"
)
CROP = f"crop_size: {SIDE} mean_value: 100"
NET = net(f"{CROP} mirror: true scale: 0.01", CROP)


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    session = open_test_session("local[2]")
    yield session
    session.stop()


class Place:
    """A directory in which commands are given, in this process, with the session that is there."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *words: object, code: int = 0) -> str:
        self._capsys.readouterr()
        got = main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        assert got == code, err + out
        return out + err

    def train(self, *words: object, run_dir: str = "run", code: int = 0) -> str:
        patience = ["--set", "cluster.heartbeat_timeout_seconds=20.0", "--set", "sync.local_steps=1"]
        return self.run("train", "--workers", 2, "--run-dir", run_dir, *patience, *words, code=code)


@pytest.fixture
def place(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)
    return Place(capsys)


def of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


@pytest.mark.parametrize("encoded", [True, False])
def test_a_caffe_net_cuts_each_record_by_itself(place: Place, spark: SparkSession, encoded: bool) -> None:
    database("train_lmdb", range(20), encoded=encoded)
    database("test_lmdb", range(20, 32), encoded=encoded)
    place.train("--solver", "solver.prototxt")
    events = read_events(Path("run"))
    assert of(events, "run_started")[0]["columns"] == ["image 3 x 6 x 6 or larger", "label"]
    assert of(events, "run_started")[0]["validation_rows"] == 12
    level = np.mean(centre_means(range(20, 32), 100))
    assert of(events, "evaluation")[-1]["outputs"]["level"] == pytest.approx(level, rel=1e-5)
    # On the prepared rows, on rows as they come, and gone round on again.
    assert f"{level:.4f}" in place.run("test", "run")
    files = ("test", "--model", "net.prototxt", "--weights", "snapshots/net_iter_4.caffemodel")
    (got,) = re.findall(r"^level = (\S+)", place.run(*files), flags=re.MULTILINE)
    assert float(got) == pytest.approx(level, rel=1e-5)
    (got,) = re.findall(r"^level = (\S+)", place.run(*files, "--iterations", 4), flags=re.MULTILINE)
    twice = np.mean(centre_means(range(20, 32), 100) + centre_means(range(20, 24), 100))
    assert float(got) == pytest.approx(twice, rel=1e-5)
    # Resumed half way it cuts the same places, and so ends where it would have ended.
    place.train("--solver", "solver.prototxt", "--set", "run.rounds=2", run_dir="broken")
    start = open_run(load_config(Path("run/config.toml"), []))
    with RunDir.reopen(Path("broken")) as opened:
        resumed = train(start, opened, spark=spark)
    assert of(read_events(Path("broken")), "run_resumed")[0]["round"] == 2
    assert resumed.weights_hash == of(events, "run_finished")[0]["weights_hash"]


@pytest.mark.parametrize("encoded", [True, False])
def test_what_needs_one_size_names_records_and_sizes(place: Place, encoded: bool) -> None:
    database("train_lmdb", range(20), encoded=encoded)
    database("test_lmdb", range(20, 32), encoded=encoded)
    sizes = (
        r"\(00000001\) is an image of 6 x 12 \(height x width\); 9 x 7 is the size of the others: set data.resize"
        if encoded
        else r"shape \(3, 6, 12\) with 216 values; the first record has shape \(3, 9, 7\)"
    )
    write_mean("mean.binaryproto", np.zeros((3, 9, 7), np.float32))
    for name, text in (
        ("whole", net("", "")),
        ("mean", net(CROP, f'crop_size: {SIDE} mean_file: "mean.binaryproto"')),
    ):
        Path("net.prototxt").write_text(text)
        assert re.search(sizes, place.train("--solver", "solver.prototxt", run_dir=name, code=1))
    # Nor are rows taken that were prepared for another run, which cuts them.
    Path("net.prototxt").write_text(NET)
    store = ("--set", "data.store=store")
    place.train("--solver", "solver.prototxt", *store, run_dir="cut")
    Path("net.prototxt").write_text(net("", ""))
    told = place.train("--solver", "solver.prototxt", *store, run_dir="again", code=1)
    assert re.search(r"6 x 12 .*; 9 x 7 is the size of the others: set data.resize", told)


def write_folder() -> tuple[str, str]:
    for row in range(24):
        path = Path(f"pictures/{row % 2}/{row}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(row)))
    return ("image_folder", "pictures")


def write_list() -> tuple[str, str]:
    lines: list[str] = []
    for row in range(24):
        cv2.imwrite(f"{row}.png", picture(row)[::-1].transpose(1, 2, 0))
        lines.append(f"{row}.png {row % 2}\n")
    Path("list.txt").write_text("".join(lines))
    return ("image_list", "list.txt")


def write_tar() -> tuple[str, str]:
    with tarfile.open("pictures.tar", "w") as tar:
        for row in range(24):
            data = png(picture(row))
            member = tarfile.TarInfo(f"{row}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    Path("labels.txt").write_text("".join(f"{row}.png {row % 2}\n" for row in range(24)))
    return ("image_tar", "pictures.tar")


def write_parquet() -> tuple[str, str]:
    Path("rows").mkdir()
    for part in range(2):
        rows = range(part, 24, 2)
        table = pa.table({"image": [png(picture(row)) for row in rows], "label": [row // 2 % 2 for row in rows]})
        pq.write_table(table, f"rows/{part}.parquet")
    return ("parquet", "rows")


@pytest.mark.parametrize("keep", ["pixels", "encoded"])
@pytest.mark.parametrize("write_rows", [write_folder, write_list, write_tar, write_parquet])
def test_any_images_of_which_a_square_is_cut(
    place: Place, write_rows: Callable[[], tuple[str, str]], keep: str
) -> None:
    source, path = write_rows()
    rows = f'source = "{source}"\npath = "{path}"\nvalidation_fraction = 0.25\ncrop = {SIDE}\nkeep = "{keep}"\n'
    rows += 'labels = "labels.txt"\n' if source == "image_tar" else ""
    text = f'[net]\nprototxt = "net.prototxt"\n[data]\n{rows}[solver]\nbatch_size = 4\n[run]\nrounds = 2\n'
    Path("run.toml").write_text(text)
    Path("net.prototxt").write_text(INPUTS)
    place.train("run.toml")
    events = read_events(Path("run"))
    assert of(events, "run_started")[0]["columns"] == ["image 3 x 6 x 6 or larger", "label"]
    assert of(events, "evaluation")
    told = place.run("test", "run")
    assert "held out" in told
    told = place.train("run.toml", "--set", "data.mean=image", run_dir="mean", code=1)
    assert re.search(r"is an image of \d+ x \d+ .* is the size of the others: set data.resize; or cut", told)
    told = place.train("run.toml", "--set", "data.sizes=own", "--set", "data.mean=image", code=2)
    assert "data.sizes is 'own'; images that keep their own sizes have no" in told
