"""Nets in the shapes of published ones, with the databases that they name: trained by two workers, and tested."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from pyspark.sql import SparkSession

from digits import open_test_session, read_events
from sparknet.cli.main import main
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources.datum import write

pytestmark = pytest.mark.spark

SOLVER = """
net: "net.prototxt"
base_lr: 0.05
momentum: 0.9
lr_policy: "fixed"
max_iter: 6
snapshot_prefix: "snapshots/net"
random_seed: 1
"""
TEST = "test_iter: 2\ntest_interval: 3\n"


def layer(kind: str, bottoms: str, tops: str, more: str = "", *, name: str = "") -> str:
    read = "".join(f'bottom: "{bottom}" ' for bottom in bottoms.split())
    made = "".join(f'top: "{top}" ' for top in tops.split())
    return f'layer {{ name: "{name or tops.split()[0]}" type: "{kind}" {read}{made}{more} }}\n'


def data(source: str, rule: str, *, tops: str = "data label", batch: int = 8, more: str = "") -> str:
    rows = f'data_param {{ source: "{source}" batch_size: {batch} backend: LMDB }}'
    return layer("Data", "", tops, f"include {{ {rule} }} {rows} {more}")


def dense(bottom: str, top: str, outputs: int, more: str = "") -> str:
    filler = 'weight_filler { type: "xavier" }'
    return layer("InnerProduct", bottom, top, f"{more} inner_product_param {{ num_output: {outputs} {filler} }}")


def conv(bottom: str, top: str, outputs: int, side: int, more: str = "") -> str:
    said = f'num_output: {outputs} kernel_size: {side} weight_filler {{ type: "xavier" }}'
    return layer("Convolution", bottom, top, f"{more} convolution_param {{ {said} }}")


def pictures(seed: int, rows: int, shape: tuple[int, ...] = (1, 8, 8)) -> tuple[np.ndarray, np.ndarray]:
    """Images of three classes that differ in where they are bright, uint8 [rows, *shape], and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, rows)
    images = random.integers(0, 60, (rows, *shape))
    for row, label in enumerate(labels):
        images[row, :, 2 * label : 2 * label + 3] += 150
    return images.astype(np.uint8), labels


def database(path: str, seed: int, rows: int, shape: tuple[int, ...] = (1, 8, 8)) -> None:
    images, labels = pictures(seed, rows, shape)
    with DatabaseWriter(Path(path)) as writer:
        for image, label in zip(images, labels, strict=True):
            writer.append(write(shape=shape, data=image.tobytes(), label=int(label)))


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

    def train(self, net: str, solver: str = SOLVER + TEST, *words: object) -> list[dict]:
        Path("net.prototxt").write_text(net)
        Path("solver.prototxt").write_text(solver)
        patience = ["--set", "cluster.heartbeat_timeout_seconds=20.0"]
        given = ["--workers", 2, "--run-dir", "run", "--set", "sync.local_steps=1", *patience]
        self.run("train", "--solver", "solver.prototxt", *given, *words)
        return read_events(Path("run"))

    def scores(self, *words: object) -> dict[str, list[float]]:
        """What `sparknet test` prints of the last snapshot, by output."""
        weights = "snapshots/net_iter_6.caffemodel"
        told = self.run("test", "--model", "net.prototxt", "--weights", weights, *words)
        found: dict[str, list[float]] = {}
        for name, value in re.findall(r"^(\S+) = (\S+)", told, flags=re.MULTILINE):
            found.setdefault(name, []).append(float(value))
        return found


@pytest.fixture
def place(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    monkeypatch.chdir(tmp_path)
    database("train_lmdb", 1, 40)
    database("test_lmdb", 2, 24)
    return Place(capsys)


def last(events: list[dict], kind: str) -> dict:
    return [event for event in events if event["event"] == kind][-1]


def falls(events: list[dict]) -> bool:
    losses = [event["loss"] for event in events if event["event"] == "round"]
    return losses[-1] < losses[0]


def test_an_autoencoder_with_two_tests_judges_each_by_its_own_rows(place: Place) -> None:
    net = (
        data("train_lmdb", "phase: TRAIN", tops="data", more="transform_param { scale: 0.00390625 }")
        + data("train_lmdb", 'phase: TEST stage: "seen"', tops="data", more="transform_param { scale: 0.00390625 }")
        + data("test_lmdb", 'phase: TEST stage: "new"', tops="data", more="transform_param { scale: 0.00390625 }")
        + layer("Flatten", "data", "flat")
        + dense("data", "code", 6)
        + dense("code", "decoded", 64)
        + layer("SigmoidCrossEntropyLoss", "decoded flat", "cross_entropy", "loss_weight: 1")
        + layer("Sigmoid", "decoded", "again")
        + layer("EuclideanLoss", "again flat", "error", "loss_weight: 0")
    )
    tests = 'test_state { stage: "seen" } test_iter: 5 test_state { stage: "new" } test_iter: 4 test_interval: 3\n'
    events = place.train(net, SOLVER + tests)
    assert falls(events)
    found = last(events, "evaluation")
    assert set(found["outputs"]) == {"cross_entropy", "error", "new/cross_entropy", "new/error"}
    assert (found["rows"], "looked_at" in found) == (40, False), "of the first test"
    for stage, prefix, batches in (("seen", "", 5), ("new", "new/", 4)):
        scores = place.scores("--stage", stage, "--iterations", batches)
        for name in ("cross_entropy", "error"):
            assert scores[name] == [pytest.approx(found["outputs"][prefix + name], rel=1e-5)]
    # The rows of the second test are 24, and 32 were looked at.
    assert "gone through 1.333 times (32 looks)" in place.run(
        *("test", "--model", "net.prototxt", "--weights", "snapshots/net_iter_6.caffemodel"),
        *("--stage", "new", "--iterations", 4),
    )
    again = place.run("test", "run")
    for name, value in found["outputs"].items():
        assert f"{name} " in again
        assert f"{value:.4f}" in again


def test_a_net_in_its_solver_with_rows_of_phases_and_stages(place: Place) -> None:
    net = (
        data("train_lmdb", "phase: TRAIN")
        + data("test_lmdb", 'phase: TEST not_stage: "on-train"')
        + data("train_lmdb", 'phase: TEST stage: "on-train"', batch=20)
        + conv("data", "conv", 4, 3)
        + layer("Pooling", "conv", "pool", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
        + layer("ReLU", "pool", "pool", name="relu")
        + dense("pool", "score", 3)
        + layer("Accuracy", "score label", "accuracy each", "include { phase: TEST }")
        + layer("SoftmaxWithLoss", "score label", "loss")
    )
    solver = SOLVER.replace('net: "net.prototxt"', f"net_param {{ {net} }}")
    solver += 'test_iter: 4 test_iter: 2 test_interval: 3 test_state { } test_state { stage: "on-train" }\n'
    events = place.train(net, solver)
    assert falls(events)
    found = last(events, "evaluation")
    assert (found["rows"], found["looked_at"]) == (24, 32)
    assert {"each.0", "each.2", "on-train/accuracy", "on-train/loss", "on-train/each.1"} <= set(found["outputs"])
    # Each class by itself, as Caffe prints it, and all of them together.
    scores = place.scores("--iterations", 3)
    assert len(scores["each"]) == 3
    assert all(0 <= value <= 1 for value in scores["each"])


def test_a_net_that_is_only_trained(place: Place) -> None:
    net = data("train_lmdb", "phase: TRAIN") + dense("data", "score", 3)
    net += layer("SoftmaxWithLoss", "score label", "loss")
    events = place.train(net, SOLVER)
    assert falls(events)
    assert last(events, "run_started")["validation_rows"] == 0
    assert not [event for event in events if event["event"] == "evaluation"]
    result = json.loads(Path("run/result.json").read_text())
    assert "loss" not in result or result["loss"] is None
    assert result["training_loss"] == last(events, "round")["loss"]
    assert "has held out no rows" in place.run("test", "run", code=2)
    assert "24 from test_lmdb" in place.run("test", "run", "--data", "test_lmdb")


def test_sigmoids_norms_and_three_colours(place: Place) -> None:
    for name, seed, rows in (("colour_train", 3, 40), ("colour_test", 4, 24)):
        database(name, seed, rows, (3, 10, 10))
    crop = "transform_param { crop_size: 8 mirror: true mean_value: 100 mean_value: 110 mean_value: 120 }"
    net = (
        data("colour_train", "phase: TRAIN", more=crop)
        + data("colour_test", "phase: TEST", more=crop.replace("mirror: true", ""))
        + conv("data", "conv", 4, 3, "param { lr_mult: 1 } param { lr_mult: 2 }")
        + layer("BatchNorm", "conv", "norm")
        + layer("Sigmoid", "norm", "on")
        + layer("Pooling", "on", "pool", "pooling_param { pool: AVE kernel_size: 2 stride: 2 }")
        + dense("pool", "score", 3, "param { lr_mult: 1 decay_mult: 250 } param { lr_mult: 0.2 decay_mult: 0 }")
        + layer("Accuracy", "score label", "accuracy", "include { phase: TEST }")
        + layer("SoftmaxWithLoss", "score label", "loss")
    )
    events = place.train(net)
    assert falls(events)
    assert last(events, "run_started")["columns"] == ["image 3 x 10 x 10", "label"]


def test_lists_of_image_files_go_on_from_weights(place: Place) -> None:
    for phase, seed, rows in (("train", 5, 24), ("test", 6, 16)):
        images, labels = pictures(seed, rows, (3, 12, 9))
        lines = []
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            cv2.imwrite(f"{phase}{row}.png", image.transpose(1, 2, 0))
            lines.append(f"{phase}{row}.png {label}\n")
        Path(f"{phase}.txt").write_text("".join(lines))
    more = "transform_param { crop_size: 8 mirror: true mean_value: 90 }"

    def listed(phase: str) -> str:
        rows = f'image_data_param {{ source: "{phase}.txt" batch_size: 8 new_height: 10 new_width: 10 }}'
        return layer("ImageData", "", "data label", f"include {{ phase: {phase.upper()} }} {rows} {more}")

    def net(score: str) -> str:
        return (
            listed("train")
            + listed("test")
            + conv("data", "conv", 4, 3, "param { lr_mult: 0.1 } param { lr_mult: 0.2 }")
            + layer("ReLU", "conv", "conv", name="relu")
            + dense("conv", score, 3, "param { lr_mult: 10 } param { lr_mult: 20 }")
            + layer("Accuracy", f"{score} label", "accuracy", "include { phase: TEST }")
            + layer("SoftmaxWithLoss", f"{score} label", "loss")
        )

    place.train(net("score"), SOLVER.replace("0.05", "0.001") + TEST)
    Path("run").rename("before")
    Path("snapshots/net_iter_6.caffemodel").rename("before.caffemodel")
    events = place.train(net("new_score"), SOLVER.replace("0.05", "0.001") + TEST, "--weights", "before.caffemodel")
    told = " ".join(event["message"] for event in events if event["event"] == "note")
    assert "has no weights for layers new_score" in told
    assert last(events, "evaluation")["rows"] == 16


def test_rows_of_hdf5_files(place: Place) -> None:
    random = np.random.default_rng(7)
    for phase, rows in (("train", 48), ("test", 16)):
        values = random.standard_normal((rows, 4)).astype(np.float32)
        with h5py.File(f"{phase}.h5", "w") as file:
            file["data"], file["label"] = values, (values.sum(1) > 0).astype(np.float32)
        Path(f"{phase}.txt").write_text(f"{phase}.h5\n")

    def listed(phase: str) -> str:
        rows = f'hdf5_data_param {{ source: "{phase}.txt" batch_size: 8 }}'
        return layer("HDF5Data", "", "data label", f"include {{ phase: {phase.upper()} }} {rows}")

    net = (
        listed("train")
        + listed("test")
        + dense("data", "score", 2)
        + layer("SoftmaxWithLoss", "score label", "loss")
        + layer("Accuracy", "score label", "accuracy", "include { phase: TEST }")
    )
    events = place.train(net)
    assert falls(events)
    assert last(events, "evaluation")["accuracy"] > 0.5


def test_pairs_go_through_two_nets_that_share_their_weights(place: Place) -> None:
    for name, seed, rows in (("pairs_train", 8, 40), ("pairs_test", 9, 24)):
        images, labels = pictures(seed, 2 * rows)
        with DatabaseWriter(Path(name)) as writer:
            for row in range(rows):
                pair = np.concatenate(images[2 * row : 2 * row + 2])
                alike = int(labels[2 * row] == labels[2 * row + 1])
                writer.append(write(shape=(2, 8, 8), data=pair.tobytes(), label=alike))
    scale = "transform_param { scale: 0.00390625 }"

    def branch(bottom: str, suffix: str) -> str:
        def shared(one: str) -> str:
            return f'param {{ name: "{one}_w" lr_mult: 1 }} param {{ name: "{one}_b" lr_mult: 2 }}'

        return (
            conv(bottom, f"conv{suffix}", 4, 3, shared("conv"))
            + layer("ReLU", f"conv{suffix}", f"conv{suffix}", name=f"relu{suffix}")
            + dense(f"conv{suffix}", f"feat{suffix}", 2, shared("feat"))
        )

    net = (
        data("pairs_train", "phase: TRAIN", tops="pair_data sim", more=scale)
        + data("pairs_test", "phase: TEST", tops="pair_data sim", more=scale)
        + layer("Slice", "pair_data", "left right", "slice_param { slice_dim: 1 slice_point: 1 }")
        + branch("left", "")
        + branch("right", "_p")
        + layer("ContrastiveLoss", "feat feat_p sim", "loss", "contrastive_loss_param { margin: 1 }")
    )
    events = place.train(net)
    assert falls(events)
    assert last(events, "run_started")["parameters"] == 4 * 9 + 4 + 2 * 144 + 2
