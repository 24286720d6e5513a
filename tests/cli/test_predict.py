"""`sparknet predict` and `sparknet featurize` as users meet them."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cli_process import Host
from encoded import png
from formats import random_rows
from sparknet.caffe.module.caffe_net import CaffeNet
from sparknet.cli import predict as command
from sparknet.cli.main import main
from sparknet.data.loading.transform import Normalise
from sparknet.training.run_files.saved_model import load_model

spark = pytest.mark.spark

DEPLOY = """name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 10 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
ANIMALS = [("big", "red", "cat"), ("small", "red", "dog"), ("big", "blue", "cow"), ("small", "blue", "dog")]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("warm"), with_spark=True)
    yield host
    host.close()


def write_csv(path: Path, rows, header=("size", "colour", "weight", "animal")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read_csv(directory: Path) -> list[dict[str, str]]:
    rows = []
    for file in sorted(directory.glob("part-*.csv")):
        with file.open(newline="") as lines:
            rows += csv.DictReader(lines, escapechar="\\")
    return rows


@pytest.fixture(scope="module")
def animals(warm, tmp_path_factory):
    """A run on a table of words, with a directory beside it."""
    place = tmp_path_factory.mktemp("animals")
    rows = [(size, colour, at % 3, animal) for at in range(20) for size, colour, animal in ANIMALS]
    config = place / "config.toml"
    config.write_text(
        f"""
        run = {{ workers = 1, rounds = 1 }}
        net = {{ name = "adult" }}
        solver = {{ batch_size = 4, learning_rate = 0.05 }}
        sync = {{ local_steps = 200 }}

        [data]
        source = "csv"
        path = "{write_csv(place / "train.csv", rows)}"
        features = ["size", "colour", "weight"]
        label = "animal"
        validation_fraction = 0.2
        """
    )
    done = warm.run("train", config, "--run-dir", place / "run")
    assert done.code == 0, done.err
    return place / "run", place


@spark
def test_a_run_predicts_words_for_rows_without_them(warm, animals, tmp_path):
    run_dir, _ = animals
    # Without the label, and with a column that the net does not know.
    rows = [(colour, size, 1, f"n{at}") for at, (size, colour, _) in enumerate(ANIMALS * 3)]
    data = write_csv(tmp_path / "new.csv", rows, header=("colour", "size", "weight", "mine"))
    asked = ["predict", run_dir, "--data", data, "--to"]
    done = warm.run(*asked, tmp_path / "out.csv", "--columns", "probability,raw")
    assert done.code == 0, done.err
    assert re.search(r"^rows +12$", done.out, re.MULTILINE)
    found = read_csv(tmp_path / "out.csv")
    assert [row["mine"] for row in found] == [f"n{at}" for at in range(12)]
    assert [row["predicted_label"] for row in found] == [animal for _, _, animal in ANIMALS * 3]
    names = ("cat", "cow", "dog")
    assert [names[int(float(row["prediction"]))] for row in found] == [row["predicted_label"] for row in found]
    for row in found:
        probability, raw = (np.array(json.loads(row[name])) for name in ("probability", "raw"))
        np.testing.assert_allclose(probability, np.exp(raw) / np.exp(raw).sum(), rtol=1e-4)
        assert probability.argmax() == float(row["prediction"])

    before = sorted(tmp_path.rglob("*"))
    warm.run(*asked, tmp_path / "out.csv").refused(2, "out.csv, and there is something already: .*--overwrite")
    assert sorted(tmp_path.rglob("*")) == before
    assert warm.run(*asked, tmp_path / "out.csv", "--overwrite").code == 0
    assert "raw" not in read_csv(tmp_path / "out.csv")[0]


@spark
def test_rows_that_cannot_be_used_are_told_left_out_or_kept(warm, animals, tmp_path):
    run_dir, _ = animals
    rows = [("big", "red", 1, ""), ("big", "mauve", 1, ""), ("small", "blue", 1, "")]
    data = write_csv(tmp_path / "new.csv", rows)
    asked = ["predict", run_dir, "--data", data, "--to", tmp_path / "out.parquet"]
    warm.run(*asked).refused(1, "column colour: row 1 of partition 0 says 'mauve'; a word of the training rows")
    # Neither the directory nor a draft beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]
    assert warm.run(*asked, "--invalid", "skip").code == 0
    assert pq.read_table(tmp_path / "out.parquet")["predicted_label"].to_pylist() == ["cat", "dog"]
    assert warm.run(*asked, "--invalid", "keep", "--overwrite").code == 0
    assert pq.read_table(tmp_path / "out.parquet")["predicted_label"].to_pylist() == ["cat", None, "dog"]


@spark
def test_parts_of_a_runs_net_become_columns(warm, animals, tmp_path):
    run_dir, place = animals
    out = tmp_path / "out.parquet"
    done = warm.run("featurize", run_dir, "--blobs", "ip1", "--data", place / "train.csv", "--to", out)
    assert done.code == 0, done.err
    found = pq.read_table(out)
    assert found.column_names == ["size", "colour", "weight", "animal", "ip1"]
    model = load_model(run_dir / "model")
    width = model.module.ip1.weight.shape[0]
    values = np.array(found["ip1"].to_pylist())
    assert values.shape == (80, width)
    assert values.min() == 0 < values.max(), "what is behind the ReLU in place"


@spark
def test_a_caffe_net_without_a_loss_predicts_and_gives_features(warm, tmp_path):
    images, labels = random_rows(30, (3, 8, 8))
    pq.write_table(
        pa.table({"name": [f"i{at}" for at in range(30)], "image": [png(one) for one in images], "label": labels}),
        tmp_path / "images.parquet",
    )
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    net = CaffeNet.from_prototxt(tmp_path / "deploy.prototxt")
    net.save_weights(tmp_path / "w.caffemodel")
    files = ["--model", "deploy.prototxt", "--weights", "w.caffemodel", "--data", "parquet:images.parquet"]
    files += ["--set", "data.channel_order=bgr", "--set", "data.mean_values=[100]", "--set", "data.scale=0.01"]
    done = warm.run("predict", *files, "--to", "p.parquet", "--columns", "raw", cwd=tmp_path)
    assert done.code == 0, done.err
    done = warm.run("featurize", *files, "--to", "f.parquet", "--blobs", "conv,fc", cwd=tmp_path)
    assert done.code == 0, done.err
    given = Normalise(mean=np.array([[[100]]], np.float32), scale=0.01)(np.ascontiguousarray(images[:, ::-1]))
    with torch.no_grad():
        expected = net.forward_blobs({"data": torch.from_numpy(given)}, ["conv", "fc"])
    predicted, features = (pq.read_table(tmp_path / name).to_pydict() for name in ("p.parquet", "f.parquet"))
    assert list(predicted) == ["name", "label", "raw", "prediction"]
    assert predicted["name"] == [f"i{at}" for at in range(30)]
    assert predicted["prediction"] == expected["fc"].argmax(1).tolist()
    np.testing.assert_allclose(predicted["raw"], expected["fc"], rtol=1e-4, atol=1e-5)
    for blob in ("conv", "fc"):
        np.testing.assert_allclose(features[blob], expected[blob].flatten(1), rtol=1e-4, atol=1e-5)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """What must end with a message before Spark starts, and make nothing."""

    def no_spark(*arguments, **options):
        raise AssertionError("Spark was started")

    monkeypatch.setattr(command, "session_for", no_spark)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy.prototxt").write_text(DEPLOY)
    CaffeNet.from_prototxt(tmp_path / "deploy.prototxt").save_weights(tmp_path / "w.caffemodel")
    images, labels = random_rows(3, (3, 8, 8))
    pq.write_table(pa.table({"image": [png(one) for one in images], "label": labels}), tmp_path / "i.parquet")

    def check(*arguments, code, told):
        before = sorted(tmp_path.rglob("*"))
        assert main([*map(str, arguments)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(f"sparknet: error: .*{told}.*\n", err), err
        assert sorted(tmp_path.rglob("*")) == before

    return check


FILES = ["--model", "deploy.prototxt", "--weights", "w.caffemodel", "--data", "parquet:i.parquet"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["featurize", *FILES, "--blobs", "fcc", "--to", "o.csv"], 1, r"no blob 'fcc': did you mean fc\? .* prob"),
        (["predict", *FILES, "--to", "o.txt"], 2, r"--to is 'o.txt'; it must end in .parquet or .csv"),
        (["predict", *FILES, "--to", "i.parquet"], 2, "i.parquet, which is a file"),
        (["predict", "--data", "x", "--to", "o.csv"], 2, "neither RUN_DIR nor --model is given"),
        (["predict", "run", *FILES, "--to", "o.csv"], 2, "RUN_DIR and --model are given"),
        (["predict", "--model", "deploy.prototxt", "--to", "o.csv"], 2, "--model and --weights go together"),
        (["predict", "run", "--to", "o.csv"], 2, "--data is missing"),
        (["predict", "run", "--data", "x", "--to", "o.csv"], 1, "run"),
        (["predict", *FILES[:-1], "parquet:no.parquet", "--to", "o.csv"], 1, "no.parquet: no such file"),
    ],
    ids=["blob", "ending", "file", "no-model", "two-models", "no-weights", "no-data", "no-run", "no-rows"],
)
def test_what_is_wrong_is_told_before_spark_starts(refused, arguments, code, told):
    refused(*arguments, code=code, told=told)


def test_unknown_columns_are_wrong_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "run", "--data", "x", "--to", "o.csv", "--columns", "raw,score"])
    assert ended.value.code == 2
    assert "'score' is none of probability, raw" in capsys.readouterr().err
