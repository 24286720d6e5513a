"""Nets that a program gives: how they travel, and what cannot."""

import functools
import threading

import pytest
import torch
from pyspark import cloudpickle
from torch import nn

import gpu_nets
from sparknet.caffe import CaffeNet, zoo
from sparknet.errors import ConfigError
from sparknet.ml.given_net import named, net_from
from sparknet.training.objectives.given_code import NetInstance


class Tied(nn.Module):
    """Two layers of one weight, a buffer, and what is neither."""

    def __init__(self, side=3000):
        super().__init__()
        self.first = nn.Linear(side, side, bias=False)
        self.second = nn.Linear(side, side, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(side)
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.scale = torch.tensor([2.0])
        self.first.weight.requires_grad_(False)


def test_a_module_travels_without_its_weights():
    made = NetInstance(Tied())
    # 36 MB of weights.
    assert len(cloudpickle.dumps(made)) < 20_000


def test_a_module_is_made_again_in_its_form():
    module = Tied(side=4)
    again = cloudpickle.loads(cloudpickle.dumps(NetInstance(module)))()
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in module.state_dict().items()
    }
    assert again.second.weight is again.first.weight
    assert not again.first.weight.requires_grad
    assert again.norm.weight.requires_grad
    assert all(tensor.device.type == "cpu" for tensor in again.state_dict().values())
    # What is not in the state_dict is part of the form.
    assert torch.equal(again.mask, torch.ones(3))
    assert torch.equal(again.scale, torch.tensor([2.0]))
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.first.weight, module.first.weight)


def test_the_module_that_was_given_stays_as_it_is():
    module = Tied(side=4)
    before = module.first.weight.clone()
    NetInstance(module)()
    assert torch.equal(module.first.weight, before)


@pytest.mark.parametrize(
    ("given", "section"),
    [
        ("lenet", {"name": "lenet"}),
        ("lenett", {"name": "lenett"}),
        ("my.nets:build", {"name": "my.nets:build"}),
        ("nets/train_val.prototxt", {"prototxt": "nets/train_val.prototxt"}),
        ('name: "x" layer { }', {"prototxt": 'name: "x" layer { }'}),
    ],
)
def test_names_and_files(given, section):
    net = net_from(given)
    assert (net.section, net.code, net.module) == (section, {}, None)


def test_a_description_goes_as_its_text():
    assert 'type: "Convolution"' in net_from(zoo.lenet()).section["prototxt"]


def test_a_callable_that_can_be_imported_goes_by_its_name():
    net = net_from(gpu_nets.matrices)
    assert net.section == {"name": "gpu_nets:matrices"}
    assert not net.code


def test_a_callable_that_cannot_goes_beside_the_configuration():
    class Net(nn.Module):
        pass

    for given in (Net, lambda: Net(), functools.partial(gpu_nets.matrices, classes=3)):
        net = net_from(given)
        assert net.code[net.section["name"]] is given


def test_net_and_loss_may_both_be_lambdas():
    net, loss = lambda: None, lambda outputs, targets: None
    names = [next(iter(named(param, given)[1])) for param, given in (("net", net), ("loss", loss))]
    assert len(set(names)) == 2


def test_a_module_gives_its_weights_too():
    module = Tied(side=4)
    net = net_from(module)
    assert net.module is module
    assert ":Tied()#" in net.section["name"]
    # Other weights are another run.
    with torch.no_grad():
        module.norm.weight += 1
    assert net_from(module).section["name"] != net.section["name"]


def test_what_is_no_net_is_refused():
    with pytest.raises(ConfigError, match=r"net is a CaffeNet; it is built anew"):
        net_from(CaffeNet(zoo.lenet(), "TEST"))
    with pytest.raises(ConfigError, match=r"net is a Sequential with lazy parameters"):
        net_from(nn.Sequential(nn.LazyLinear(3)))


class WithLock(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
        self.body[1].cache = {"lock": threading.Lock()}


def test_the_attribute_that_does_not_pickle_is_named():
    with pytest.raises(ConfigError, match=r"net\.body\.1\.cache\['lock'\] is lock, which cannot travel"):
        net_from(WithLock())


def test_the_variable_that_does_not_pickle_is_named():
    lock = threading.Lock()

    def build(input_shape):
        with lock:
            return nn.Linear(input_shape[0], 2)

    with pytest.raises(ConfigError, match=r"net's variable lock is lock, which cannot travel"):
        net_from(build)
