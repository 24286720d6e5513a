"""Whether a Caffe net's images may be of several sizes: where all its data layers cut a square out of each."""

from dataclasses import replace
from typing import Any

import pytest

from sparknet.caffe.description.spec import NetSpec
from sparknet.config import Data, DataColumn
from sparknet.training.caffe_runs.sizes import with_sizes

LMDB = Data(source="lmdb", path="/d", validation_path="/e")
CROP = "crop_size: 6"
MEAN = 'crop_size: 6 mean_file: "m"'


def layer(phase: str, transform: str) -> str:
    return (
        f'layer {{ name: "d" type: "Data" top: "x" top: "label" include {{ phase: {phase} }} '
        f'transform_param {{ {transform} }} data_param {{ source: "/d" batch_size: 4 }} }}\n'
    )


def said(train: str, test: str, data: Data = LMDB) -> Data:
    return with_sizes(data, NetSpec.from_text(layer("TRAIN", train) + layer("TEST", test), "net"))


@pytest.mark.parametrize(
    ("train", "test", "changes", "expected"),
    [
        (CROP, f"{CROP} mean_value: 4", {}, "own"),
        (CROP, "", {}, None),
        ("mirror: true", CROP, {}, None),
        (CROP, MEAN, {}, None),
        (MEAN, MEAN, {"mean": "none"}, "own"),
        (MEAN, MEAN, {"mean_values": (3.0,)}, "own"),
        (CROP, CROP, {"mean": "image"}, None),
        (CROP, CROP, {"mean_file": "m.npy"}, None),
        (CROP, CROP, {"resize": (9, 9)}, None),
        (CROP, CROP, {"sizes": "one"}, "one"),
    ],
)
def test_a_square_of_each_in_both_phases_and_no_mean_image(
    train: str, test: str, changes: dict[str, Any], expected: str | None
) -> None:
    data = said(train, test, replace(LMDB, **changes))
    assert data.sizes == expected
    assert data.column("image").may_keep_sizes == (expected == "own")


def test_windows_are_of_one_size_and_numbers_have_none() -> None:
    windows = (
        'layer { name: "d" type: "WindowData" top: "x" top: "label" transform_param { crop_size: 6 } '
        'window_data_param { source: "w" batch_size: 4 } }'
    )
    assert with_sizes(LMDB, NetSpec.from_text(windows, "net")).sizes is None
    numbers = 'layer { name: "d" type: "Input" top: "x" input_param { shape { dim: 4 dim: 2 } } }'
    assert with_sizes(LMDB, NetSpec.from_text(numbers, "net")) == LMDB


def test_a_column_with_a_table_of_its_own_is_told_there() -> None:
    data = replace(LMDB, columns={"image": DataColumn(channels="grey")})
    found = said(CROP, CROP, data)
    assert found.columns == {"image": DataColumn(channels="grey", sizes="own")}
    assert found.sizes is None
