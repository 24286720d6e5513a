"""The preprocessing of a run: what data layers say, per phase; means from files and rows; kept for a resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caffe_example import TRAIN_TEST
from sparknet.config import Data, Net, Run, RunConfig
from sparknet.data import Column, Manifest
from sparknet.data.manifest import save_mean_image
from sparknet.errors import ConfigError, RunDirError
from sparknet.nets.weights.mean_image import write_mean
from sparknet.training.build_objective import build_objective, build_test_objective
from sparknet.training.preprocessing import Preprocessing, file_normalise, make_preprocessing

MEAN = np.random.default_rng(0).random((3, 32, 32), np.float32) * 255
MANIFEST = Manifest(
    input=Column(name="image", dtype="uint8", shape=(3, 32, 32)),
    label=Column(name="label", dtype="int64", shape=()),
    train=(),
    validation=(),
    classes=10,
    train_label_counts=(0,) * 10,
    channel_mean=(1.0, 2.0, 3.0),
    source={},
    fingerprint="f",
    seed=0,
)
TRAIN = 'mirror: true crop_size: 24 scale: 0.5 mean_file: "MEAN"'
TEST = "crop_size: 24 mean_value: 4 mean_value: 5 mean_value: 6"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_mean_image(tmp_path, MEAN + 1)
    write_mean(tmp_path / "mean.binaryproto", MEAN)
    return tmp_path


def config_with(place: Path, train: str = TRAIN, test: str = TEST, **data) -> RunConfig:
    text = TRAIN_TEST
    for transform in (train, test):
        text = text.replace('mean_file: "MEAN"', transform.replace("MEAN", "mean-of-the-rows"), 1)
    text = text.replace("mean-of-the-rows", str(place / "mean.binaryproto"))
    return RunConfig(
        data=Data(source="digits", validation_fraction=0.2, **data), net=Net(prototxt=text), run=Run(rounds=1)
    )


def made(config: RunConfig, place: Path) -> Preprocessing:
    objective = build_objective(config.net, MANIFEST, batch_size=2, seed=0)
    return make_preprocessing(config, objective, MANIFEST, place, run_dir=place)


def test_each_phase_has_its_own(place: Path) -> None:
    both = made(config_with(place, scale=2.0), place)
    train, test = both.train, both.test
    assert (train.scale, train.crop, train.cut, train.mirror) == (1.0, 24, "random", True)
    assert (test.scale, test.crop, test.cut, test.mirror) == (2.0, 24, "centre", False)
    np.testing.assert_array_equal(train.mean, MEAN)
    assert test.mean.ravel().tolist() == [4, 5, 6]


def test_one_value_is_for_all_channels_and_none_takes_nothing_off(place: Path) -> None:
    both = made(config_with(place, "mean_value: 7", ""), place)
    assert both.train.mean.ravel().tolist() == [7, 7, 7]
    assert both.test.mean is None
    images = np.full((1, 3, 32, 32), 9, np.uint8)
    assert (both.train(images) == 2).all()


def test_the_rows_own_mean_replaces_the_files(place: Path) -> None:
    (place / "mean.binaryproto").unlink()
    both = made(config_with(place, mean="image"), place)
    np.testing.assert_array_equal(both.train.mean, MEAN + 1)
    np.testing.assert_array_equal(both.test.mean, MEAN + 1)
    assert both.train.crop == 24, "the rest of transform_param holds"
    assert made(config_with(place, mean="none"), place).train.mean is None


def test_a_resumed_run_needs_no_mean_file(place: Path) -> None:
    first = made(config_with(place), place)
    (place / "mean.binaryproto").unlink()
    again = made(config_with(place), place)
    np.testing.assert_array_equal(again.train.mean, first.train.mean)
    (place / "preprocess.safetensors").write_bytes(b"cut short")
    with pytest.raises(RunDirError, match=r"preprocess\.safetensors is damaged: .*delete it, then resume"):
        made(config_with(place), place)


def test_other_nets_take_the_rows_mean(place: Path) -> None:
    config = replace(config_with(place, scale=0.5), net=Net(name="digits_cnn"))
    both = made(config, place)
    assert both.train is both.test
    assert (both.train.mean.ravel().tolist(), both.train.scale) == ([1, 2, 3], 0.5)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ('mean_file: "/none.binaryproto"', r"layer 'cifar' \(Data\): mean_file: /none\.binaryproto cannot be read"),
        (
            'mean_file: "/none.binaryproto"',
            r"--set data\.mean=image takes the training rows' own mean image instead",
        ),
        ('mean_file: "SMALL"', r"has shape \(3, 8, 8\) and the rows have \(3, 32, 32\); they must be equal"),
        ("mean_value: 1 mean_value: 2", r"2 mean_value for rows of shape \(3, 32, 32\); give one, or one per"),
    ],
)
def test_a_mean_that_does_not_fit(place: Path, train: str, message: str) -> None:
    write_mean(place / "small.binaryproto", MEAN[:, :8, :8])
    config = config_with(place, "crop_size: 24 " + train.replace("SMALL", str(place / "small.binaryproto")))
    with pytest.raises(ConfigError, match=message):
        made(config, place)


def test_without_a_run_there_is_no_mean_of_rows(place: Path) -> None:
    config = config_with(place)
    objective = build_test_objective(config.net, MANIFEST)
    assert file_normalise(config, objective, (3, 32, 32)).mean.ravel().tolist() == [4, 5, 6]
    with pytest.raises(ConfigError, match=r"data\.mean is 'image'.*no run here that knows it"):
        file_normalise(config_with(place, mean="image"), objective, (3, 32, 32))


@pytest.mark.parametrize(
    ("mean_file", "message"),
    [
        ("none", r"cannot be read: .*give a \.binaryproto file, or --set data\.mean=none takes none off"),
        ("small", r"they must be equal: give the mean of such rows, or --set data\.mean=none takes none off"),
    ],
)
def test_without_a_run_a_mean_file_that_does_not_fit_can_be_left_out(
    place: Path, mean_file: str, message: str
) -> None:
    write_mean(place / "small.binaryproto", MEAN[:, :8, :8])
    test = f'mean_file: "{place / mean_file}.binaryproto"'
    objective = build_test_objective(config_with(place, test=test).net, MANIFEST)
    with pytest.raises(ConfigError, match=message) as caught:
        file_normalise(config_with(place, test=test), objective, (3, 32, 32))
    assert "data.mean=image" not in str(caught.value)
    assert file_normalise(config_with(place, test=test, mean="none"), objective, (3, 32, 32)).mean is None
