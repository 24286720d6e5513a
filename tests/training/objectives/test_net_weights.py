"""Weights from files of every form into any module, and parameters that stay as they are."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparknet.errors import ConfigError, NetError
from sparknet.training.objectives.net_weights import freeze, load_module_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.head = nn.Linear(2, 2)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.words.weight


def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {name: torch.rand(tensor.shape).to(tensor.dtype) for name, tensor in Net().state_dict().items()}


def load(module, *paths, prefixes=None, strict=True):
    return load_module_weights(module, ",".join(map(str, paths)), prefixes=prefixes or {}, strict=strict)


def same(module, tensors) -> bool:
    return all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


@pytest.fixture
def file(tmp_path):
    """A file of weights in the form that its ending says, or in a dictionary under a key."""

    def write(tensors, name="net.safetensors", inside=""):
        path = tmp_path / name
        if name.endswith(".safetensors"):
            save_file(tensors, path)
        else:
            torch.save({inside: tensors, "epoch": 3} if inside else tensors, path)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("net.safetensors", ""),
        ("net.pt", ""),
        ("net.pth", "state_dict"),
        ("net.pt", "model_state_dict"),
        ("net.bin", "model"),
    ],
)
def test_every_form(file, name, inside):
    net = Net()
    loaded = load(net, file(trained(), name, inside))
    assert (loaded.missing, loaded.unexpected) == ((), ())
    assert same(net, trained())


def shards(file, tmp_path):
    tensors = trained()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for part, own in parts.items():
        file({name: tensors[name] for name in own}, part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, own in parts.items() for name in own}}))
    return index


def test_several_files_of_one_index(file, tmp_path):
    net = Net()
    load(net, shards(file, tmp_path))
    assert same(net, trained())


def test_an_index_whose_part_is_missing_names_the_part(file, tmp_path):
    index = shards(file, tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(NetError, match=r"b\.safetensors: no such file; give a \.safetensors"):
        load(Net(), index)


def test_of_several_files_the_last_counts(file):
    tensors, net = trained(), Net()
    other = {"head.bias": torch.full((2,), 9.0)}
    load(net, file(tensors), f" {file(other, 'other.pt')} ")
    assert same(net, {**tensors, **other})


def test_half_precision_becomes_the_nets(file):
    net = Net()
    load(
        net,
        file({name: tensor.half() for name, tensor in trained().items() if tensor.is_floating_point()}),
        strict=False,
    )
    assert net.head.weight.dtype == torch.float32
    assert torch.equal(net.head.weight, trained()["head.weight"].half().float())


def test_beginnings_of_names_pick_and_rename(file):
    elsewhere = {f"model.encoder.{name}": tensor for name, tensor in Net().backbone.state_dict().items()}
    path = file(
        {**{name: torch.ones_like(tensor) for name, tensor in elsewhere.items()}, "model.top": torch.ones(1)}
    )
    net, before = Net(), {}
    before = {name: tensor.clone() for name, tensor in net.head.state_dict().items()}
    loaded = load(net, path, prefixes={"model.encoder.": "backbone."})
    assert (loaded.missing, loaded.unexpected) == (("head.weight", "head.bias"), ())
    assert same(net.head, before)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in net.backbone.state_dict().values())


def test_the_longest_beginning_counts_and_an_empty_one_takes_the_rest(file):
    tensors = trained()
    moved = {f"m.{name}" if name.startswith("head") else name: tensor for name, tensor in tensors.items()}
    net = Net()
    load(net, file(moved), prefixes={"": "", "m.": ""})
    assert same(net, tensors)


def test_a_tensor_with_two_names_is_there_under_one(file):
    net = Tied()
    loaded = load(net, file({"words.weight": torch.ones(5, 3)}))
    assert loaded.missing == ()
    assert torch.equal(net.head.weight, torch.ones(5, 3))


def without(*names, **others):
    return {name: tensor for name, tensor in trained().items() if name not in names} | others


@pytest.mark.parametrize(
    ("tensors", "missing", "unexpected", "message"),
    [
        (
            without("head.bias"),
            ("head.bias",),
            (),
            "missing there: head.bias; left over: none: set net.weights_map, or",
        ),
        (without(extra=torch.ones(1)), (), ("extra",), "missing there: none; left over: extra"),
        (
            without("head.bias", **{"head.bias": torch.ones(7)}),
            ("head.bias",),
            ("head.bias",),
            r"head\.bias is \(7,\) there and \(2,\) here: .*net\.weights_strict=false",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_or_listed(file, tensors, missing, unexpected, message):
    path, net = file(tensors), Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(NetError, match=message):
        load(net, path)
    assert same(net, before), "a refused file changes nothing"
    loaded = load(net, path, strict=False)
    assert (loaded.missing, loaded.unexpected) == (missing, unexpected)
    assert same(net, {**trained(), **{name: before[name] for name in missing}})


def test_what_a_map_picks_and_does_not_fit_is_an_error(file):
    path = file({"m.head.bias": torch.ones(2), "m.other": torch.ones(1)})
    with pytest.raises(NetError, match="left over: other"):
        load(Net(), path, prefixes={"m.": ""})


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        ({}, r"none of its 1 weights \(m\.bias\) is one of the net's \(.* and 5 more\): set net\.weights_map"),
        (
            {"m.": "head.", "n.": "backbone."},
            r"has 'n\.', with which no weight of .* begins; they are m\.bias: cor",
        ),
    ],
)
def test_names_that_nothing_has_are_told(file, prefixes, message):
    path = file({"m.bias": torch.ones(2)})
    for strict in (True, False):
        with pytest.raises(NetError, match=message):
            load(Net(), path, prefixes=prefixes, strict=strict)


class Trap:
    """What a pickle may run when it is loaded."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_nothing_is_unpickled(file):
    with pytest.raises(NetError, match=r"is no file of weights alone: .*save the net's state_dict\(\)") as error:
        load(Net(), file({**trained(), "trap": Trap()}, "net.pt"))
    assert "\x1b" not in str(error.value), "no colours in a message"
    assert not Trap.sprung


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.index.json"])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NetError, match=rf"{name}: (cannot be read|is no file of weights alone)"):
        load(Net(), tmp_path / name)


def test_a_cut_archive_is_named(file):
    path = file(trained(), "net.pt")
    path.write_bytes(path.read_bytes()[:-200])
    assert not zipfile.is_zipfile(path)
    with pytest.raises(NetError, match=r"net\.pt: (cannot be read|is no file of weights alone)"):
        load(Net(), path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list without weights; save the net's state_dict"),
        ({"epoch": 3}, "holds dict without weights"),
    ],
)
def test_files_without_weights_are_told(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(NetError, match=message):
        load(Net(), tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.safetensors", r"none\.safetensors: no such file"),
        ("none.pt", r"none\.pt: no such file"),
        ("net.h5", r"net\.h5: of weights \.safetensors, \.index\.json, \.pt, \.pth, \.bin are read for this net"),
    ],
)
def test_files_of_another_kind_or_none(tmp_path, name, message):
    with pytest.raises(NetError, match=message):
        load(Net(), tmp_path / name)


# Frozen -----------------------------------------------------------------------------------------------------


def test_patterns_freeze_what_they_fit():
    net = Net()
    freeze(net, ("backbone.0.*", "*.bias"))
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {"backbone.0.weight", "backbone.0.bias", "backbone.1.bias", "head.bias"}


def test_without_patterns_all_stay_as_they_are():
    net = Net()
    net.head.bias.requires_grad_(False)
    freeze(net, ())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("bakbone.*",), r"has 'bakbone\.\*', which fits no parameter; they are .* and nearest is backbone\."),
        (("head.*", "zz"), r"has 'zz', which fits no parameter; they are backbone\.0\.weight.*correct the pattern"),
        (("*",), r"is \['\*'\], which freezes every parameter: leave one to be trained"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns, message):
    with pytest.raises(ConfigError, match=message):
        freeze(Net(), patterns)
