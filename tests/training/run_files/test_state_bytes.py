"""State as bytes: safetensors and JSON there and back, for any optimiser."""

import pytest
import torch
from safetensors.torch import load
from torch import nn

from sparknet.errors import CheckpointError
from sparknet.training.run_files.state_bytes import dump_optimizer, dump_weights, load_optimizer, load_weights
from sparknet.training.sync.flat_weights import FlatWeights

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def step(module, optimiser, seed):
    images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    optimiser.zero_grad()
    module(images).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_training_goes_on_bit_for_bit_from_what_was_saved(make):
    module = net()
    optimiser = make(module.parameters())
    for seed in range(3):
        step(module, optimiser, seed)
    weights, state = dump_weights(module), dump_optimizer(optimiser)
    other = net(1)
    FlatWeights(other)
    resumed = make(other.parameters())
    load_weights(other, weights)
    load_optimizer(resumed, state)
    for seed in range(3, 6):
        step(module, optimiser, seed)
        step(other, resumed, seed)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert dump_optimizer(resumed) == dump_optimizer(optimiser)


def test_loading_replaces_what_the_optimiser_had():
    module = net()
    optimiser = OPTIMISERS["momentum"](module.parameters())
    fresh = dump_optimizer(optimiser)
    step(module, optimiser, 0)
    assert dump_optimizer(optimiser) != fresh
    load_optimizer(optimiser, fresh)
    assert not optimiser.state


def test_the_learning_rate_is_not_part_of_the_state():
    module = net()
    optimiser = OPTIMISERS["momentum"](module.parameters())
    step(module, optimiser, 0)
    state = dump_optimizer(optimiser)
    optimiser.param_groups[0]["lr"] = 0.007
    load_optimizer(optimiser, state)
    assert optimiser.param_groups[0]["lr"] == 0.007


@pytest.mark.parametrize("kind", ["NAdam", "Adadelta", "ASGD", "AdamW", "Adafactor"])
def test_state_beside_bfloat16_weights_is_not_rounded(kind):
    module = net().to(torch.bfloat16)
    optimiser = getattr(torch.optim, kind)(module.parameters(), lr=0.01)

    def half_step(module, optimiser, seed):
        images = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).bfloat16()
        optimiser.zero_grad()
        module(images).float().square().mean().backward()
        optimiser.step()

    for seed in range(3):
        half_step(module, optimiser, seed)
    other = net(1).to(torch.bfloat16)
    load_weights(other, dump_weights(module))
    resumed = getattr(torch.optim, kind)(other.parameters(), lr=0.01)
    load_optimizer(resumed, dump_optimizer(optimiser))
    for seed in range(3, 9):
        half_step(module, optimiser, seed)
        half_step(other, resumed, seed)
    assert dump_optimizer(resumed) == dump_optimizer(optimiser)
    assert dump_weights(other) == dump_weights(module)


def test_state_is_in_the_memory_order_of_its_parameter():
    module = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
    optimiser = OPTIMISERS["amsgrad"](module.parameters())
    module(torch.randn(2, 4, 5, 5)).square().mean().backward()
    optimiser.step()
    resumed = OPTIMISERS["amsgrad"](module.parameters())
    load_optimizer(resumed, dump_optimizer(optimiser))
    for key, value in optimiser.state[module.weight].items():
        assert torch.equal(resumed.state[module.weight][key], value)
        assert resumed.state[module.weight][key].stride() == value.stride(), key


def named(module, *groups):
    """An optimiser whose groups tell their parameters' names."""
    parameters = dict(module.named_parameters())
    made = [{"params": [parameters[name] for name in names], "names": list(names)} for names in groups]
    return torch.optim.SGD(made, lr=0.1, momentum=0.9)


def test_parameters_are_told_by_name_however_they_are_grouped():
    module = nn.Linear(3, 3)
    one = named(module, ["weight", "bias"])
    module(torch.ones(2, 3)).square().mean().backward()
    one.step()
    other = named(module, ["bias"], ["weight"])
    load_optimizer(other, dump_optimizer(one))
    for parameter in module.parameters():
        assert torch.equal(other.state[parameter]["momentum_buffer"], one.state[parameter]["momentum_buffer"])
    # The weight was frozen since: the rest goes on.
    fewer = named(module, ["bias"])
    load_optimizer(fewer, dump_optimizer(one))
    assert list(fewer.state) == [module.bias]


def test_state_of_another_net_or_optimiser_is_refused():
    module = net()
    optimiser = OPTIMISERS["momentum"](module.parameters())
    step(module, optimiser, 0)
    with pytest.raises(CheckpointError, match=r"is that of SGD, and the run has AdamW; resume with .*net\.weights"):
        load_optimizer(OPTIMISERS["amsgrad"](module.parameters()), dump_optimizer(optimiser))
    linear = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match=r"that of 0\.momentum_buffer and others, and none is of a parameter"):
        load_optimizer(named(linear, ["weight", "bias"]), dump_optimizer(optimiser))


def test_weights_are_plain_safetensors_with_the_state_dicts_names():
    module = net()
    FlatWeights(module)
    tensors = load(bytes(dump_weights(module)))
    assert tensors.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor)


def test_weights_are_loaded_in_place():
    module = net()
    flat = FlatWeights(module)
    load_weights(module, dump_weights(net(7)))
    assert torch.equal(flat.local[: 2 * 9].view(2, 1, 3, 3), net(7)[0].weight)


def test_tied_weights_go_and_come_back():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    saved = dump_weights(module)
    before = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight.zero_()
    load_weights(module, saved)
    assert module[1].weight is module[0].weight
    assert torch.equal(module[0].weight, before)


def test_channels_last_weights_go_and_come_back():
    module = net().to(memory_format=torch.channels_last)
    other = net(5).to(memory_format=torch.channels_last)
    load_weights(other, dump_weights(module))
    assert torch.equal(other[0].weight, module[0].weight)
    assert other[0].weight.stride() == module[0].weight.stride()


def test_weights_of_another_net_are_refused():
    with pytest.raises(CheckpointError, match=r"do not fit the net.*use the net that the run was trained with"):
        load_weights(net(), dump_weights(nn.Linear(2, 2)))


@pytest.mark.parametrize("damage", [b"", b"\x00", b"not safetensors at all"])
def test_damaged_bytes_are_a_checkpoint_error(damage):
    with pytest.raises(CheckpointError):
        load_weights(net(), damage)
    module = net()
    with pytest.raises(CheckpointError):
        load_optimizer(OPTIMISERS["momentum"](module.parameters()), damage)
