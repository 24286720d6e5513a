"""Caffe nets whose data layers name HDF5 files, lists of images, and several sources in step, as users run them."""

from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_process import Host, Outcome
from sparknet.caffe.weights.mean_image import write_mean
from sparknet.config import Windows
from sparknet.data.export.lmdb_writer import DatabaseWriter
from sparknet.data.sources.datum import write
from sparknet.data.sources.windows import Box, cut_window

pytestmark = pytest.mark.spark

ROWS, TESTS = 24, 10
SOLVER = """net: "net.prototxt" base_lr: 0.05 lr_policy: "fixed" max_iter: 8 test_iter: 2 test_interval: 4
random_seed: 1 snapshot_prefix: "snap/net" """
HDF5 = """layer {{ name: "rows" type: "HDF5Data" {tops} include {{ phase: {phase} }}
  hdf5_data_param {{ source: "{phase}.txt" batch_size: 5 }} }}
"""
IMAGES = """layer {{ name: "rows" type: "ImageData" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ scale: 0.00390625 }}
  image_data_param {{ source: "{phase}-images.txt" batch_size: 5 new_height: 6 new_width: 4 root_folder: "images/"
    is_color: {colour} }} }}
"""
LMDB = """layer {{ name: "images" type: "Data" top: "data" include {{ phase: {phase} }}
  transform_param {{ scale: 0.00390625 }} data_param {{ source: "{phase}_lmdb" batch_size: 5 backend: LMDB }} }}
"""
REGRESSION = """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "goal" top: "loss" }
"""
CLASSES = """
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory):
    """Runs commands with a session that is there already."""
    host = Host(tmp_path_factory.mktemp("warm"), with_spark=True)
    yield host
    host.close()


def both(text: str, **more: str) -> str:
    return "".join(text.format(phase=phase, **more) for phase in ("TRAIN", "TEST"))


def write_hdf5(directory: Path, phase: str, sets: dict[str, np.ndarray]) -> None:
    """Two files, and the list that names them."""
    cut = len(next(iter(sets.values()))) // 3
    for number, part in enumerate((slice(0, cut), slice(cut, None))):
        with h5py.File(directory / f"{phase}{number}.h5", "w") as file:
            for name, values in sets.items():
                file[name] = values[part]
    (directory / f"{phase}.txt").write_text(f"{phase}0.h5\n{phase}1.h5\n")


def write_net(directory: Path, text: str) -> None:
    (directory / "net.prototxt").write_text(text)
    (directory / "solver.prototxt").write_text(SOLVER)


def train(warm: Host, directory: Path) -> Outcome:
    return warm.run("train", "--solver", "solver.prototxt", "--workers", 2, "--run-dir", "run", cwd=directory)


def scores_of(warm: Host, directory: Path) -> dict[str, float]:
    """What `sparknet test` prints of the last snapshot, by output."""
    (weights,) = (directory / "snap").glob("*.caffemodel")
    done = warm.run("test", "--model", "net.prototxt", "--weights", weights, cwd=directory)
    assert done.code == 0, done.err
    lines = [line.split(" = ") for line in done.out.splitlines() if " = " in line and " s  " not in line]
    return {name: float(value.split()[0]) for name, value, *_ in lines}


def weights_of(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    found = load_file(directory / "run" / "model" / "weights.safetensors")
    (matrix,) = (value for value in found.values() if value.ndim == 2)
    (bias,) = (value for value in found.values() if value.ndim == 1)
    return matrix, bias


def test_hdf5_files(warm: Host, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sets = {
        phase: {
            "data": random.standard_normal((rows, 4)),
            "goal": random.standard_normal((rows, 2)).astype(np.float32),
            "unused": random.standard_normal(rows),
        }
        for phase, rows in (("TRAIN", ROWS), ("TEST", TESTS))
    }
    for phase, one in sets.items():
        write_hdf5(tmp_path, phase, one)
    write_net(tmp_path, both(HDF5, tops='top: "data" top: "goal"') + REGRESSION)
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    assert f"{ROWS} training rows, {TESTS} held out" in done.out
    matrix, bias = weights_of(tmp_path)
    found = sets["TEST"]["data"].astype(np.float32) @ matrix.T + bias
    expected = ((found - sets["TEST"]["goal"]) ** 2).sum() / (2 * TESTS)
    assert scores_of(warm, tmp_path)["loss"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_hdf5_files_are_classes_to_the_layers_that_take_them_so(warm: Host, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for phase, rows in (("TRAIN", ROWS), ("TEST", TESTS)):
        labels = random.integers(0, 3, (rows, 1)).astype(np.float32)
        sets = {"data": random.standard_normal((rows, 4)), "label": labels}
        write_hdf5(tmp_path, phase, sets)
    write_net(tmp_path, both(HDF5, tops='top: "data" top: "label"') + CLASSES)
    assert train(warm, tmp_path).code == 0
    matrix, bias = weights_of(tmp_path)
    right = ((sets["data"].astype(np.float32) @ matrix.T + bias).argmax(1) == labels[:, 0]).mean()
    assert scores_of(warm, tmp_path)["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("colour", ["true", "false"])
def test_a_list_of_images(warm: Host, tmp_path: Path, colour: str) -> None:
    random = np.random.default_rng(2)
    (tmp_path / "images").mkdir()
    images = random.integers(0, 256, (ROWS, 6, 4, 3), np.uint8)
    labels = random.integers(0, 3, ROWS)
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / "images" / f"{number} a.png"), image)
    for phase, rows in (("TRAIN", range(ROWS)), ("TEST", range(TESTS))):
        lines = "".join(f"{row} a.png {labels[row]}\n" for row in rows)
        (tmp_path / f"{phase}-images.txt").write_text(lines)
    write_net(tmp_path, both(IMAGES, colour=colour) + CLASSES)
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    # The layer's own order of channels is OpenCV's.
    seen = (
        images
        if colour == "true"
        else np.stack([cv2.cvtColor(one, cv2.COLOR_BGR2GRAY)[..., None] for one in images])
    )
    matrix, bias = weights_of(tmp_path)
    flat = seen[:TESTS].transpose(0, 3, 1, 2).reshape(TESTS, -1).astype(np.float32) / 256
    right = ((flat @ matrix.T + bias).argmax(1) == labels[:TESTS]).mean()
    assert scores_of(warm, tmp_path)["accuracy"] == pytest.approx(right)


def in_step(directory: Path, goals: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images in an LMDB, and what is to be found of them in HDF5 files; by phase."""
    random = np.random.default_rng(3)
    made: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for phase, rows in (("TRAIN", ROWS), ("TEST", TESTS)):
        images = random.integers(0, 256, (rows, 3, 2, 2), np.uint8)
        goal = random.standard_normal((goals[phase], 2)).astype(np.float32)
        with DatabaseWriter(directory / f"{phase}_lmdb") as writer:
            for image in images:
                writer.append(write(shape=(3, 2, 2), data=image.tobytes(), label=0, encoded=False), "")
        write_hdf5(directory, phase, {"goal": goal})
        made[phase] = images, goal
    write_net(directory, both(LMDB) + both(HDF5, tops='top: "goal"') + REGRESSION)
    return made


def test_an_lmdb_and_hdf5_files_in_step(warm: Host, tmp_path: Path) -> None:
    images, goal = in_step(tmp_path, {"TRAIN": ROWS, "TEST": TESTS})["TEST"]
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    (weights,) = (tmp_path / "snap").glob("*.caffemodel")
    matrix, bias = weights_of(tmp_path)
    found = images.reshape(TESTS, -1).astype(np.float32) / 256 @ matrix.T + bias
    expected = ((found - goal) ** 2).sum() / (2 * TESTS)
    assert scores_of(warm, tmp_path)["loss"] == pytest.approx(expected, rel=1e-5)
    done = warm.run("test", "--model", "net.prototxt", "--weights", weights, "--iterations", 1, cwd=tmp_path)
    expected = ((found[:5] - goal[:5]) ** 2).sum() / 10
    assert f"loss = {expected:g}"[:12] in done.out


def test_sources_of_different_length_are_refused(warm: Host, tmp_path: Path) -> None:
    in_step(tmp_path, {"TRAIN": ROWS, "TEST": TESTS - 1})
    done = train(warm, tmp_path)
    assert done.code == 1
    assert (
        "data.beside.goal has 24 training and 9 validation rows, and the data beside it have 24 and 10; rows go "
        "together one by one: give sources of as many rows"
    ) in done.err


def test_a_layer_whose_files_are_not_here_is_named(warm: Host, tmp_path: Path) -> None:
    write_net(tmp_path, both(HDF5, tops='top: "data" top: "goal"') + REGRESSION)
    train(warm, tmp_path).refused(
        2, "layer 'rows' of net.prototxt names 'TRAIN.txt', which is not here: give --data KIND:PATH"
    )
    memory = """layer { name: "m" type: "MemoryData" top: "data" top: "goal"
      memory_data_param { batch_size: 5 channels: 4 height: 1 width: 1 } }"""
    write_net(tmp_path, memory + REGRESSION)
    train(warm, tmp_path).refused(2, "that names rows: layer 'm' .MemoryData. takes what it is given: give --data")


WINDOWS = """layer {{ name: "rows" type: "WindowData" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ crop_size: 8 mean_file: "mean.binaryproto" mirror: {mirror} }}
  window_data_param {{ source: "{phase}-windows.txt" batch_size: 5 fg_threshold: 0.5 bg_threshold: 0.3
    fg_fraction: 0.5 context_pad: 1 crop_mode: "square" scale: 0.00390625 }} }}
"""


def test_windows_of_images(warm: Host, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (20, 30, 3), np.uint8) for _ in range(6)]
    for number, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"w{number}.png"), image)
    # Two windows of an object in each image, the second at its edge, one beside it and one that is neither.
    listed = [
        f"{1 + number % 2} 0.9 4 3 15 12\n1 0.5 20 10 29 19\n2 0.1 0 0 9 5\n1 0.4 1 1 5 5" for number in range(6)
    ]
    for phase, numbers in (("TRAIN", range(6)), ("TEST", range(3))):
        entries = [
            f"# {at}\n{tmp_path}/w{number}.png\n3 20 30 4\n{listed[number]}\n" for at, number in enumerate(numbers)
        ]
        (tmp_path / f"{phase}-windows.txt").write_text("".join(entries))
    # Larger than the windows: its middle counts. Whole numbers, of which what lies outside is made.
    mean = np.zeros((3, 12, 12), np.float32)
    mean[:, 2:10, 2:10] = np.array([100, 110, 120])[:, None, None]
    write_mean(tmp_path / "mean.binaryproto", mean)
    write_net(
        tmp_path,
        "".join(
            WINDOWS.format(phase=phase, mirror=mirror) for phase, mirror in (("TRAIN", "true"), ("TEST", "false"))
        )
        + CLASSES,
    )
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    # As many of the background as of the objects, of which there are two in each image.
    assert "24 training rows, 12 held out" in done.out
    matrix, bias = weights_of(tmp_path)
    total = 0.0
    rule = Windows(size=8, context_pad=1, crop_mode="square", fill=(100, 110, 120))
    for number in range(3):
        rows = [
            (Box(x1=4, y1=3, x2=15, y2=12, label=0), 1 + number % 2),
            (Box(x1=20, y1=10, x2=29, y2=19, label=0), 1),
        ]
        # the only one of the background, twice
        rows += [(Box(x1=0, y1=0, x2=9, y2=5, label=0), 0)] * 2
        for box, label in rows:
            window = (cut_window(images[number], box, rule).astype(np.float32) - mean[:, 2:10, 2:10]) * 0.00390625
            scores = (matrix @ window.ravel() + bias).astype(np.float64)
            total += np.log(np.exp(scores).sum()) - scores[label]
    assert scores_of(warm, tmp_path)["loss"] == pytest.approx(total / 12, rel=1e-5)


TABLE = """
layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 5 dim: 2 } shape { dim: 5 } } }
"""


def write_table(directory: Path, labels: list[int]) -> str:
    rows = "".join(f"{label * 0.5},{-label},{label}\n" for label in labels)
    (directory / "rows.csv").write_text("a,b,label\n" + rows)
    return f"csv:{directory / 'rows.csv'}"


def test_labels_that_only_spark_reads_are_judged_before_training_begins(warm: Host, tmp_path: Path) -> None:
    write_net(tmp_path, TABLE + CLASSES)
    settings = ["--set", "data.features=['a','b']", "--set", "data.validation_fraction=0.3", "--run-dir", "run"]
    asked = ["train", "--solver", "solver.prototxt", "--workers", 2, *settings, "--data"]
    done = warm.run(*asked, write_table(tmp_path, [1, 2, 3] * 10), cwd=tmp_path)
    assert done.code == 1
    for part in (
        "layer 'loss' (SoftmaxWithLoss): column label has 3 in row ",
        "it takes whole numbers from 0 to 2",
        "numbered from 1, and must be from 0: take 1 off each",
    ):
        assert part in done.err
    assert not (tmp_path / "run" / "checkpoints").exists()
    good = write_table(tmp_path, [0, 1, 2] * 10)
    assert warm.run(*asked[:-2], "other", "--data", good, cwd=tmp_path).code == 0
    (weights,) = (tmp_path / "snap").glob("*.caffemodel")
    tested = ["test", "--model", "net.prototxt", "--weights", weights, *settings[:2], "--data"]
    assert warm.run(*tested, good, cwd=tmp_path).code == 0
    done = warm.run(*tested, write_table(tmp_path, [0, 1, 2, -1]), cwd=tmp_path)
    assert done.code == 1
    assert "column label has -1 in row 3 of partition 0; it takes whole numbers from 0 to 2" in done.err
    assert "if -1 marks what does not count, set ignore_label in loss_param to -1" in done.err


DATUMS = """
layer {{ name: "rows" type: "Data" top: "data" top: "label" include {{ phase: {phase} }}
  transform_param {{ scale: 0.00390625 }} data_param {{ source: "rows_lmdb" batch_size: 5 backend: LMDB }} }}
"""


def write_datums(directory: Path, labels: list[int]) -> np.ndarray:
    """A database of random pixels with these labels; the pixels as the net takes them, [rows, 4]."""
    pixels = np.random.default_rng(4).integers(0, 256, (len(labels), 4)).astype(np.uint8)
    with DatabaseWriter(directory / "rows_lmdb") as writer:
        for row, label in zip(pixels, labels, strict=True):
            writer.append(write(shape=(1, 2, 2), data=row.tobytes(), label=label))
    return pixels.astype(np.float32) / 256


@pytest.mark.parametrize(
    "labels", [range(-600, -560, 4), range(2_000_000, 2_000_100, 10)], ids=["below_0", "large"]
)
def test_numbers_of_datum_records_that_are_no_classes(warm: Host, tmp_path: Path, labels: range) -> None:
    """Caffe's Datum has an int32 for them, and EuclideanLoss takes any."""
    rows = write_datums(tmp_path, list(labels))
    write_net(
        tmp_path, both(DATUMS) + REGRESSION.replace("num_output: 2", "num_output: 1").replace("goal", "label")
    )
    (tmp_path / "solver.prototxt").write_text(SOLVER.replace("base_lr: 0.05", "base_lr: 0.0001"))
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    matrix, bias = weights_of(tmp_path)
    difference = (rows @ matrix.T + bias)[:, 0].astype(np.float64) - np.asarray(labels)
    assert scores_of(warm, tmp_path)["loss"] == pytest.approx((difference**2).mean() / 2, rel=1e-4)


def test_a_label_that_is_ignored_counts_nowhere(warm: Host, tmp_path: Path) -> None:
    labels = np.asarray([0, -1, 2, 1, -1, 0, 2, -1, 1, 0])
    rows = write_datums(tmp_path, labels.tolist())
    classes = CLASSES.replace('top: "loss"', 'top: "loss" loss_param { ignore_label: -1 }')
    classes = classes.replace(
        'top: "accuracy" ', 'top: "accuracy" top: "each" accuracy_param { ignore_label: -1 } '
    )
    write_net(tmp_path, both(DATUMS) + classes)
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    matrix, bias = weights_of(tmp_path)
    scores = (rows @ matrix.T + bias).astype(np.float64)
    counted = labels >= 0
    # Each batch is normalised by the rows of it that count, and the batches are of equal weight.
    chances = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    losses = [
        -np.mean([chances[row, labels[row]] for row in batch if counted[row]]) for batch in (range(5), range(5, 10))
    ]
    right = [
        np.mean([scores[row].argmax() == labels[row] for row in batch if counted[row]])
        for batch in (range(5), range(5, 10))
    ]
    found = scores_of(warm, tmp_path)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(right), rel=1e-4)


def test_the_accuracy_of_each_class_is_printed_once_for_each(warm: Host, tmp_path: Path) -> None:
    labels = np.asarray([0, 1, 2, 1, 0, 0, 2, 2, 1, 0])
    rows = write_datums(tmp_path, labels.tolist())
    write_net(tmp_path, both(DATUMS) + CLASSES.replace('top: "accuracy" ', 'top: "accuracy" top: "each" '))
    done = train(warm, tmp_path)
    assert done.code == 0, done.err
    matrix, bias = weights_of(tmp_path)
    right = (rows @ matrix.T + bias).argmax(1) == labels
    (weights,) = (tmp_path / "snap").glob("*.caffemodel")
    out = warm.run("test", "--model", "net.prototxt", "--weights", weights, cwd=tmp_path).out
    printed = [float(line.split(" = ")[1]) for line in out.splitlines() if line.startswith("each = ")]
    batches = (slice(0, 5), slice(5, 10))
    expected = [np.mean([right[one][labels[one] == label].mean() for one in batches]) for label in range(3)]
    assert printed == pytest.approx(expected, rel=1e-4)


def test_labels_that_are_seen_at_once_start_nothing(warm: Host, tmp_path: Path) -> None:
    for phase in ("TRAIN", "TEST"):
        rows = np.zeros((6, 2), np.float32)
        write_hdf5(tmp_path, phase, {"data": rows, "label": np.arange(6.0) - (phase == "TRAIN")})
    write_net(
        tmp_path, both(HDF5, tops='top: "data" top: "label"') + CLASSES.replace("num_output: 3", "num_output: 5")
    )
    done = train(warm, tmp_path)
    assert done.code == 1
    assert "column label has -1 in row 0 of partition 0" in done.err
    assert "Spark" not in done.out
    assert not (tmp_path / "run").exists()
