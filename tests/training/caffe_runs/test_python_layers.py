"""What a net with Python layers comes to as a run: where its code is looked for, and what leave is kept."""

from pathlib import Path

import pytest
import torch

from segmentation import NET, write_segmentation
from sparknet.caffe import CaffeSolver
from sparknet.config import RunConfig, decode, encode
from sparknet.data.sources.opening import open_sources
from sparknet.errors import NetError
from sparknet.training.caffe_runs.open_run import open_run
from sparknet.training.caffe_runs.run_config import CaffeFiles, solver_run
from sparknet.training.objectives.build_objective import build_objective, check_net
from sparknet.training.objectives.caffe_objective import CaffeObjective
from sparknet.training.objectives.recipe import Recipe
from sparknet.training.run_files.saved_model import describe, load_model, save_model
from sparknet.training.run_files.state_bytes import dump_weights

ALLOWED = "net.allow_python_layers=true"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_code_is_looked_for_here_and_beside_the_net(here: Path, tmp_path: Path) -> None:
    solver = write_segmentation(tmp_path / "files", "segment_layers_run")
    start = solver_run(CaffeFiles(solver=solver), None, [ALLOWED])
    net, data = start.config.net, start.config.data
    assert net.python_path == (str(here), str(tmp_path / "files"))
    assert (data.source, data.input_names, data.target_names) == ("net", ("pass",), ("pass",))
    assert (start.config.solver.batch_size, start.config.run.eval_batches) == (1, 6)
    # As a worker has it, or whoever resumes: from the configuration alone, wherever that is.
    config = decode(RunConfig, encode(start.config))
    assert open_run(config).config == config
    rows = open_sources(data).schema(data)
    assert rows is not None
    recipe = Recipe.read(config.net, config.solver)
    check_net(recipe)
    objective = build_objective(recipe, rows, batch_size=1, seed=3, data=data)
    assert isinstance(objective, CaffeObjective)
    first, second = (objective.loss({"pass": torch.zeros(1)}) for _ in range(2))
    assert first != second
    assert objective.measure({"pass": torch.zeros(1)}).keys() == {"accuracy", "loss"}


def test_a_configuration_file_names_no_rows(here: Path, tmp_path: Path) -> None:
    write_segmentation(tmp_path / "files", "segment_layers_toml")
    tables = {
        "data": {"source": "net"},
        "net": {"prototxt": str(tmp_path / "files" / "net.prototxt"), "allow_python_layers": True},
        "run": {"rounds": 2, "eval_batches": 3},
    }
    start = open_run(decode(RunConfig, tables))
    assert start.config.net.python_path == (str(here), str(tmp_path / "files"))
    rows = open_sources(start.config.data).schema(start.config.data)
    assert rows is not None
    assert start.objective(rows).evaluation_batch == 1


def test_each_net_of_a_solver_may_have_its_code_beside_it(here: Path, tmp_path: Path) -> None:
    for phase in ("train", "val"):
        (tmp_path / phase).mkdir()
        (tmp_path / phase / "net.prototxt").write_text(NET)
    solver = tmp_path / "solver.prototxt"
    nets = f'train_net: "{tmp_path}/train/net.prototxt" test_net: "{tmp_path}/val/net.prototxt"'
    solver.write_text(f'{nets} base_lr: 1 lr_policy: "fixed" max_iter: 3 test_iter: 1 test_interval: 3')
    start = solver_run(CaffeFiles(solver=solver), None, [])
    assert start.config.net.python_path == (
        str(here),
        str(tmp_path / "train"),
        str(tmp_path / "val"),
        str(tmp_path),
    )
    with pytest.raises(NetError, match="layers that are code"):
        check_net(start.recipe)


def test_a_given_place_is_the_only_one(here: Path, tmp_path: Path) -> None:
    solver = write_segmentation(tmp_path / "files", "segment_layers_given")
    start = solver_run(CaffeFiles(solver=solver), None, [ALLOWED, "net.python_path=['../files']"])
    assert start.config.net.python_path == (str(here / "../files"),)
    check_net(start.recipe)


def test_a_model_says_that_it_needs_code_and_gives_no_leave(here: Path, tmp_path: Path) -> None:
    solver = write_segmentation(tmp_path / "files", "segment_layers_model")
    start = solver_run(CaffeFiles(solver=solver), None, [ALLOWED])
    rows = open_sources(start.config.data).schema(start.config.data)
    assert rows is not None
    (tmp_path / "weights").write_bytes(dump_weights(start.objective(rows).module))
    save_model(tmp_path / "model", tmp_path / "weights", describe(start.config, rows, None), {})
    assert '"allow_python_layers": true' in (tmp_path / "model" / "model.json").read_text()
    with pytest.raises(NetError, match="layers that are code"):
        load_model(tmp_path / "model")
    model = load_model(tmp_path / "model", python_path=())
    assert model.description.net.python_path == start.config.net.python_path
    moved = load_model(tmp_path / "model", python_path=(str(tmp_path / "files"),))
    assert moved.description.net.python_path == (str(tmp_path / "files"),)


def test_caffes_solver_asks_for_leave_too(here: Path, tmp_path: Path) -> None:
    solver = write_segmentation(tmp_path / "files", "segment_layers_solver")
    with pytest.raises(NetError, match="layers that are code"):
        CaffeSolver.from_prototxt(solver)
    found = CaffeSolver.from_prototxt(solver, allow_python_layers=True)
    assert len(found.step({} for _ in range(3))) == 3
    assert found.test({} for _ in range(6))["loss"] > 0


def test_a_description_of_the_users_own_code_may_have_leave(here: Path, tmp_path: Path) -> None:
    write_segmentation(tmp_path / "files", "segment_layers_named")
    (here / "named_python_net.py").write_text(
        "from sparknet.caffe import NetSpec\n"
        f"def net(): return NetSpec.from_prototxt({str(tmp_path / 'files' / 'net.prototxt')!r})\n"
    )
    tables = {
        "data": {"source": "digits", "validation_fraction": 0.5},
        "net": {"name": "named_python_net:net"},
        "run": {"rounds": 1},
    }
    config = decode(RunConfig, tables)
    rows = open_sources(config.data).schema(config.data)
    assert rows is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(here))
        with pytest.raises(NetError, match="layers that are code"):
            build_objective(Recipe.read(config.net), rows, batch_size=1, seed=0)
        allowed = {"allow_python_layers": True, "python_path": [str(tmp_path / "files")]}
        config = decode(RunConfig, {**tables, "net": {**tables["net"], **allowed}})
        # Built, and then refused for its rows, which are not those of the data.
        with pytest.raises(NetError, match="takes no rows"):
            build_objective(Recipe.read(config.net), rows, batch_size=1, seed=0)
