"""The saved model: rebuilt here, and readable with plain safetensors and torch."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from image_rows import image_rows
from sparknet.config import Data, Measure, Net, Objective
from sparknet.data.loading.transform import Normalise
from sparknet.data.rows.table_encoding import Category, Feature, TableEncoding
from sparknet.errors import CheckpointError
from sparknet.training.objectives.find_net import build_net
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.saved_model import Description, load_model, save_model
from sparknet.training.run_files.state_bytes import dump_weights

NORMALISE = Normalise(mean=np.full((1, 1, 1), 7.5, np.float32), scale=0.0625)


CHAIN = {"image": NORMALISE}


def description():
    data = Data(source="digits", validation_fraction=0.2)
    return Description(
        net=Net(name="digits_cnn", arguments={"width": 4}),
        rows=image_rows((1, 8, 8)),
        data=data,
    )


def trained_net():
    net = build_net(Recipe(net=Net(name="digits_cnn", arguments={"width": 4})), image_rows((1, 8, 8)), seed=3)
    with torch.no_grad():
        net(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))  # moves BatchNorm's statistics
    return net


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "weights").write_bytes(dump_weights(trained_net()))
    save_model(tmp_path / "model", tmp_path / "weights", description(), CHAIN)
    return tmp_path / "model"


def images():
    return np.random.default_rng(1).integers(0, 17, (5, 1, 8, 8), dtype=np.uint8)


def test_it_computes_what_the_trained_net_did(saved):
    model = load_model(saved)
    assert model.description == description()
    assert not model.module.training
    net = trained_net().eval()
    with torch.no_grad():
        inputs = torch.from_numpy(NORMALISE(images()))
        assert torch.equal(model.module(torch.from_numpy(model.chain["image"](images()))), net(inputs))


def test_loss_and_measures_are_those_of_the_run(tmp_path):
    measure = Measure(name="f1", metric="F1Score", arguments={"average": "macro"})
    section = Objective(loss="cross_entropy", loss_arguments={"weight": [1.0] * 9 + [4.0]}, measures=(measure,))
    told = replace(description(), objective=section)
    (tmp_path / "weights").write_bytes(dump_weights(trained_net()))
    save_model(tmp_path / "model", tmp_path / "weights", told, CHAIN)
    model = load_model(tmp_path / "model")
    batch = {"image": torch.rand(4, 1, 8, 8), "label": torch.arange(4) + 6}
    sums = model.objective.measure(batch)
    assert set(model.objective.conclude(sums, 4)) == {"loss", "f1"}
    scores, weight = model.objective.scores(batch), torch.tensor([1.0] * 9 + [4.0])
    expected = torch.nn.functional.cross_entropy(scores, batch["label"], weight)
    assert sums["loss"][0] / 4 == pytest.approx(expected.item())


def test_how_words_became_numbers_is_kept(tmp_path):
    table = TableEncoding(
        features=(Feature(name="colour", words=("blue", "red"), width=2), Feature(name="size")),
        categories={"label": Category(words=("cat", "dog"))},
    )
    told = replace(description(), table=table)
    (tmp_path / "weights").write_bytes(dump_weights(trained_net()))
    save_model(tmp_path / "model", tmp_path / "weights", told, CHAIN)
    assert load_model(tmp_path / "model").description == told
    assert description().table is None


def test_a_net_that_was_trained_on_squares_cut_out_of_larger_images(tmp_path):
    data = Data(source="image_folder", path="/photos", validation_fraction=0.2, crop=28)
    told = Description(net=Net(name="lenet"), rows=image_rows((1, 32, 30)), data=data)
    net = build_net(Recipe(net=Net(name="lenet", arguments={})), image_rows((1, 28, 28)), seed=3)
    (tmp_path / "weights").write_bytes(dump_weights(net))
    save_model(tmp_path / "model", tmp_path / "weights", told, {"image": Normalise(mean=None, scale=1.0, crop=28)})
    model = load_model(tmp_path / "model")
    assert model.description.rows.input.shape == (1, 32, 30), "rows are cut when they are read"
    assert all(torch.equal(a, b) for a, b in zip(model.module.parameters(), net.parameters(), strict=True))


def test_plain_safetensors_and_torch_are_enough(saved):
    assert {path.name for path in saved.iterdir()} == {
        "weights.safetensors",
        "preprocess.safetensors",
        "model.json",
    }
    net = trained_net()
    tensors = load_file(saved / "weights.safetensors")
    assert tensors.keys() == net.state_dict().keys()
    other = build_net(Recipe(net=Net(name="digits_cnn", arguments={"width": 4})), image_rows((1, 8, 8)), seed=9)
    other.load_state_dict(tensors)
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    with safe_open(saved / "preprocess.safetensors", "np") as arrays:
        assert arrays.get_tensor("image/mean").tolist() == [[[7.5]]]
        assert float(arrays.get_tensor("image/scale")) == 0.0625
    told = json.loads((saved / "model.json").read_text())
    assert told["net"]["name"] == "digits_cnn"
    assert told["net"]["arguments"] == {"width": 4}
    assert told["rows"]["inputs"][0]["shape"] == [1, 8, 8]
    assert told["rows"]["targets"][0]["classes"] == 10


def test_an_older_model_is_replaced(saved, tmp_path):
    (saved / "of the older").write_text("")
    (tmp_path / "weights").write_bytes(dump_weights(build_other()))
    save_model(saved, tmp_path / "weights", description(), CHAIN)
    assert not (saved / "of the older").exists()
    assert torch.equal(load_model(saved).module.ip1.weight, build_other().ip1.weight)


def build_other():
    return build_net(Recipe(net=Net(name="digits_cnn", arguments={"width": 4})), image_rows((1, 8, 8)), seed=11)


def test_a_model_that_cannot_be_written_leaves_the_older_one(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be written to .*make room there"):
        save_model(saved, tmp_path / "no such weights", description(), CHAIN)
    load_model(saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "weights"]


def test_a_model_that_does_not_get_its_place_leaves_the_older_one(saved, tmp_path, monkeypatch):
    rename, refused = Path.rename, []

    def broken(path, target):
        if target == saved and "part" in path.suffix:
            refused.append(path)
            raise OSError(5, "Input/output error")
        return rename(path, target)

    before = load_model(saved)
    (tmp_path / "weights").write_bytes(dump_weights(build_other()))
    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(CheckpointError, match=r"cannot be written to .*Input/output error"):
        save_model(saved, tmp_path / "weights", description(), CHAIN)
    assert len(refused) == 1, "the failure was injected"
    assert torch.equal(load_model(saved).module.ip1.weight, before.module.ip1.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "weights"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_model(tmp_path / "model", tmp_path / "weights", description(), CHAIN)
    assert list(tmp_path.iterdir()) == []


def test_no_model_says_how_to_get_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no finished model \(.*model\.json is missing\).*resume"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("name", ["weights.safetensors", "preprocess.safetensors", "model.json"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"\xff" * 100], ids=["empty", "garbage", "binary"])
def test_a_damaged_file_is_a_checkpoint_error(saved, name, damage):
    (saved / name).write_bytes(damage)
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(saved)


def test_weights_of_another_net_are_refused(saved):
    (saved / "weights.safetensors").write_bytes(dump_weights(torch.nn.Linear(2, 2)))
    with pytest.raises(CheckpointError, match="do not fit the net"):
        load_model(saved)
