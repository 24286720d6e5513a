"""Where files are looked for that another one names."""

from pathlib import Path

import pytest

from sparknet.caffe import CaffeSolver
from sparknet.caffe.solver.named_files import find_file, listed_files


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own for the file that names others."""
    here, directory = tmp_path / "here", tmp_path / "solvers"
    here.mkdir()
    (directory / "nets").mkdir(parents=True)
    monkeypatch.chdir(here)
    return directory


def test_what_is_here_or_beside_needs_no_word(beside: Path, caplog):
    (beside / "a").touch()
    (beside / "nets" / "b").touch()
    assert find_file("a", beside) == str(beside / "a")
    assert find_file("nets/b", beside) == str(beside / "nets/b")
    Path("a").touch()
    assert find_file("a", beside) == "a"
    assert find_file("a", None) == "a"
    assert not caplog.messages


@pytest.mark.parametrize("name", ["/root/SparkNet/models/b", "models/b", "/root/b/", "../../b"])
def test_a_path_of_another_machine_is_found_by_its_last_part(beside: Path, caplog, name: str):
    (beside / "b").touch()
    assert find_file(name, beside) == str(beside / "b")
    assert caplog.messages == [f"{name} is not here: {beside / 'b'} is taken, which has its name"]
    assert list(listed_files([f"{name}, {name}"], beside)) == [str(beside / "b")] * 2


@pytest.mark.parametrize("name", ["/root/b", "b", "", "/", "..", "x" * 5000])
def test_what_is_nowhere_keeps_its_name(beside: Path, caplog, name: str):
    assert find_file(name, beside) in (name, str(beside / name))
    assert not caplog.messages


def test_a_solver_of_another_machine_finds_its_net(beside: Path, caplog):
    (beside / "net.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: [2, 3] } } }\n'
        'layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 1 } }\n'
        'layer { name: "l" type: "EuclideanLoss" bottom: "a" bottom: "a" top: "l" }'
    )
    (beside / "solver.prototxt").write_text(
        'train_net: "/root/SparkNet/models/net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: -0.3'
    )
    assert CaffeSolver.from_prototxt(beside / "solver.prototxt").net.inputs.keys() == {"x"}
    assert f"{beside}/net.prototxt is taken" in caplog.text
