"""The preprocessing of a run: what data layers say, per phase; means from files and rows; kept for a resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caffe_example import TRAIN_TEST
from image_rows import image_rows
from sparknet.caffe.weights.mean_image import write_mean
from sparknet.config import Data, DataColumn, Net, Run, RunConfig, Solver
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.shards.manifest import StoredColumn, save_mean_image
from sparknet.errors import ConfigError, RunDirError
from sparknet.training.objectives.build_objective import build_objective, build_test_objective
from sparknet.training.objectives.objective import InputTransforms, Objective
from sparknet.training.objectives.preprocessing import (
    Preprocessing,
    check_preprocessing,
    file_preprocessing,
    make_preprocessing,
)
from sparknet.training.objectives.recipe import Recipe

MEAN = np.random.default_rng(0).random((3, 32, 32), np.float32) * 255
ROWS = image_rows((3, 32, 32))
STORED = StoredColumn(
    column=ROWS.input, channel_mean=(1.0, 2.0, 3.0), channel_std=(10.0, 0.0, 30.0), mean_image="mean-0.npy"
)
TRAIN = 'mirror: true crop_size: 24 scale: 0.5 mean_file: "MEAN"'
TEST = "crop_size: 24 mean_value: 4 mean_value: 5 mean_value: 6"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_mean_image(tmp_path, 0, MEAN + 1)
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


def objective_of(config: RunConfig, rows: RowSchema) -> Objective:
    # A file's net is built for rows as they are: what it says twice is found later here.
    data = config.data if config.net.name else None
    recipe = Recipe.read(config.net)
    return build_objective(recipe, rows, batch_size=2, seed=0, data=data)


class Made:
    """What became of the only input, in training and in tests."""

    def __init__(self, both: Preprocessing) -> None:
        self.train, self.test = (next(iter(chain.values())) for chain in (both.train, both.test))


def made(config: RunConfig, place: Path, *, stored: StoredColumn = STORED, run_dir: Path | None = None) -> Made:
    rows = ROWS.with_input(stored.column) if stored is STORED else replace(ROWS, inputs=(stored.column,))
    counted = {stored.column.name: (stored, place)}
    both = make_preprocessing(config, objective_of(config, rows), counted, rows=rows, run_dir=run_dir or place)
    return Made(both)


def in_file(config: RunConfig, transforms: InputTransforms) -> Normalise:
    return file_preprocessing(config, transforms, ROWS)["image"]


def checked(config: RunConfig) -> None:
    check_preprocessing(config, objective_of(config, ROWS), ROWS)


def plain_config(*, net: str = "digits_cnn", **data) -> RunConfig:
    """Of a net that knows nothing of preprocessing."""
    return RunConfig(
        data=Data(source="digits", validation_fraction=0.2, **data), net=Net(name=net), run=Run(rounds=1)
    )


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
    both = made(plain_config(scale=0.5), place)
    for state in (both.train, both.test):
        assert (state.mean.ravel().tolist(), state.scale, state.std) == ([1, 2, 3], 0.5, None)
        assert (state.crop, state.cut, state.mirror) == (0, "centre", False)


@pytest.mark.parametrize("net", ["digits_cnn", "cifar10_quick"])
def test_other_nets_are_cut_and_mirrored_in_training_alone(place: Path, net: str) -> None:
    both = made(plain_config(net=net, crop=24, mirror=True), place)
    assert (both.train.crop, both.train.cut, both.train.mirror) == (24, "random", True)
    assert (both.test.crop, both.test.cut, both.test.mirror) == (24, "centre", False)


def test_the_rows_own_deviation_is_that_of_what_was_scaled(place: Path) -> None:
    both = made(plain_config(scale=0.5, std="channel"), place)
    assert both.train.std.ravel().tolist() == [5, 1, 15]


def test_that_of_a_caffe_net_too(place: Path) -> None:
    caffe = made(config_with(place, scale=2.0, std="channel"), place)
    assert caffe.train.std.ravel().tolist() == [10, 1, 30], "the layer's 0.5 times 2"
    assert caffe.test.std.ravel().tolist() == [20, 1, 60]
    np.testing.assert_array_equal(caffe.train.mean, MEAN)


@pytest.mark.parametrize(("values", "expected"), [((7.0,), [7, 7, 7]), ((1.0, 2.0, 4.0), [1, 2, 4])])
def test_numbers_can_be_given(place: Path, values: tuple[float, ...], expected: list[float]) -> None:
    for config in (
        plain_config(mean_values=values, std_values=values),
        config_with(place, mean_values=values, std_values=values),
    ):
        both = made(config, place)
        for state in (both.train, both.test):
            assert state.mean.shape == state.std.shape == (3, 1, 1)
            assert state.mean.ravel().tolist() == state.std.ravel().tolist() == expected
    assert both.train.crop == 24, "the rest of transform_param holds"


@pytest.mark.parametrize("kind", ["binaryproto", "npy", "npy of doubles"])
def test_a_mean_file_can_be_given_and_is_needed_once(place: Path, kind: str) -> None:
    path = place / f"given.{kind.split()[0]}"
    if kind == "binaryproto":
        write_mean(path, MEAN + 2)
    else:
        np.save(path, (MEAN + 2).astype(np.float64 if "doubles" in kind else np.float32))
    for name, config in (
        ("plain", plain_config(mean_file=str(path))),
        ("caffe", config_with(place, mean_file=str(path))),
    ):
        (place / name).mkdir()
        first = made(config, place, run_dir=place / name)
        away = path.rename(path.with_suffix(".away"))
        again = made(config, place, run_dir=place / name)
        away.rename(path)
        for state in (first.train, first.test, again.train, again.test):
            np.testing.assert_array_equal(state.mean, MEAN + 2)
            assert state.mean.dtype == np.float32


def test_another_mean_file_is_read_when_a_run_is_resumed(place: Path) -> None:
    for name in ("one", "two"):
        np.save(place / f"{name}.npy", MEAN + (3 if name == "one" else 4))
    first = made(plain_config(mean_file=str(place / "one.npy")), place)
    second = made(plain_config(mean_file=str(place / "two.npy")), place)
    np.testing.assert_array_equal(first.test.mean, MEAN + 3)
    np.testing.assert_array_equal(second.test.mean, MEAN + 4)
    made(plain_config(mean="image"), place)
    np.testing.assert_array_equal(made(plain_config(mean_file=str(place / "one.npy")), place).train.mean, MEAN + 3)


def test_a_kept_mean_of_other_rows_is_not_used(place: Path) -> None:
    config = plain_config(mean_file=str(place / "mean.npy"))
    np.save(place / "mean.npy", MEAN[:, 1:])
    normalise = Normalise(mean=MEAN[:, 1:], scale=1.0)
    files = dict.fromkeys(("train.image", "test.image"), config.data.mean_file)
    Preprocessing(train={"image": normalise}, test={"image": normalise}, mean_files=files).save(place)
    with pytest.raises(ConfigError, match=r"has shape \(3, 31, 32\) and the rows have \(3, 32, 32\)"):
        made(config, place)


def broken_npy(place: Path) -> dict[str, str]:
    np.savez(place / "several.npz", a=MEAN)
    (place / "several.npz").rename(place / "several.npy")
    np.save(place / "words.npy", np.array(["a"]))
    np.save(place / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(place / "small.npy", MEAN[:, 1:])
    (place / "cut.npy").write_bytes((place / "small.npy").read_bytes()[:500])
    (place / "empty.npy").write_bytes(b"")
    return {
        "none.npy": r"cannot be read: No such file or directory; give a \.npy file",
        "several.npy": r"holds NpzFile; a mean image is an array of numbers",
        "words.npy": r"holds <U1; a mean image is an array of numbers",
        "objects.npy": r"is no array, or a damaged one: .*; give a \.npy file",
        "cut.npy": r"is no array, or a damaged one",
        "empty.npy": r"is no array, or a damaged one",
        "small.npy": r"has shape \(3, 31, 32\) and the rows have \(3, 32, 32\); they must be equal",
        "none.binaryproto": r"cannot be read",
    }


def test_a_mean_file_that_is_none_or_does_not_fit(place: Path) -> None:
    for name, message in broken_npy(place).items():
        config = plain_config(mean_file=str(place / name))
        for check in (lambda: made(config, place), lambda: checked(config)):  # noqa: B023 - called at once
            with pytest.raises(ConfigError, match=rf"^data\.mean_file.*{message}.*data\.mean=image takes"):
                check()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"mean_values": (1.0, 2.0)},
            r"data\.mean_values is \[1\.0, 2\.0\] and the rows have shape \(3, 32, 32\); it",
        ),
        (
            {"std_values": (1.0,) * 4},
            r"data\.std_values is .*must be one number, or 3, one per channel: set data\.std_v",
        ),
        ({"crop": 33}, r"data\.crop is 33 and the images are 32x32"),
    ],
)
def test_what_does_not_fit_the_rows(place: Path, data: dict, message: str) -> None:
    config = plain_config(**data)
    with pytest.raises(ConfigError, match=message):
        make_preprocessing(config, None, {"image": (STORED, place)}, rows=ROWS, run_dir=place)
    with pytest.raises(ConfigError, match=message):
        check_preprocessing(config, None, ROWS)
    assert not (place / "preprocess.safetensors").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"crop": 5}, r"data\.crop is 5 and layer 'cifar' \(Data\) has crop_size 24 in its transform_param"),
        (
            {"mirror": True},
            r"data\.mirror is true and layer 'cifar' \(Data\) has mirror: true in its transform_param",
        ),
    ],
)
def test_what_a_data_layer_says_is_not_said_twice(place: Path, data: dict, message: str) -> None:
    config = config_with(place, **data)
    for check in (lambda: made(config, place), lambda: checked(config)):
        with pytest.raises(ConfigError, match=message):
            check()
    transforms = build_test_objective(Recipe.read(config_with(place).net), ROWS).transforms
    with pytest.raises(ConfigError, match=rf"data\.{next(iter(data))} is .* and layer 'cifar'"):
        in_file(config, transforms)


def test_what_can_be_known_early_is_checked_early(place: Path) -> None:
    checked(config_with(place))
    checked(plain_config(crop=24, mirror=True, std="channel"))
    (place / "mean.binaryproto").unlink()
    with pytest.raises(ConfigError, match=r"layer 'cifar' \(Data\): mean_file: .*cannot be read"):
        checked(config_with(place))
    checked(config_with(place, mean="image"))
    checked(config_with(place, mean_values=(1.0,)))


def test_vectors_have_a_mean_and_a_deviation_for_each_number(place: Path) -> None:
    vectors = StoredColumn(
        column=Column(name="features", dtype="float32", shape=(4,)),
        channel_mean=(1.0, 2.0, 3.0, 4.0),
        channel_std=(1.0, 1.0, 2.0, 0.0),
    )
    config = plain_config(net="adult", std="channel", features=("a", "b", "c", "d"))
    both = made(config, place, stored=vectors)
    got = both.train(np.array([[2, 2, 2, 2]], np.float32))
    np.testing.assert_array_equal(got, [[1, 0, -0.5, -2]])


def test_everything_is_kept_and_found_again(place: Path) -> None:
    both = made(plain_config(crop=24, mirror=True, std_values=(3.0,)), place)
    again = Made(Preprocessing.load(place))
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    draws = np.random.default_rng(0).integers(0, 2**32, (5, 4), dtype=np.uint32)
    np.testing.assert_array_equal(again.train(images, draws), both.train(images, draws))
    np.testing.assert_array_equal(again.test(images), both.test(images))


def test_that_nothing_is_done_is_kept_too(tmp_path: Path) -> None:
    """As of token numbers."""
    Preprocessing(train={}, test={}).save(tmp_path)
    kept = Preprocessing.load(tmp_path)
    assert kept is not None
    assert (kept.train, kept.test, kept.mean_files) == ({}, {}, {})


def test_further_rows_have_their_own(tmp_path: Path) -> None:
    """Under names of any letters."""
    one, other = (Normalise(mean=None, scale=scale) for scale in (2.0, 3.0))
    made = Preprocessing(train={"x": one}, test={"x": one}, tests={"a.b": {"x": other}, "a": {"x": one}})
    made.save(tmp_path)
    kept = Preprocessing.load(tmp_path)
    assert kept is not None
    assert {name: chain["x"].scale for name, chain in kept.evaluated.items()} == {"": 2.0, "a.b": 3.0, "a": 2.0}


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
    transforms = build_test_objective(Recipe.read(config.net), ROWS).transforms
    assert in_file(config, transforms).mean.ravel().tolist() == [4, 5, 6]
    with pytest.raises(ConfigError, match=r"data\.mean is 'image'.*no run here that knows it"):
        in_file(config_with(place, mean="image"), transforms)
    with pytest.raises(ConfigError, match=r"data\.std is 'channel'.*give data\.std_values, or test the run"):
        in_file(config_with(place, std="channel"), transforms)
    told = in_file(config_with(place, mean_values=(5.0,), std_values=(2.0,), scale=0.5), transforms)
    assert (told.mean.ravel().tolist(), told.std.ravel().tolist(), told.scale) == ([5] * 3, [2] * 3, 0.5)


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
    transforms = build_test_objective(Recipe.read(config_with(place, test=test).net), ROWS).transforms
    with pytest.raises(ConfigError, match=message) as caught:
        in_file(config_with(place, test=test), transforms)
    assert "data.mean=image" not in str(caught.value)
    assert in_file(config_with(place, test=test, mean="none"), transforms).mean is None


TOKENS = Column(name="tokens", dtype="int64", shape=(7,))
PIXELS = Column(name="pixels", dtype="uint8", shape=(3, 8, 8))
AGE = Column(name="age", dtype="float32", shape=())
OTHER_ROWS = RowSchema(inputs=(TOKENS, PIXELS), targets=(AGE,))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"tokens": {"scale": 2.0}},
            r"data\.columns\.tokens\.scale is 2\.0, and column tokens holds whole numbers",
        ),
        ({"tokens": {"length": 9}}, r"data\.columns\.tokens\.length is 9, and column tokens holds no lists"),
        ({"age": {"std": "channel"}}, r"age\.std is 'channel', and column age holds single numbers of a target"),
        (
            {"pixels": {"resize": (4, 4)}},
            r"resize is \[4, 4\], and column pixels holds numbers of shape \[3, 8, 8\]",
        ),
        ({"pixels": {"keep": "encoded"}}, r'pixels\.keep is "encoded", and column pixels holds no encoded images'),
        ({"pixels": {"crop": 9}}, r"pixels\.crop is 9 and the images are 8x8"),
    ],
)
def test_settings_that_a_column_cannot_follow_are_refused(columns: dict, message: str) -> None:
    data = Data(
        inputs=("tokens", "pixels"),
        targets=("age",),
        columns={name: DataColumn(**settings) for name, settings in columns.items()},
        validation_fraction=0.1,
        source="parquet",
    )
    config = RunConfig(
        run=Run(rounds=1), data=data, net=Net(name="net"), solver=Solver(batch_size=1, learning_rate=1.0)
    )
    with pytest.raises(ConfigError, match=message):
        check_preprocessing(config, None, OTHER_ROWS)


WINDOWS = """
layer { name: "w" type: "WindowData" top: "data" top: "label" transform_param { crop_size: 32 mean_file: "%s" }
  window_data_param { batch_size: 4 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize("size", [(32, 32), (38, 40), (36, 40)])
def test_the_middle_of_a_larger_mean_is_taken_off_windows(tmp_path: Path, size: tuple[int, int]) -> None:
    mean, path = np.random.default_rng(1).random((3, *size), np.float32), tmp_path / "m.binaryproto"
    write_mean(path, mean)
    net = Net(prototxt=WINDOWS % path)
    config = RunConfig(data=Data(source="digits", validation_fraction=0.2), net=net, run=Run(rounds=1))
    objective = build_test_objective(Recipe.read(net), ROWS)
    found = file_preprocessing(config, objective.transforms, ROWS)["image"].mean
    # the offset of the width is that of the height too
    offset = (size[1] - 32) // 2
    np.testing.assert_array_equal(found, mean[:, offset : offset + 32, offset : offset + 32])


@pytest.mark.parametrize("size", [(31, 32), (35, 40), (40, 31)])
def test_a_mean_that_does_not_reach_under_windows_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "m.binaryproto"
    write_mean(path, np.zeros((3, *size), np.float32))
    net = Net(prototxt=WINDOWS % path)
    config = RunConfig(data=Data(source="digits", validation_fraction=0.2), net=net, run=Run(rounds=1))
    objective = build_test_objective(Recipe.read(net), ROWS)
    with pytest.raises(
        ConfigError, match=rf"has shape \(3, {size[0]}, {size[1]}\) and the rows have \(3, 32, 32\)"
    ):
        file_preprocessing(config, objective.transforms, ROWS)


def test_images_of_several_sizes_need_a_cut(place: Path) -> None:
    column = replace(ROWS.input, image=ImageForm(own_size=True))
    several = "row 3 is an image of 40 x 50 (height x width); 32 x 32 is the size of the others"
    stored = replace(STORED, column=column, mean_image="", several=several)
    both = made(config_with(place, TEST, TEST), place, stored=stored)
    assert (both.train.crop, both.train.cut, both.test.cut) == (24, "random", "centre")
    with pytest.raises(ConfigError, match=r"^column image: row 3 is an image of 40 x 50 .*: set data.crop or"):
        made(config_with(place, "scale: 2", "scale: 2"), place, stored=stored)
