"""`sparknet caffe` as users meet it, and every kind of bad input."""

import signal
import subprocess
import sys

import pytest

from places import REFERENCE
from sparknet.caffe import CaffeNet, NetSpec
from sparknet.caffe.prototxt import read_text
from sparknet.caffe.schema import NetParameter, SolverParameter
from sparknet.caffe.weights.caffemodel import read_weights
from sparknet.cli.main import main

CAFFE = REFERENCE
LENET = CAFFE / "nets/lenet_like"
LEGACY = CAFFE / "nets/legacy_v1"


def sparknet(*arguments, cwd=None):
    command = [sys.executable, "-m", "sparknet.cli.main", "caffe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


@pytest.fixture
def fails(capsys):
    """In this process, for there are many cases: a command that is to end with a code, a message and no output."""

    def check(*arguments, code, told):
        try:
            found = main(["caffe", *map(str, arguments)])
        except SystemExit as end:  # argparse's way out
            found = end.code
        out, err = capsys.readouterr()
        assert (found, out) == (code, ""), err
        assert told in err

    before = signal.getsignal(signal.SIGTERM)  # which the command changes
    yield check
    signal.signal(signal.SIGTERM, before)


def test_summary_of_a_net():
    done = sparknet("summary", LENET / "net.prototxt", "--shape", "data=1,1,20,20", "--shape", "label=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "c1       Convolution      c1 1x6x16x16" in done.stdout
    assert "2,900" in done.stdout


def test_what_caffe_passes_over_is_told_once_beside_the_result(tmp_path):
    (tmp_path / "old.prototxt").write_text(
        'input: "data" input_dim: [2, 3, 1, 1]\n'
        'layers { bottom: "data" top: "i" '
        'layer { name: "ip" type: "innerproduct" num_output: 3 det_fg_threshold: 0.5 } }'
    )
    done = sparknet("summary", "old.prototxt", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
    assert done.stderr.startswith("sparknet: old.prototxt:2: layers number 0, 'ip', sets det_fg_threshold; only")
    assert "InnerProduct" in done.stdout


def test_summary_of_one_state():
    rules = CAFFE / "nets/rules/net.prototxt"
    done = sparknet("summary", rules, "--phase", "TEST", "--level", "3", "--stage", "linear", "--stage", "deploy")
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"wide", "score_wide", "prob"} <= set(names)
    assert not {"narrow", "squash", "loss"} & set(names)


def test_upgrade_prints_the_net_in_todays_form(tmp_path):
    done = sparknet("upgrade", LEGACY / "net.prototxt")
    assert (done.returncode, done.stderr) == (0, "")
    assert NetSpec.from_prototxt(done.stdout) == NetSpec.from_prototxt(LEGACY / "net.prototxt")
    assert "layers" not in done.stdout
    target = tmp_path / "modern.prototxt"
    written = sparknet("upgrade", LEGACY / "net.prototxt", "-o", target)
    assert written.returncode == 0
    assert written.stdout == f"wrote {target}\n"
    assert target.read_text() == done.stdout


def test_upgrade_of_a_solver_reaches_the_nets_in_it(tmp_path):
    (tmp_path / "solver.prototxt").write_text(
        'solver_type: ADAM base_lr: 0.1\nnet_param {\n layers { name: "d" type: RELU bottom: "x" top: "x" }\n}\n'
    )
    done = sparknet("upgrade", tmp_path / "solver.prototxt")
    assert done.returncode == 0
    (tmp_path / "new.prototxt").write_text(done.stdout)
    solver = read_text(tmp_path / "new.prototxt", SolverParameter).message
    assert solver.type == "Adam"
    assert solver.net_param.layer[0].type == "ReLU"


def test_upgrade_of_a_weight_file(tmp_path):
    target = tmp_path / "modern.caffemodel"
    assert sparknet("upgrade", LEGACY / "weights_v1.caffemodel", "-o", target).returncode == 0
    modern = NetParameter.FromString(target.read_bytes())
    assert [layer.name for layer in modern.layer if layer.blobs] == ["a1", "f1", "f2"]
    assert not modern.layers
    new, old = read_weights(target).blobs, read_weights(LEGACY / "weights.caffemodel").blobs
    assert all((new[name][0].ravel() == old[name][0].ravel()).all() for name in ("a1", "f1", "f2"))


@pytest.mark.parametrize("name", ["w.caffemodel", "w.caffemodel.h5", "w.safetensors", "w.onnx", "w.prototxt"])
def test_export(name, tmp_path):
    target = tmp_path / name
    done = sparknet("export", LENET / "net.prototxt", "--weights", LENET / "weights.caffemodel", "--to", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {target}, {target.stat().st_size:,} bytes\n"
    if name.startswith("w.caffemodel"):
        net = CaffeNet.from_prototxt(LENET / "net.prototxt")
        assert not net.load_weights(target).missing


def test_a_prototxt_needs_no_weights(tmp_path):
    assert sparknet("export", LEGACY / "net.prototxt", "--to", tmp_path / "n.prototxt").returncode == 0


def test_a_wrong_file_gives_one_line_and_code_1(tmp_path):
    done = sparknet("summary", tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sparknet: error: ")
    assert done.stderr.count("\n") == 1


def test_wrong_usage_is_told_with_code_2(fails, tmp_path):
    net, weights = LENET / "net.prototxt", LENET / "weights.caffemodel"
    fails(code=2, told="ACTION")
    fails("summary", net, "--phase", "DEPLOY", code=2, told="invalid choice")
    for shape in ("data", "data=", "=1,2", "data=1,x", "data=1,0", "data=1,-2"):
        fails("summary", net, "--shape", shape, code=2, told=f"{shape!r} is no shape")
    fails("export", net, "--weights", weights, code=2, told="--to")
    fails("export", net, "--weights", weights, "--to", tmp_path / "w.pt", code=2, told="must end in one of")
    fails("export", net, "--to", tmp_path / "w.onnx", code=2, told="--weights is missing")
    fails("upgrade", weights, code=2, told="-o OUT.caffemodel")


def test_wrong_files_are_told_with_code_1(fails, tmp_path):
    net, weights = LENET / "net.prototxt", LENET / "weights.caffemodel"
    none, out = tmp_path / "none", tmp_path / "out.caffemodel"
    broken = tmp_path / "broken.prototxt"
    broken.write_text('layer { name: "x" typ: "ReLU" }')
    nothing = tmp_path / "nothing.prototxt"
    nothing.write_text("colour: 3")
    fails("summary", none, code=1, told="no such file")
    fails("summary", tmp_path, code=1, told=str(tmp_path))
    fails("summary", weights, code=1, told="binary")
    fails("summary", broken, code=1, told="typ")
    fails("summary", net, "--shape", "date=1,2", code=1, told="--shape names date")
    fails("summary", net, "--shape", "data=1,1,2,2", "--shape", "label=1", code=1, told="layer 'c1'")
    fails("upgrade", none, code=1, told="No such file")
    fails("upgrade", tmp_path, code=1, told="directory")
    fails("upgrade", broken, code=1, told="broken.prototxt:1")
    fails("upgrade", nothing, code=1, told="colour")
    fails("upgrade", LENET / "weights.caffemodel.h5", "-o", out, code=1, told="HDF5")
    fails("upgrade", net, "-o", none / "x.prototxt", code=1, told="cannot be written")
    fails("export", net, "--weights", none, "--to", out, code=1, told="No such file")
    fails("export", net, "--weights", net, "--to", out, code=1, told="it is text")
    fails("export", net, "--weights", weights, "--to", none / "w.caffemodel", code=1, told="cannot be written")
    other = CAFFE / "nets/rules/weights.caffemodel"
    fails("export", net, "--weights", other, "--to", out, code=1, told="has no weights for 4 layers")
    assert not out.exists()


@pytest.mark.parametrize("action", [[], ["summary"], ["upgrade"], ["export"]])
def test_help_is_complete(action):
    done = sparknet(*action, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
