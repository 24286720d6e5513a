"""Layers of type Python: numbers, gradients, shapes that change, blobs, and whose line an error names."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from places import SUPPORT
from sparknet.caffe import CaffeNet, NetSpec
from sparknet.caffe.pycaffe.place import drawing_from, set_place
from sparknet.errors import NetError

PAIR = 'layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 4 dim: 3 } } }\n'


def python(kind: str, more: str, module: str = "code_layers") -> str:
    return f'layer {{ name: "mine" type: "Python" {more} python_param {{ module: "{module}" layer: "{kind}" }} }}\n'


def net_of(text: str, *places: Path, phase: str = "TRAIN") -> CaffeNet:
    spec = NetSpec.from_text(text, "net.prototxt").allowing_python_layers(*(places or (SUPPORT,)))
    return CaffeNet(spec, phase)


def pair() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for name in "ab"}


def check_gradients(net: CaffeNet, given: dict[str, Tensor], top: str) -> None:
    """Against finite differences, for bottoms and blobs, with any gradient at the top."""
    names, blobs = list(given), dict(net.named_parameters())

    def run(*tensors: Tensor) -> Tensor:
        inputs = dict(zip(names, tensors[: len(names)], strict=True))
        with torch.no_grad():
            for blob, value in zip(blobs.values(), tensors[len(names) :], strict=True):
                blob.copy_(value)
        return net(inputs, [top])[top]

    tensors = [*given.values(), *(blob.detach().clone() for blob in blobs.values())]
    pushed = torch.randn_like(run(*tensors))
    run(*tensors).backward(pushed)
    analytic = [tensor.grad for tensor in given.values()] + [blob.grad for blob in blobs.values()]
    step = 1e-6
    for tensor, found in zip(tensors, analytic, strict=True):
        assert found is not None
        for place in np.ndindex(*tensor.shape):
            moved = []
            for sign in (1, -1):
                changed = [one.detach().clone() for one in tensors]
                at = next(at for at, one in enumerate(tensors) if one is tensor)
                changed[at][place] += sign * step
                moved.append((run(*changed).detach() * pushed).sum())
            assert found[place].item() == pytest.approx(((moved[0] - moved[1]) / (2 * step)).item(), abs=1e-6)


def test_without_leave_no_code_runs(tmp_path: Path):
    (tmp_path / "harmful.py").write_text("raise SystemExit('it ran')\n")
    text = PAIR + python("Any", 'bottom: "a" bottom: "b" top: "y"', "harmful")
    spec = NetSpec.from_text(text, "net.prototxt")
    with pytest.raises(NetError) as caught:
        CaffeNet(spec)
    assert str(caught.value).startswith("the net has layers that are code")
    assert "net.prototxt:2: layer 'mine' (Python): Any of module harmful" in str(caught.value)
    assert "--allow-python-layers" in str(caught.value)
    with pytest.raises(SystemExit, match="it ran"):
        CaffeNet(spec.allowing_python_layers(tmp_path))


def test_a_loss_is_that_of_caffe():
    text = PAIR + python("EuclideanLoss", 'bottom: "a" bottom: "b" top: "loss" loss_weight: 1')
    ours = PAIR + 'layer { name: "mine" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "loss" }'
    found = []
    for one in (text, ours):
        net, given = net_of(one).double(), pair()
        loss = net.loss(net(given))
        loss.backward()
        found.append((loss.detach(), *(value.grad for value in given.values())))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_loss_over_pixels_is_that_of_caffe():
    text = (
        'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'
        'layer { name: "labels" type: "Input" top: "b" input_param { shape { dim: 2 dim: 1 dim: 4 dim: 5 } } }\n'
    )
    torch.manual_seed(2)
    scores, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 1, 4, 5))
    found = []
    for kind in (
        python("PixelLoss", 'bottom: "a" bottom: "b" top: "loss" loss_weight: 1', "segment_layers"),
        'layer { name: "mine" type: "SoftmaxWithLoss" bottom: "a" bottom: "b" top: "loss" }',
    ):
        net, given = net_of(text + kind).double(), scores.clone().requires_grad_()
        loss = net.loss(net({"a": given, "b": labels}))
        loss.backward()
        found.append((loss.detach(), given.grad))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("factor", [1.0, 1024.0, 0.25])
def test_the_gradient_of_a_loss_is_as_large_as_what_is_made_of_the_loss(factor: float):
    """The layer does not look at its top's gradient: fp16 and accumulated steps scale the loss all the same."""
    net = net_of(PAIR + python("EuclideanLoss", 'bottom: "a" bottom: "b" top: "loss" loss_weight: 2')).double()
    given = pair()
    (net.loss(net(given)) * factor).backward()
    expected = factor * (given["a"] - given["b"]).detach() / 4
    torch.testing.assert_close(given["a"].grad, expected)


def test_gradients_of_bottoms_and_blobs():
    net = net_of(PAIR + python("Bilinear", 'bottom: "a" bottom: "b" top: "y"')).double()
    assert net.shapes["y"] == (4, 1)
    assert [blob.name for blob in net.learnable] == ["mine/0", "mine/1"]
    check_gradients(net, pair(), "y")


def test_in_place_and_twice():
    text = PAIR + (
        'layer { name: "silence" type: "Silence" bottom: "b" }\n'
        'layer { name: "tanh" type: "TanH" bottom: "a" top: "y" }\n'
        + python("Square", 'bottom: "y" top: "y"')
        + python("Square", 'bottom: "y" top: "z"').replace("mine", "other")
    )
    net = net_of(text).double()
    values = pair()["a"]
    found = net({"a": values, "b": values}, ["y", "z"])
    torch.testing.assert_close(found["y"], values.tanh() ** 2)
    torch.testing.assert_close(found["z"], values.tanh() ** 4)
    found["z"].sum().backward()
    (expected,) = torch.autograd.grad((values.tanh() ** 4).sum(), values)
    torch.testing.assert_close(values.grad, expected)


def test_half_precision_computes_in_single():
    net = net_of(PAIR + python("Bilinear", 'bottom: "a" bottom: "b" top: "y"'))
    given = {name: value.detach().float().requires_grad_() for name, value in pair().items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = net(given)["y"]
    assert y.dtype == torch.float32
    y.sum().backward()
    assert given["a"].grad is not None


def test_a_bottom_without_need_gets_no_gradient(tmp_path: Path):
    (tmp_path / "told_down.py").write_text(
        "import caffe\n"
        "class Told(caffe.Layer):\n"
        "    def setup(self, bottom, top): pass\n"
        "    def reshape(self, bottom, top): top[0].reshape(1)\n"
        "    def forward(self, bottom, top): top[0].data[...] = bottom[0].data.sum()\n"
        "    def backward(self, top, propagate_down, bottom):\n"
        "        assert propagate_down == [True, False], propagate_down\n"
        "        bottom[0].diff[...] = top[0].diff\n"
    )
    layer = 'bottom: "a" bottom: "b" top: "y" propagate_down: true propagate_down: false'
    net = net_of(PAIR + python("Told", layer, "told_down"), tmp_path).double()
    given = pair()
    (3 * net(given)["y"]).sum().backward()
    torch.testing.assert_close(given["a"].grad, torch.full((4, 3), 3.0, dtype=torch.float64))
    assert given["b"].grad is None


SIZES = "{'sizes': [(8, 8), (12, 8), (4, 16)]}"
IMAGES = (
    'layer { name: "images" type: "Python" top: "data" top: "label" python_param { module: "segment_layers" '
    f'layer: "GrowingImages" param_str: "{SIZES}" }} }}\n'
)


def test_a_layer_without_bottoms_gives_images_of_any_size():
    text = IMAGES + (
        'layer { name: "score" type: "Convolution" bottom: "data" top: "score" '
        'convolution_param { num_output: 3 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } } }\n'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" top: "loss" }\n'
    )
    net = net_of(text)
    assert not net.inputs
    assert net.shapes["data"] == (1, 3, 8, 8)
    for height, width in [(8, 8), (12, 8), (4, 16), (8, 8)]:
        blobs = net({}, ["data", "score", "loss"])
        assert blobs["score"].shape == (1, 3, height, width)
        net.loss(blobs).backward()
        assert not blobs["data"].requires_grad
    # What a layer gave before is not overwritten by its next pass.
    first, second = (net({}, ["data"])["data"] for _ in range(2))
    assert first.shape != second.shape


def test_a_layer_knows_phase_and_replica():
    text = python("Place", 'top: "told"')
    assert net_of(text)({})["told"][0, :3].tolist() == [0, 0, 1]
    set_place(2, 5)
    try:
        assert net_of(text, phase="TEST")({})["told"][0, :3].tolist() == [1, 2, 5]
    finally:
        set_place(0, 1)


def test_replicas_learn_alike_and_read_each_its_own():
    text = PAIR + python("Place", 'bottom: "a" top: "learned"')
    text += python("Place", 'top: "read"').replace("mine", "data")
    found = []
    try:
        for rank in (0, 1, 1):
            set_place(rank, 2)
            with drawing_from(5):
                found.append(net_of(text + WEIGHTS))
    finally:
        set_place(0, 1)
    learned = [(net.get_parameter("mine.blob0").item(), net.get_parameter("ip.weight")) for net in found]
    read = [net.get_submodule("data").code.drawn for net in found]
    assert learned[0][0] == learned[1][0]
    torch.testing.assert_close(learned[0][1], learned[1][1])
    assert all(one != other for one, other in zip(read[0], read[1], strict=True))
    assert read[1] == read[2]


WEIGHTS = (
    'layer { name: "ip" type: "InnerProduct" bottom: "b" top: "ip" '
    'inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }'
)


def test_memory_lasts_from_pass_to_pass():
    net = net_of(python("Counter", 'top: "count" param { lr_mult: 0 }'))
    for number in (1, 2, 3):
        assert net({})["count"].tolist() == [number, number]
    assert net.get_parameter("mine.blob0").item() == 3
    net.double()
    assert net({})["count"].tolist() == [4, 4]


def test_what_a_layer_writes_into_its_blob_stays_in_any_memory_order(tmp_path: Path):
    (tmp_path / "counts_planes.py").write_text(
        "import caffe\n"
        "class Counts(caffe.Layer):\n"
        "    def setup(self, bottom, top): self.blobs.add_blob(2, 3, 4, 5)\n"
        "    def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)\n"
        "    def forward(self, bottom, top):\n"
        "        self.blobs[0].data[1, 2, 3, 4] += 1\n"
        "        top[0].data[...] = bottom[0].data * self.blobs[0].data\n"
        "    def backward(self, top, propagate_down, bottom): pass\n"
    )
    text = 'layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }\n'
    net = net_of(text + python("Counts", 'bottom: "a" top: "y" param { lr_mult: 0 }', "counts_planes"), tmp_path)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for number in (1, 2):
        y = net({"a": images})["y"]
        assert net.get_parameter("mine.blob0")[1, 2, 3, 4] == number
        torch.testing.assert_close(y, images * net.get_parameter("mine.blob0"))


def test_numbers_without_axes_and_no_tops(tmp_path: Path):
    (tmp_path / "looks_on.py").write_text(
        "import caffe\n"
        "class Looks(caffe.Layer):\n"
        "    seen = []\n"
        "    def setup(self, bottom, top): assert bottom[0].shape == () and bottom[0].count == 1 and not top\n"
        "    def reshape(self, bottom, top): pass\n"
        "    def forward(self, bottom, top): self.seen.append(float(bottom[0].data))\n"
    )
    text = PAIR + 'layer { name: "loss" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "loss" }\n'
    net = net_of(text + python("Looks", 'bottom: "loss"', "looks_on"), tmp_path).double()
    given = pair()
    loss = net.loss(net(given))
    loss.backward()
    assert net.get_submodule("mine").code.seen == [loss.item()]
    assert given["a"].grad is not None


def test_shared_blobs_are_one():
    layers = [
        python("Bilinear", f'bottom: "a" bottom: "b" top: "{top}" param {{ name: "w" }} param {{ name: "b" }}')
        for top in "yz"
    ]
    net = net_of(PAIR + layers[0] + layers[1].replace("mine", "other")).double()
    assert len(net.learnable) == 2
    found = net(pair())
    torch.testing.assert_close(found["y"], found["z"])
    (found["y"].sum() + found["z"].sum()).backward()
    single = net_of(PAIR + layers[0]).double()
    single(pair())["y"].sum().backward()
    torch.testing.assert_close(net.get_parameter("mine.blob0").grad, 2 * single.get_parameter("mine.blob0").grad)


def test_blobs_come_and_go_in_weight_files(tmp_path: Path):
    text = PAIR + python("Bilinear", 'bottom: "a" bottom: "b" top: "y"')
    net, other = net_of(text), net_of(text)
    with torch.no_grad():
        net.get_parameter("mine.blob1").fill_(5)
    net.save_weights(tmp_path / "w.caffemodel")
    assert not other.load_weights(tmp_path / "w.caffemodel").missing
    torch.testing.assert_close(other(pair())["y"], net(pair())["y"])


def test_the_gradient_of_an_earlier_pass_is_refused():
    net = net_of(PAIR + python("Square", 'bottom: "a" top: "y"')).double()
    first, _ = (net(pair(), ["y"])["y"] for _ in range(2))
    with pytest.raises(NetError, match=r"layer 'mine' .Python.: the gradient of pass 1 is wanted after pass 2"):
        first.sum().backward()


CLASS = "import caffe\nclass {name}(caffe.Layer):\n"
METHODS = {
    "setup": "    def setup(self, bottom, top): pass\n",
    "reshape": "    def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)\n",
    "forward": "    def forward(self, bottom, top): top[0].data[...] = bottom[0].data\n",
    "backward": "    def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = top[0].diff\n",
}
FAULTS = {
    "setup": ("setup", "    def setup(self, bottom, top):\n        self.size = eval(self.param_str)['size']\n", 4),
    "reshape": ("reshape", "    def reshape(self, bottom, top):\n        top[0].reshape(-1)\n", 5),
    "forward": ("forward", "    def forward(self, bottom, top):\n        top[0].data[...] = [1, 2]\n", 6),
    "backward": (
        "backward",
        "    def backward(self, top, down, bottom):\n        raise Exception(3)\n",
        7,
    ),
    "readonly": ("forward", "    def forward(self, bottom, top):\n        bottom[0].data[0] = 1\n", 6),
    "missing": ("backward", "", 0),
    "data": ("forward", "    def forward(self, bottom, top):\n        top[0].data = 1\n", 6),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_names_the_users_line(name: str, tmp_path: Path):
    method, code, line = FAULTS[name]
    kind, module = f"Faulty{name.title()}", f"faulty_{name}"
    (tmp_path / f"{module}.py").write_text(CLASS.format(name=kind) + "".join({**METHODS, method: code}.values()))
    text = PAIR + python(kind, 'bottom: "a" top: "y"', module)
    with pytest.raises(NetError) as caught:
        net_of(text, tmp_path).double()(pair(), ["y"])["y"].sum().backward()
    told = str(caught.value)
    assert "layer 'mine' (Python)" in told
    assert f"{kind}.{method}: " in told
    if name == "missing":
        assert f"class {kind} has no backward(self, top, propagate_down, bottom)" in told
    else:
        assert f"{tmp_path / module}.py:{line}: " in told
    if name == "setup":
        assert "net.prototxt:2: " in told
    if name == "readonly":
        assert "take a copy of the data" in told


IMPORTS = {
    "python2": ("print 'hello'\n", "SyntaxError", "2to3"),
    "needs": ("import no_such_package\n", "ModuleNotFoundError", "pip install no_such_package"),
    "net": ("import caffe\ncaffe.Net\n", "imported_net.py:2: AttributeError", "caffe has no 'Net' here"),
    "empty": ("import caffe\nclass Other(caffe.Layer): pass\n", "no class 'Mine'", "it has Other"),
}


@pytest.mark.parametrize("name", IMPORTS)
def test_a_module_that_cannot_be_used(name: str, tmp_path: Path):
    code, *expected = IMPORTS[name]
    (tmp_path / f"imported_{name}.py").write_text(code)
    with pytest.raises(NetError) as caught:
        net_of(PAIR + python("Mine", 'bottom: "a" top: "y"', f"imported_{name}"), tmp_path)
    for words in ("net.prototxt:2: layer 'mine' (Python)", f"imported_{name}", *expected):
        assert words in str(caught.value)


def test_a_module_that_is_nowhere_tells_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(NetError) as caught:
        net_of(PAIR + python("Mine", 'bottom: "a" top: "y"', "nowhere_to_be_found"), tmp_path)
    assert "'nowhere_to_be_found' is not in PYTHONPATH" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_description_without_module_or_class():
    with pytest.raises(NetError, match="module '' and layer 'Mine'; both must be given"):
        net_of(PAIR + python("Mine", 'bottom: "a" top: "y"', ""))


def test_two_modules_of_one_name_are_told_apart(tmp_path: Path):
    text = PAIR + python("Mine", 'bottom: "a" top: "y"', "same_name")
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same_name.py").write_text(CLASS.format(name="Mine") + "".join(METHODS.values()))
    net_of(text, tmp_path / "one")
    net_of(text, tmp_path / "one")
    with pytest.raises(NetError, match=r"other/same_name\.py, and this process has .*one/same_name\.py"):
        net_of(text, tmp_path / "other")


def test_beside_the_file_a_module_and_what_it_imports_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "beside_layers.py").write_text(
        CLASS.format(name="Mine")
        + "".join(METHODS.values()).replace("pass", "from beside_more import SIZE; self.size = SIZE")
    )
    (tmp_path / "beside_more.py").write_text("SIZE = 3\n")
    file = tmp_path / "net.prototxt"
    file.write_text(PAIR + python("Mine", 'bottom: "a" top: "y"', "beside_layers"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert CaffeNet(NetSpec.from_prototxt(file).allowing_python_layers()).shapes["y"] == (4, 3)


def test_pycaffe_that_is_there_already_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "caffe", type(sys)("caffe"))
    with pytest.raises(NetError, match="imported in this process as caffe"):
        net_of(PAIR + python("Square", 'bottom: "a" top: "y"'))
