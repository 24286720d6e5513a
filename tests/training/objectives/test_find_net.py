"""Finding nets by name and building them reproducibly."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from image_rows import image_rows
from sparknet.caffe import CaffeNet, NetSpec, zoo
from sparknet.caffe.dsl import InnerProductLayer, InputLayer, Layer, NetParam, ReLULayer, SoftmaxWithLoss, gaussian
from sparknet.config import Net
from sparknet.errors import NetError
from sparknet.training.objectives.find_net import build_net, find_net
from sparknet.training.objectives.recipe import Recipe


def plain(hidden: int = 3) -> nn.Module:
    return nn.Linear(hidden, 2)


class Wrapped(nn.Module):
    def __init__(self, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.out = nn.Linear(4, classes, bias=bias)


def needs_more(input_shape: tuple[int, ...], depth: int) -> nn.Module:
    return nn.Linear(input_shape[0], depth)


def takes_any(**options: object) -> nn.Module:
    assert options == {"depth": 2}
    return nn.Linear(1, 1)


def no_module() -> object:
    return "weights"


def frozen() -> nn.Module:
    return nn.Linear(1, 1).requires_grad_(False)


def broken(*, classes: int) -> nn.Module:
    raise ZeroDivisionError("of all things")


def described(*, input_shape: tuple[int, ...], classes: int, hidden: int = 4) -> NetSpec:
    return NetParam(
        "Described",
        InputLayer("data", [8, *input_shape]),
        InputLayer("label", [8]),
        InnerProductLayer("ip1", ["data"], hidden, weight_filler=gaussian(std=0.1)),
        InnerProductLayer("ip2", ["ip1"], classes, weight_filler=gaussian(std=0.1)),
        SoftmaxWithLoss("loss", ["ip2", "label"]),
    )


def from_databases() -> NetSpec:
    """As Caffe's own files are: only the database knows the shape of its images."""
    return NetParam(
        "Databases",
        Layer("Data", "cifar", tops=["data", "label"], source="train_lmdb", batch_size=100, phase="TRAIN"),
        Layer("Data", "cifar", tops=["data", "label"], source="test_lmdb", batch_size=50, phase="TEST"),
        InnerProductLayer("ip", ["data"], 10, weight_filler=gaussian(std=0.1)),
        SoftmaxWithLoss("loss", ["ip", "label"]),
    )


def from_hdf5() -> NetSpec:
    return NetParam(
        "Tables",
        Layer("HDF5Data", "rows", tops=["data", "label"], source="list.txt", batch_size=10),
        InnerProductLayer("ip", ["data"], 2, weight_filler=gaussian(std=0.1)),
        SoftmaxWithLoss("loss", ["ip", "label"]),
    )


def unbuildable() -> NetSpec:
    return NetParam("Wrong", InputLayer("data", [1, 3]), ReLULayer("relu", ["daat"]))


def unlearned() -> NetSpec:
    return NetParam("Empty", InputLayer("data", [1, 3]), ReLULayer("relu", ["data"]))


not_callable = 3


def build(name: str, arguments=None, *, shape=(1, 8, 8), classes=10, seed=0) -> nn.Module:
    return build_net(
        Recipe(net=Net(name=name, arguments=arguments or {})), image_rows(shape, classes=classes), seed=seed
    )


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_zoo_name_is_found(name):
    assert find_net(name) is getattr(zoo, name)


def test_own_callable_is_found():
    assert find_net(f"{__name__}:plain") is plain


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lennet", r"'lennet'; it is not in the zoo: did you mean lenet\?"),
        ("zzz", "not in the zoo: known: adult, alexnet, caffenet, cifar10_full"),
        ("NetError", "not in the zoo"),
        ("torch.nn:Liner", r"torch\.nn has no such name; it must be a callable: did you mean Linear\?"),
        (f"{__name__}:not_callable", "holds a int there; it must be a callable"),
        ("no_such_package.nets:build", "importing no_such_package.nets failed: ModuleNotFoundError"),
        (":build", "the form is 'package.module:callable'"),
        ("torch.nn:", "the form is 'package.module:callable'"),
    ],
)
def test_unknown_names_say_what_to_do(name, message):
    with pytest.raises(NetError, match=message):
        find_net(name)


def test_a_module_that_fails_to_import_is_named_with_its_cause(tmp_path: Path, monkeypatch):
    (tmp_path / "half_written_net.py").write_text("def build(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NetError, match="importing half_written_net failed: SyntaxError") as error:
        find_net("half_written_net:build")
    assert isinstance(error.value.__cause__, SyntaxError)
    assert "half_written_net" not in sys.modules


def test_the_seed_decides_the_weights():
    first, same, other = (build("digits_cnn", seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build("digits_cnn", seed=99)
    assert torch.equal(torch.rand(3), expected)


def test_only_named_parameters_are_passed():
    assert build(f"{__name__}:plain", {"hidden": 6}).get_parameter("weight").shape == (2, 6)
    assert build(f"{__name__}:Wrapped", {"bias": False}, classes=5).get_parameter("out.weight").shape == (
        5,
        4,
    )
    assert isinstance(build(f"{__name__}:takes_any", {"depth": 2}), nn.Linear)


def test_own_arguments_win():
    assert build("digits_cnn", {"classes": 12}).get_parameter("ip1.bias").shape == (12,)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("digits_cnn", {"widht": 8}, r"net\.arguments\.widht is not an argument of it: did you mean width\?"),
        ("lenet", {"width": 8}, r"net\.arguments\.width is not an argument of it: known: batch_size"),
        (f"{__name__}:broken", {"depth": 1}, "depth is not an argument of it: it takes none of its own"),
        (f"{__name__}:unbuildable", {}, r"net 'Wrong': layer 'relu' \(ReLU\): .*did you mean 'data'"),
        (f"{__name__}:unlearned", {}, "0 trainable parameters; it must have at least one"),
        (f"{__name__}:needs_more", {}, r"missing a required argument: 'depth': set it in net\.arguments"),
        (f"{__name__}:no_module", {}, "it returned a str; it must return a torch.nn.Module or a NetSpec"),
        (f"{__name__}:frozen", {}, "0 trainable parameters; it must have at least one"),
        (f"{__name__}:broken", {}, "building it with classes=10 failed: ZeroDivisionError: of all things"),
        ("lenet", {}, r"the input has shape \(1, 8, 8\); expected at least 1 channel of 14x14"),
    ],
)
def test_bad_nets_say_what_to_do(name, arguments, message):
    with pytest.raises(NetError, match=message):
        build(name, arguments)


@pytest.mark.parametrize(
    ("name", "shape"), [("lenet", (1, 28, 28)), ("adult", (9,)), (f"{__name__}:described", (5,))]
)
def test_a_description_becomes_a_net_that_trains(name, shape):
    net = build(name, shape=shape, classes=3)
    assert isinstance(net, CaffeNet)
    assert (net.phase, net.training) == ("TRAIN", True)
    assert net.shapes["data"][1:] == shape
    loss = net.loss(net({"data": torch.rand(2, *shape), "label": torch.tensor([0, 2])}))
    assert loss.requires_grad


def test_the_seed_decides_the_weights_of_a_description():
    torch.manual_seed(5)
    first, same, other = (build("adult", {"hidden": 7}, shape=(9,), seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["ip1.weight"], other["ip1.weight"])
    assert first["ip1.weight"].shape == (7, 9)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)


def test_data_layers_take_the_shape_of_the_rows():
    net = build(f"{__name__}:from_databases", shape=(3, 8, 8))
    assert isinstance(net, CaffeNet)
    assert (net.shapes["data"], net.shapes["label"]) == ((100, 3, 8, 8), (100,))
    assert net.inputs["data"].source == "train_lmdb"
    net = build(f"{__name__}:from_hdf5", shape=(7,))
    assert isinstance(net, CaffeNet)
    assert (net.shapes["data"], net.shapes["label"]) == ((1, 7), (1,))
