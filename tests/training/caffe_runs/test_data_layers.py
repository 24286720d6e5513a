import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from places import REFERENCE
from sparknet.caffe.description.spec import NetSpec
from sparknet.caffe.weights.mean_image import write_mean
from sparknet.config import Data
from sparknet.errors import ConfigError
from sparknet.training.caffe_runs.data_layers import NetSources, data_source

DATABASES = REFERENCE / "datum" / "databases"
LAYER = """
layer {{
  name: "{phase}_rows" type: "Data" top: "data" top: "label" include {{ phase: {phase} }}
  data_param {{ source: "{source}" batch_size: 4 backend: {backend} }}
}}
"""


def net_of(
    directory: Path, *, train: str = "", test: str = "", backend: str = "LMDB", more: str = ""
) -> NetSources:
    """A net whose data layers read these databases."""
    named = {"TRAIN": train, "TEST": test}
    layers = [LAYER.format(phase=phase, source=name, backend=backend) for phase, name in named.items() if name]
    file = directory / "net.prototxt"
    file.write_text('name: "n"\n' + "".join(layers) + more)
    return NetSources(spec=NetSpec.from_prototxt(file), directory=directory)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar:data", r"'cifar' is no kind of data: did you mean cifar10\? There are digits, cifar10:PATH"),
        ("leveldb:/d", r"There are digits, cifar10:PATH, mnist:PATH, lmdb:PATH, image_tar:PATH, image_folder:PATH"),
        ("/data/cifar10", r"is no kind of data: the form is KIND:PATH"),
        ("cifar10", r"--data is 'cifar10'; give its path, as in cifar10:PATH"),
        ("digits:x", r"digits comes without files: leave the path out"),
        ("parquet:x", r"say which rows are held out.*data\.validation_fraction=0\.1"),
        ("lmdb:x", r"say which rows are held out"),
    ],
)
def test_a_source_at_fault(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_source(source)


def test_sources(tmp_path: Path) -> None:
    assert data_source("digits") == {"source": "digits", "path": "", "validation_fraction": 0.2}
    assert data_source(f"mnist:{tmp_path}")["validation_path"] == str(tmp_path)
    assert "validation_path" not in data_source(f"mnist:{tmp_path}", ["data.validation_fraction=0.1"])
    assert data_source("parquet:/x", testing=True)["validation_path"] == "/x"


def test_a_missing_directory_is_left_to_the_source_to_name() -> None:
    assert data_source("cifar10:/no/such/directory")["path"] == "/no/such/directory"


def test_a_prepared_directory_of_tar_files_has_its_tests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say which rows are held out"):
        data_source(f"image_tar:{tmp_path}")
    (tmp_path / "ILSVRC2012_img_val").mkdir()
    table = data_source(f"image_tar:{tmp_path}")
    assert table == {"source": "image_tar", "path": str(tmp_path), "validation_path": str(tmp_path)}


def test_labels_of_the_tests_do_not_say_which_rows_they_are(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_img_val").mkdir()
    table = data_source(f"image_tar:{tmp_path}", [" data.validation_labels=/labels/val.txt"])
    assert table["validation_path"] == str(tmp_path)
    held = data_source(f"image_tar:{tmp_path}", ["data.validation_path = /other"])
    assert "validation_path" not in held


def test_rows_that_are_tested_have_the_labels_that_are_given(tmp_path: Path) -> None:
    table = data_source(f"image_tar:{tmp_path}", ["data.labels='/l/mine.txt'"], testing=True)
    assert table["validation_labels"] == "/l/mine.txt"
    own = ["data.labels=/l/mine.txt", "data.validation_labels=/l/val.txt"]
    assert "validation_labels" not in data_source(f"image_tar:{tmp_path}", own, testing=True)


def test_pixels_are_not_brought_to_an_image_layers_size(tmp_path: Path) -> None:
    layer = """layer { name: "i" type: "ImageData" top: "data" top: "label"
      image_data_param { source: "list.txt" batch_size: 4 new_height: 12 new_width: 10 } }"""
    net = net_of(tmp_path, more=layer)
    assert "resize" not in data_source("digits", net=net)
    assert data_source("parquet:/x", ["data.validation_fraction=0.5"], net=net)["resize"] == [12, 10]


def test_files_by_name_are_not_tested_on_themselves(tmp_path: Path) -> None:
    for name in ("data_batch_1.bin", "data_batch_2.bin"):
        (tmp_path / name).write_bytes(b"")
    for path in (tmp_path / "data_batch_1.bin", tmp_path / "data_batch_*.bin"):
        with pytest.raises(ConfigError, match="say which rows are held out"):
            data_source(f"cifar10:{path}")
    assert data_source(f"cifar10:{tmp_path}")["validation_path"] == str(tmp_path)


def test_without_a_source_the_data_layers_name_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rows", "held"):
        shutil.copytree(DATABASES / "uint8", tmp_path / name)
    net = net_of(tmp_path, train="rows", test="held")
    beside = {"source": "lmdb", "path": str(tmp_path / "rows"), "validation_path": str(tmp_path / "held")}
    assert data_source(None, net=net) == beside, "looked for beside the net's file"
    monkeypatch.chdir(tmp_path)
    assert data_source(None, net=net) == {"source": "lmdb", "path": "rows", "validation_path": "held"}
    Data(**data_source(None, net=net))
    assert data_source(None, net=net, testing=True)["validation_path"] == "held"
    drawn = data_source(None, ["data.validation_fraction=0.5"], net=net)
    assert drawn == {"source": "lmdb", "path": "rows"}


def test_an_lmdb_is_tested_on_the_nets_own(tmp_path: Path) -> None:
    shutil.copytree(DATABASES / "uint8", tmp_path / "held")
    net = net_of(tmp_path, train="elsewhere", test="held")
    table = data_source("lmdb:/data/rows", net=net)
    assert table == {"source": "lmdb", "path": "/data/rows", "validation_path": str(tmp_path / "held")}


def test_data_layers_that_name_no_rows_that_are_here(tmp_path: Path) -> None:
    net = net_of(tmp_path, train="rows", test="held")
    with pytest.raises(ConfigError, match=r"layer 'TRAIN_rows' of .* names 'rows', which is not here: give --data"):
        data_source(None, net=net)
    plain = net_of(tmp_path, more='layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 } } }')
    with pytest.raises(ConfigError, match=r"phase TEST of .* has no Data layer"):
        data_source(None, net=plain, testing=True)


def test_leveldb_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    net = net_of(tmp_path, train="rows", test="rows", backend="LEVELDB")
    with pytest.raises(ConfigError, match=r"layer 'TRAIN_rows' reads .*rows as LevelDB.*set backend: LMDB"):
        data_source(None, net=net)


def test_an_image_layers_size_is_the_size_that_images_are_brought_to(tmp_path: Path) -> None:
    layer = """layer { name: "i" type: "ImageData" top: "data" top: "label"
      image_data_param { source: "list.txt" batch_size: 4 new_height: 12 new_width: 10 } }"""
    net = net_of(tmp_path, more=layer)
    table = data_source("image_folder:/x", ["data.validation_fraction=0.5"], net=net)
    assert table == {"source": "image_folder", "path": "/x", "resize": [12, 10]}


# Several layers, and other kinds ------------------------------------------------------------------------------

FED = """layer {{ name: "{name}" type: "{kind}" {tops} include {{ phase: {phase} }}
  {key} {{ source: "{source}" batch_size: 4 {more} }} }}
"""
KEYS = {
    "WindowData": "window_data_param",
    "Data": "data_param",
    "HDF5Data": "hdf5_data_param",
    "ImageData": "image_data_param",
}
LOSS = 'layer {{ name: "loss" type: "EuclideanLoss" bottom: "out" bottom: "{goal}" top: "loss" }}'


def layer(phase: str, name: str, kind: str, source: str, *tops: str, more: str = "") -> str:
    named = " ".join(f'top: "{top}"' for top in tops)
    more = "backend: LMDB" if kind == "Data" else more
    return FED.format(name=name, kind=kind, tops=named, phase=phase, key=KEYS[kind], source=source, more=more)


def fed_net(directory: Path, *layers: str, goal: str = "goal") -> NetSources:
    return net_of(directory, more="".join(layers) + LOSS.format(goal=goal))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources that are there, whatever they hold."""
    for name in ("train_lmdb", "test_lmdb", "goal_lmdb", "test_goal_lmdb", "train.txt", "test.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_second_databases_top_is_a_column_beside_the_first(here: Path) -> None:
    """The one with what is to be found may stand first in the file; its label is no other column's."""
    net = fed_net(
        here,
        layer("TRAIN", "goals", "Data", "goal_lmdb", "goal"),
        layer("TRAIN", "images", "Data", "train_lmdb", "data"),
        layer("TEST", "images", "Data", "test_lmdb", "data"),
        layer("TEST", "goals", "Data", "test_goal_lmdb", "goal"),
    )
    table = data_source(None, net=net)
    assert table == {
        "source": "lmdb",
        "path": "train_lmdb",
        "validation_path": "test_lmdb",
        "inputs": ["image"],
        "targets": ["goal"],
        "beside": {
            "goal": {
                "source": "lmdb",
                "path": "goal_lmdb",
                "validation_path": "test_goal_lmdb",
                "column": "image",
            }
        },
    }
    tested = data_source(None, net=net, testing=True)
    assert (tested["path"], tested["beside"]["goal"]["path"]) == ("test_lmdb", "test_goal_lmdb")


def test_tops_of_hdf5_files_are_their_data_sets(here: Path) -> None:
    net = fed_net(
        here,
        layer("TRAIN", "rows", "HDF5Data", "train.txt", "data", "goal", "more"),
        layer("TEST", "rows", "HDF5Data", "test.txt", "data", "goal", "more"),
    )
    assert data_source(None, net=net) == {
        "source": "hdf5",
        "path": "train.txt",
        "validation_path": "test.txt",
        "inputs": ["data", "more"],
        "targets": ["goal"],
    }
    assert data_source("hdf5:/x.h5", net=net)["validation_path"] == "test.txt"


def test_layers_that_name_no_rows_take_the_columns_of_their_names(tmp_path: Path) -> None:
    net = fed_net(
        tmp_path,
        'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 } } }',
        'layer { name: "more" type: "MemoryData" top: "more" top: "goal" '
        "memory_data_param { batch_size: 4 channels: 1 height: 1 width: 2 } }",
    )
    columns = {"data": [[0.0, 1, 2]], "more": [[1.0, 2]], "goal": [[0.0]], "name": ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    pq.write_table(pa.table({name: columns[name] for name in ("data", "goal")}), tmp_path / "fewer.parquet")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        for name in ("data", "more", "goal"):
            file[name] = np.asarray(columns[name], np.float32)
    share = ["data.validation_fraction=0.1"]
    for source in ("parquet:rows.parquet", "hdf5:rows.h5"):
        kind, _, name = source.partition(":")
        table = data_source(f"{kind}:{tmp_path / name}", share, net=net)
        assert (table["inputs"], table["targets"]) == (["data", "more"], ["goal"])
    # What is said of columns wins, and where one is missing nothing is guessed.
    rows = f"parquet:{tmp_path / 'rows.parquet'}"
    assert "inputs" not in data_source(rows, [*share, "data.image=more"], net=net)
    assert "inputs" not in data_source(f"parquet:{tmp_path / 'fewer.parquet'}", share, net=net)
    assert "inputs" not in data_source("parquet:/no/such/rows", share, net=net)
    (tmp_path / "words.parquet").write_text("no table")
    assert "inputs" not in data_source(f"parquet:{tmp_path / 'words.parquet'}", share, net=net)


def test_sources_in_step_have_one_batch(here: Path) -> None:
    images, goals = (
        "".join(layer(phase, name, "Data", source, top) for phase in ("TRAIN", "TEST"))
        for name, source, top in (("images", "train_lmdb", "data"), ("goals", "goal_lmdb", "goal"))
    )
    net = fed_net(here, images, goals.replace("batch_size: 4", "batch_size: 8"))
    with pytest.raises(ConfigError, match=r"layer 'images' has batch_size 4 and 'goals' 8; .*give both the same"):
        data_source(None, net=net)


def test_a_net_of_dummies_makes_its_rows(tmp_path: Path) -> None:
    dummies = """
    layer { name: "rows" type: "DummyData" top: "data" top: "goal" dummy_data_param { shape { dim: 4 dim: 3 } } }
    """
    assert data_source(None, net=fed_net(tmp_path, dummies)) == {"source": "net"}


def test_a_list_of_images_has_their_size_and_where_they_are(here: Path) -> None:
    more = 'new_height: 6 new_width: 4 root_folder: "/images/"'
    layers = [
        layer(phase, "rows", "ImageData", f"{phase.lower()}.txt", "data", "goal", more=more) for phase in PHASES
    ]
    table = data_source(None, net=fed_net(here, *layers))
    assert table == {
        "source": "image_list",
        "path": "train.txt",
        "validation_path": "test.txt",
        "root": "/images/",
        "resize": [6, 4],
    }


PHASES = ("TRAIN", "TEST")
WINDOWS = {
    "size": 227,
    "foreground_threshold": 0.5,
    "background_threshold": 0.5,
    "foreground_fraction": 0.25,
    "context_pad": 16,
    "crop_mode": "warp",
    "fill": [104, 117, 123],
}


def window_layer(phase: str, transform: str = "mean_value: 103.6 mean_value: 117 mean_value: 123.4", **more) -> str:
    said = " ".join(f"{key}: {value}" for key, value in more.items())
    text = layer(phase, f"{phase.lower()}_windows", "WindowData", f"{phase.lower()}.txt", "data", "label")
    return text.replace("batch_size: 4", f"batch_size: 4 context_pad: 16 {said}").replace(
        "include", f"transform_param {{ crop_size: 227 {transform} }} include"
    )


def test_windows_are_cut_out_as_the_layer_says(here: Path) -> None:
    net = fed_net(here, *map(window_layer, PHASES))
    expected = {"source": "windows", "path": "train.txt", "validation_path": "test.txt", "windows": WINDOWS}
    assert data_source(None, net=net) == expected
    # what the layer says holds for other rows too
    other = data_source("windows:/x.txt", ["data.validation_fraction=0.5"], net=net)
    assert other == {"source": "windows", "path": "/x.txt", "windows": WINDOWS}
    assert data_source("windows:/x.txt", ["data.validation_fraction=0.5"]) == {
        "source": "windows",
        "path": "/x.txt",
    }
    settings = {**WINDOWS, "foreground_fraction": 0.5, "crop_mode": "square", "fill": [128, 128, 128]}
    more = {"fg_fraction": 0.5, "crop_mode": '"square"'}
    square = [window_layer(phase, "mean_value: 128", **more) for phase in PHASES]
    assert data_source(None, net=fed_net(here, *square))["windows"] == settings


def test_what_lies_outside_is_the_mean_of_the_middle_of_a_mean_image(here: Path) -> None:
    mean = np.zeros((3, 229, 229), np.float32)
    mean[:, 1:-1, 1:-1] = np.array([0.6, 300, 99.4])[:, None, None]
    write_mean("mean.binaryproto", mean)
    layers = [window_layer(phase, 'mean_file: "mean.binaryproto"') for phase in PHASES]
    assert data_source(None, net=fed_net(here, *layers))["windows"]["fill"] == [1, 255, 99]
    elsewhere = [window_layer(phase, 'mean_file: "nowhere.binaryproto"') for phase in PHASES]
    assert data_source(None, net=fed_net(here, *elsewhere))["windows"]["fill"] == []


def test_phases_must_cut_windows_out_alike_and_alone(here: Path) -> None:
    net = fed_net(here, window_layer("TRAIN"), window_layer("TEST", fg_threshold=0.7))
    message = r"'train_windows' and 'test_windows' cut windows out in different ways, .*0\.5.* and .*0\.7.*; both"
    with pytest.raises(ConfigError, match=message):
        data_source(None, net=net)
    # where the rows that are held out are others, phase TEST's are not looked at
    assert "windows" in data_source(None, ["data.validation_fraction=0.5"], net=net)
    beside = [layer(phase, "goals", "Data", "goal_lmdb", "goal") for phase in PHASES]
    with pytest.raises(ConfigError, match="reads windows, and another one reads rows beside it"):
        data_source(None, net=fed_net(here, *map(window_layer, PHASES), *beside))


def test_phases_that_do_not_go_together(here: Path) -> None:
    net = fed_net(
        here,
        layer("TRAIN", "rows", "HDF5Data", "train.txt", "data", "goal"),
        layer("TEST", "base", "Data", "test_lmdb", "data", "goal"),
    )
    with pytest.raises(
        ConfigError, match=r"layer 'rows' reads hdf5 and 'base' reads lmdb; both phases must read rows"
    ):
        data_source(None, net=net)
    lacking = fed_net(
        here,
        layer("TRAIN", "images", "Data", "train_lmdb", "data"),
        layer("TRAIN", "goals", "Data", "goal_lmdb", "goal"),
        layer("TEST", "images", "Data", "test_lmdb", "data"),
    )
    with pytest.raises(
        ConfigError, match=r"blob 'goal' comes from rows of its own \(lmdb\), and in phase TEST no data"
    ):
        data_source(None, net=lacking)
    gone = fed_net(
        here,
        layer("TRAIN", "images", "Data", "train_lmdb", "data"),
        layer("TRAIN", "goals", "Data", "nowhere_lmdb", "goal"),
        layer("TEST", "images", "Data", "test_lmdb", "data"),
        layer("TEST", "goals", "Data", "test_goal_lmdb", "goal"),
    )
    with pytest.raises(
        ConfigError, match=r"layer 'goals' of .* names 'nowhere_lmdb', which is not here: give --data"
    ):
        data_source(None, net=gone)


def test_each_list_of_images_in_step_has_its_own_size_and_root(here: Path) -> None:
    """The second one's images are what is to be found; its labels, without a top, are nobody's."""
    said = {
        "data": ("train", 'new_height: 6 new_width: 4 root_folder: "/images/"'),
        "goal": ("test", 'new_height: 3 new_width: 2 root_folder: "/masks/" is_color: false'),
    }
    layers = [
        layer(phase, f"{top}_rows", "ImageData", f"{name}.txt", top, more=more)
        for phase in PHASES
        for top, (name, more) in said.items()
    ]
    table = data_source(None, net=fed_net(here, *layers))
    assert (table["path"], table["root"], "resize" in table) == ("train.txt", "/images/", False)
    assert table["columns"] == {
        "image": {"resize": [6, 4]},
        "goal": {"resize": [3, 2]},
    }
    assert table["beside"]["goal"] == {
        "source": "image_list",
        "path": "test.txt",
        "validation_path": "test.txt",
        "column": "image",
        "root": "/masks/",
    }
    assert (table["inputs"], table["targets"]) == (["image"], ["goal"])
