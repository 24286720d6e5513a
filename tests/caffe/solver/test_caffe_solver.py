"""CaffeSolver: building nets, stepping, tests, snapshots, and what goes wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparknet.caffe import CaffeNet
from sparknet.caffe.schema import NetParameter
from sparknet.caffe.solver.caffe_solver import CaffeSolver
from sparknet.caffe.solver.solverstate import read_state, write_state
from sparknet.errors import CheckpointError, ConfigError, DataError, NetError

NET = """
name: "small"
layer { name: "in" type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "score" type: "InnerProduct" bottom: "data" top: "score"
  inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" loss_weight: 2 }
"""
INPUT = 'type: "Input" top: "data" top: "label" input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } }'
DATA = 'type: "Data" top: "data" top: "label" data_param { source: "lmdb" batch_size: 4 }'
DATABASE = NET.replace(INPUT, DATA)
SOLVER = """
net: "net.prototxt"
base_lr: 0.5
lr_policy: "fixed"
momentum: 0.9
random_seed: 3
"""

Batch = dict[str, np.ndarray]


def batches(count: int, seed: int = 0) -> list[Batch]:
    random = np.random.default_rng(seed)
    data = random.standard_normal((count, 4, 3)).astype("f4")
    return [{"data": rows, "label": (rows.sum(1) > 0).astype("i8")} for rows in data]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the net's file lies; also the current directory."""
    (tmp_path / "net.prototxt").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(folder: Path, text: str = "", *, solver: str = SOLVER, **arguments) -> CaffeSolver:
    (folder / "solver.prototxt").write_text(solver + text)
    return CaffeSolver.from_prototxt(folder / "solver.prototxt", **arguments)


def weights(solver: CaffeSolver) -> list[torch.Tensor]:
    return [blob.detach().clone() for blobs in solver.net.weights().values() for blob in blobs]


def equal(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


# Building


def test_the_seed_decides_the_start_values(folder: Path):
    first, second = made(folder), made(folder)
    assert equal(weights(first), weights(second))
    assert not equal(weights(first), weights(made(folder, solver=SOLVER.replace("seed: 3", "seed: 4"))))


def test_a_net_is_found_beside_the_solver_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    made(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert CaffeSolver.from_prototxt(folder / "solver.prototxt").net.spec.parameters.name == "small"


def test_the_current_directory_comes_first_as_in_caffe(folder: Path, monkeypatch: pytest.MonkeyPatch):
    made(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "net.prototxt").write_text(NET.replace("small", "nearer"))
    monkeypatch.chdir(elsewhere)
    assert CaffeSolver.from_prototxt(folder / "solver.prototxt").net.spec.parameters.name == "nearer"


def test_a_net_that_is_given_is_the_net(folder: Path):
    net = CaffeNet.from_prototxt(NET, phase="TRAIN")
    solver = made(folder, solver='base_lr: 1 lr_policy: "fixed"', net=net)
    assert solver.net is net


def test_nets_inside_the_solver_file_and_states(folder: Path):
    staged = NET.replace('top: "score"\n', 'top: "score" include { stage: "deep" }\n', 1)
    solver = CaffeSolver.from_prototxt(
        f'net_param {{ {staged} }} train_state {{ stage: "deep" }} '
        'base_lr: 1 lr_policy: "fixed" test_iter: 1 test_interval: 1 test_state { stage: "deep" level: 2 }'
    )
    assert "score" in solver.net.weights()
    (test_net,) = solver.test_nets
    assert (test_net.phase, test_net.spec.parameters.state.level) == ("TEST", 2)
    assert test_net.outputs == ("accuracy", "loss")


@pytest.mark.parametrize("database", [False, True])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NET.replace("loss_weight: 2", "loss_weight: 0"), "has a loss weight: add a loss layer"),
        (NET.replace("loss_weight: 2", "include { phase: TEST }"), "has a loss weight: add a loss layer"),
        (
            NET.replace('"score"\n', '"score" include { phase: TEST }\n').replace('m: "score"', 'm: "data"'),
            "learnable",
        ),
    ],
    ids=["no weight", "no loss", "no blobs"],
)
def test_a_net_that_cannot_be_trained(folder: Path, database: bool, text: str, told: str):
    """Told when the net is there: at once, or with the first batch."""
    (folder / "net.prototxt").write_text(text)
    if database:
        (folder / "net.prototxt").write_text(text.replace(INPUT, DATA))
        solver = made(folder)
    with pytest.raises(
        NetError, match=rf"net\.prototxt: .*training net has.*{told}|no top of the training .*{told}"
    ):
        _ = solver.step(batches(1)) if database else made(folder)


def test_the_solver_adds_to_the_state_that_a_nets_file_names(folder: Path):
    staged = NET.replace('top: "score"\n', 'top: "score" include { stage: "deep" stage: "wide" }\n', 1)
    (folder / "net.prototxt").write_text('state { stage: "deep" }' + staged)
    assert "score" in made(folder, 'train_state { stage: "wide" }').net.weights()


def test_test_nets_stand_in_caffes_order_and_share_the_weights(folder: Path):
    (folder / "own.prototxt").write_text(NET.replace("small", "own"))
    inner = NET.replace("small", "inner")
    solver = made(
        folder,
        f'test_net: "own.prototxt" test_net_param {{ {inner} }} test_interval: 1' + 3 * " test_iter: 1",
    )
    assert [net.spec.parameters.name for net in solver.test_nets] == ["inner", "own", "small"]
    solver.step(batches(3))
    for net in solver.test_nets:
        assert equal(net.weights()["score"], solver.net.weights()["score"])


def test_weights_to_start_from(folder: Path):
    start = made(folder, solver=SOLVER.replace("seed: 3", "seed: 9"))
    start.step(batches(2))
    start.net.save_weights(folder / "start.caffemodel")
    made(folder).net.save_weights(folder / "other.caffemodel")  # the last file wins
    solver = made(folder, 'weights: "other.caffemodel, start.caffemodel"')
    assert equal(weights(solver), weights(start))
    with pytest.raises(NetError, match=r"nowhere\.caffemodel"):
        made(folder, 'weights: "nowhere.caffemodel"')


def test_nets_whose_shapes_only_the_data_tell_are_built_at_the_first_batch(folder: Path):
    (folder / "net.prototxt").write_text(DATABASE)
    solver = made(folder, "test_iter: 1 test_interval: 1")
    with pytest.raises(NetError, match=r"shapes of inputs data are not known, .*give input_shapes, or take a step"):
        _ = solver.net
    with pytest.raises(NetError, match="the net is not built"):
        solver.test(batches(1))
    solver.step(batches(2))
    assert solver.net.weights()["score"][0].shape == (2, 3)
    assert len(solver.test_nets) == 1
    given = made(folder, "test_iter: 1 test_interval: 1", input_shapes={"data": (4, 3)})
    assert given.net.shapes["data"] == (4, 3)
    given.step(batches(2))
    assert equal(weights(given), weights(solver))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SOLVER.replace('net: "net.prototxt"', ""), r"solver\.prototxt: it names no net; set net"),
        (SOLVER + "iter_size: 0", r"solver\.prototxt: iter_size is 0"),
    ],
)
def test_settings_at_fault(folder: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        made(folder, solver=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SOLVER.replace("net.prototxt", "nowhere.prototxt"), r"nowhere\.prototxt: no such file"),
        (SOLVER + "no_such_field: 1", "no_such_field"),
        (SOLVER + 'type: "SGD" solver_type: SGD', "solver_type is the old name of type"),
    ],
)
def test_files_at_fault(folder: Path, text: str, message: str):
    with pytest.raises(NetError, match=message):
        made(folder, solver=text)


# Stepping


def test_a_step_for_each_full_group(folder: Path):
    solver = made(folder, "iter_size: 2")
    losses = solver.step(batches(5))
    assert len(losses) == 2 == solver.iteration
    assert all(isinstance(loss, float) for loss in losses)
    assert set(solver.outputs) == {"loss"}


def test_accumulated_batches_are_one_large_batch(folder: Path):
    (folder / "net.prototxt").write_text(NET.replace("dim: 4", "dim: 8"))
    whole = made(folder)
    (folder / "net.prototxt").write_text(NET)
    parts = made(folder, "iter_size: 2")
    pairs = batches(6)
    large = [
        {name: np.concatenate([pairs[at][name], pairs[at + 1][name]]) for name in pairs[at]} for at in (0, 2, 4)
    ]
    np.testing.assert_allclose(parts.step(pairs), whole.step(large), rtol=1e-5)
    for mine, theirs in zip(weights(parts), weights(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_steps_go_on_past_max_iter_and_ask_for_the_rate_change_nothing(folder: Path):
    solver = made(
        folder,
        "max_iter: 1 gamma: 0.5 stepvalue: 1 stepvalue: 1",
        solver=SOLVER.replace("fixed", "multistep"),
    )
    rates = []
    for batch in batches(4):
        rates.append(solver.learning_rate())
        assert solver.learning_rate() == rates[-1]
        solver.step([batch])
        assert solver.last_rate == rates[-1]
    assert rates == [0.5, 0.25, 0.125, 0.125]


def test_labels_may_be_floats_and_arrays_read_only(folder: Path):
    one, other = made(folder), made(folder)
    given = batches(2)
    for batch in given:
        batch["data"].flags.writeable = False
    as_floats = [{"data": torch.tensor(b["data"]), "label": torch.tensor(b["label"]).float()} for b in given]
    assert one.step(given) == other.step(as_floats)


DEEP = NET.replace(
    'layer { name: "score" type: "InnerProduct" bottom: "data"',
    """layer { name: "fixed" type: "InnerProduct" bottom: "data" top: "fixed"
  param { lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "score" type: "InnerProduct" bottom: "fixed\"""",
)


@pytest.mark.parametrize("forced", [False, True])
def test_gradients_that_force_backward_asks_for_count(folder: Path, forced: bool):
    """Caffe computes them for what has lr_mult 0, so that they are in histories and in the norm that is clipped."""
    (folder / "net.prototxt").write_text(("force_backward: true" if forced else "") + DEEP)
    given = batches(1)
    solver = made(folder, 'type: "Adam" clip_gradients: 0.1')
    before = weights(solver)
    twin = CaffeNet.from_prototxt(DEEP.replace("lr_mult: 0", "lr_mult: 1"), "TRAIN")
    twin.set_weights(solver.net.weights())
    twin.loss(twin({name: torch.tensor(value) for name, value in given[0].items()})).backward()
    gradients = [blob.tensor.grad for blob in twin.learnable]
    if not forced:
        gradients[:2] = [torch.zeros_like(blob) for blob in before[:2]]
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norm > 0.1
    solver.step(given)
    for mean, gradient in zip(solver.history()[:4], gradients, strict=True):
        torch.testing.assert_close(mean, 0.1 * gradient * 0.1 / norm)
    assert equal(weights(solver)[:2], before[:2])
    assert not equal(weights(solver)[2:], before[2:])
    assert [blob.tensor.requires_grad for blob in solver.net.learnable] == [forced, forced, True, True]


def test_the_loss_counts_its_weight(folder: Path):
    solver = made(folder)
    (loss,) = solver.step(batches(1))
    assert loss == pytest.approx(2 * float(solver.outputs["loss"]))


# Tests


def test_a_test_gives_means_over_its_batches(folder: Path):
    solver = made(folder, "test_iter: 2 test_interval: 1")
    solver.step(batches(2))
    tests = batches(3, seed=1)
    found = solver.test(tests)
    with torch.no_grad():
        given = [{name: torch.tensor(value) for name, value in batch.items()} for batch in tests]
        outputs = [solver.test_nets[0](batch) for batch in given]
    assert set(found) == {"accuracy", "loss"}
    for name, mean in found.items():
        assert float(mean) == pytest.approx(sum(float(one[name]) for one in outputs) / 3, rel=1e-5)
    with pytest.raises(DataError, match="there are 0 batches to test with"):
        solver.test([])


def test_each_test_net_is_tested_by_its_place(folder: Path):
    (folder / "other.prototxt").write_text(NET.replace('top: "accuracy"', 'top: "hits"'))
    solver = made(folder, 'test_net: "other.prototxt" test_iter: 1 test_iter: 1 test_interval: 1')
    assert set(solver.test(batches(1))) == {"hits", "loss"}
    assert set(solver.test(iter(batches(1)), 1)) == {"accuracy", "loss"}


# Snapshots


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdaDelta"])
def test_a_restored_solver_goes_on_to_the_same_bits(folder: Path, form: str, kind: str):
    text = f'snapshot_format: {form} type: "{kind}" snapshot_prefix: "p" gamma: 0.5 stepvalue: 2 stepvalue: 2'
    solver = SOLVER.replace("fixed", "multistep")
    unbroken = made(folder, text, solver=solver)
    unbroken.step(batches(6))
    first = made(folder, text, solver=solver)
    first.step(batches(6)[:3])
    _, state = first.snapshot()
    second = made(folder, text, solver=solver.replace("seed: 3", "seed: 4"))
    second.restore(state)
    assert (second.iteration, second.current_step) == (3, 1)
    second.step(batches(6)[3:])
    assert equal(weights(second), weights(unbroken))
    assert equal(second.history(), unbroken.history())


def test_names_of_snapshots(folder: Path):
    solver = made(folder, 'snapshot_prefix: "given"')
    solver.step(batches(2))
    assert solver.snapshot() == (Path("given_iter_2.caffemodel"), Path("given_iter_2.solverstate"))
    assert solver.snapshot("other") == (Path("other_iter_2.caffemodel"), Path("other_iter_2.solverstate"))
    hdf5 = made(folder, 'snapshot_format: HDF5 snapshot_prefix: "given"')
    assert hdf5.snapshot() == (Path("given_iter_0.caffemodel.h5"), Path("given_iter_0.solverstate.h5"))
    beside = made(folder)
    assert beside.snapshot_name(".caffemodel") == str(folder / "solver_iter_0.caffemodel")
    (folder / "dir").mkdir()
    inside = made(folder, 'snapshot_prefix: "dir"')
    assert inside.snapshot_name(".caffemodel") == "dir/solver_iter_0.caffemodel"
    text = CaffeSolver.from_prototxt(SOLVER)
    with pytest.raises(ConfigError, match="snapshot_prefix is missing"):
        text.snapshot()
    with pytest.raises(NetError, match="cannot be written"):
        text.snapshot("nowhere/p")


def test_snapshots_that_moved_together(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "snaps").mkdir()
    solver = made(folder)
    solver.step(batches(2))
    solver.snapshot("snaps/p")
    (folder / "snaps").rename(folder / "moved")
    other = made(folder)
    other.restore("moved/p_iter_2.solverstate")
    assert equal(weights(other), weights(solver))


def test_weights_are_found_from_the_folder_of_the_state(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "snaps").mkdir()
    solver = made(folder)
    solver.step(batches(2))
    _, state = solver.snapshot("snaps/p")
    state.rename(folder / "p.solverstate")
    other = made(folder)
    monkeypatch.chdir(folder / "snaps")
    other.restore(folder / "p.solverstate")
    assert equal(weights(other), weights(solver))


def snapped(folder: Path) -> Path:
    solver = made(folder, 'type: "Adam"')
    solver.step(batches(2))
    return solver.snapshot("p")[1]


def refused(folder: Path, state: Path, text: str, kind: type[Exception], message: str) -> None:
    """Restoring raises, and leaves the solver as it was."""
    solver = made(folder, text)
    solver.step(batches(1, seed=5))
    before = [*weights(solver), *(blob.clone() for blob in solver.history())]
    with pytest.raises(kind, match=message):
        solver.restore(state)
    assert equal([*weights(solver), *solver.history()], before)
    assert solver.iteration == 1


def test_a_state_of_another_solver_type(folder: Path):
    message = "p_iter_2.solverstate: the history has 4 blobs; type SGD over 2 parameters has 2"
    refused(folder, snapped(folder), "", CheckpointError, message)


def test_a_state_of_another_net(folder: Path):
    state = snapped(folder)
    (folder / "net.prototxt").write_text(NET.replace("num_output: 2", "num_output: 5"))
    refused(folder, state, 'type: "Adam"', CheckpointError, r"history blob 0 has shape \(2, 3\).*has \(5, 3\)")


def test_weights_that_are_missing_or_damaged(folder: Path):
    state = snapped(folder)
    model = folder / "p_iter_2.caffemodel"
    model.write_bytes(model.read_bytes()[:-9])
    refused(folder, state, 'type: "Adam"', NetError, "truncated or damaged")
    model.unlink()
    refused(
        folder,
        state,
        'type: "Adam"',
        CheckpointError,
        r"weights that it names are at none of .*p_iter_2.caffemodel",
    )


def test_weights_that_were_cut_between_two_layers(folder: Path):
    """Such a file is a whole one of fewer layers."""
    state = snapped(folder)
    model = folder / "p_iter_2.caffemodel"
    net = NetParameter.FromString(model.read_bytes())
    del net.layer[1:]
    model.write_bytes(model.read_bytes()[: net.ByteSize()])
    refused(folder, state, 'type: "Adam"', NetError, r"p_iter_2\.caffemodel has no weights for layers score")


@pytest.mark.parametrize("name", [5000 * "x", "a/" * 2500, "\0", "line\nline", "."])
def test_a_name_of_weights_that_can_be_none(folder: Path, name: str):
    state = replace(read_state(snapped(folder)), learned_net=name)
    write_state(state, "odd.solverstate")
    told = r"odd\.solverstate: the weights that it names are at none of [^\n\0]{1,1000}; put them there$"
    refused(folder, Path("odd.solverstate"), 'type: "Adam"', CheckpointError, told)


def test_steps_that_another_policy_has_passed_count(folder: Path):
    """As in Caffe, which takes the count as it is, also where the policy has fewer step values."""
    first = made(folder)
    first.step(batches(3))
    _, path = first.snapshot("p")
    write_state(replace(read_state(path), current_step=7), path)
    solver = SOLVER.replace("fixed", "multistep") + "gamma: 0.5 stepvalue: 1 "
    second = made(folder, solver=solver)
    second.restore(path)
    assert second.learning_rate() == pytest.approx(second.settings.policy.base_lr * 0.5**7)
    other = made(folder)
    other.restore(path)
    other.step(batches(1))
    assert other.current_step == 7


@pytest.mark.parametrize("key", ["net", "train_net", "snapshot_prefix", "weights"])
def test_a_path_that_is_longer_than_any(folder: Path, key: str):
    text = f'{key}: "{5000 * "x"}"'
    solver = SOLVER.replace('net: "net.prototxt"', "") if "net" in key else SOLVER
    with pytest.raises(NetError, match="File name too long"):
        made(folder, text, solver=solver).snapshot()
