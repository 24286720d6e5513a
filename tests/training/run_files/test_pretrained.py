"""A run that begins with weights from files: what is its checkpoint of round 0, and what is said of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from image_rows import image_rows
from named_rows import classes, number, rows_of
from sparknet.config import Data, Net, Run, RunConfig
from sparknet.errors import ConfigError, NetError
from sparknet.training.caffe_runs.run_hooks import CaffeHook
from sparknet.training.objectives.build_objective import build_objective
from sparknet.training.objectives.module_objective import ModuleObjective
from sparknet.training.objectives.objective import Objective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.checkpoint import Checkpoints
from sparknet.training.run_files.pretrained import begin_pretrained

ROWS = rows_of([number("x", 3)], [classes("y", 2)])


class Told:
    """Keeps what a run would tell."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def __call__(self, event: str, *, message: str, level: str = "info") -> None:
        assert event == "note"
        self.notes.append((level, message))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def objective() -> Objective:
    return ModuleObjective(net(), ROWS, name="mine")


def begin(tmp_path: Path, told: Told, objective: Objective, **settings):
    data = Data(source="digits", validation_fraction=0.2)
    config = RunConfig(data=data, net=Net(name="mine:net", **settings), run=Run(rounds=1))
    return CaffeHook(config, None).begin(objective, Checkpoints(tmp_path / "run", keep=2), told)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    weights = {
        name: torch.full_like(tensor, 2.0) for name, tensor in net().state_dict().items() if name != "1.bias"
    }
    save_file({**weights, "aux": torch.ones(1)}, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_module_begins_with_the_weights_of_a_file(tmp_path, file):
    told, begun = Told(), objective()
    saved = begin(tmp_path, told, begun, weights=str(file), weights_strict=False)
    assert saved is not None
    assert saved.progress.round == 0
    kept = load_file(tmp_path / "run" / "checkpoints" / "round-000000" / "weights.safetensors")
    assert kept.keys() == net().state_dict().keys()
    assert torch.equal(kept["0.weight"], torch.full((4, 3), 2.0))
    assert torch.equal(kept["1.bias"], net()[1].bias)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in begun.module.state_dict().items())
    assert told.notes == [
        ("info", f"begins with {file}"),
        ("warning", f"{file} lacks 1 weights: 1.bias"),
        ("warning", f"{file} has, and the net has not, 1 weights: aux"),
    ]


def test_many_weights_are_told_as_some(tmp_path):
    save_file(
        {f"w{at:02}": torch.ones(1) for at in range(9)} | {"0.bias": torch.ones(4)}, tmp_path / "w.safetensors"
    )
    settings = Net(name="mine:net", weights=str(tmp_path / "w.safetensors"), weights_strict=False)
    _, told = begin_pretrained(settings, objective(), Checkpoints(tmp_path / "run", keep=2))
    assert told[1].endswith("9 weights: w00, w01, w02, w03, w04, w05 ...")


def test_a_file_that_does_not_fit_begins_nothing(tmp_path, file):
    with pytest.raises(NetError, match=r"missing there: 1\.bias; left over: aux"):
        begin(tmp_path, Told(), objective(), weights=str(file))
    assert not (tmp_path / "run").exists()


def test_without_weights_a_run_begins_with_the_nets_own(tmp_path):
    assert begin(tmp_path, Told(), objective()) is None


def test_a_module_has_no_layers_of_caffes_names(tmp_path):
    with pytest.raises(ConfigError, match=r"'a\.caffemodel' and net mine is no Caffe net.*set net\.prototxt"):
        begin(tmp_path, Told(), objective(), weights="a.caffemodel")


@pytest.mark.parametrize("settings", [{"weights_map": {"a": "b"}}, {"weights_strict": False}])
def test_a_caffe_net_takes_no_map(tmp_path, settings):
    lenet = build_objective(Recipe(net=Net(name="lenet")), image_rows((1, 28, 28)), batch_size=2, seed=0)
    with pytest.raises(ConfigError, match=r"a Caffe net takes the weights of the layers of .*leave both out"):
        begin(tmp_path, Told(), lenet, weights="a.caffemodel", **settings)
