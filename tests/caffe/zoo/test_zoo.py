"""The zoo: sizes against the published nets, shapes on the way, states, and learning."""

import math
from functools import cache

import pytest
import torch
from google.protobuf import text_format
from torch import nn

from image_rows import image_rows
from places import REPOSITORY
from sparknet.caffe import CaffeNet, NetSpec, zoo
from sparknet.caffe.schema import NetParameter
from sparknet.caffe.zoo import digits_cnn
from sparknet.config import Net, load_config
from sparknet.errors import NetError
from sparknet.training.objectives.find_net import build_net
from sparknet.training.objectives.recipe import Recipe

CONFIGS = REPOSITORY / "configs"
CAFFE_NETS = [name for name in zoo.__all__ if name != "digits_cnn"]


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small gain nothing from threads, which wait for each other in busy loops on a loaded machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def describe(name: str, **arguments: object) -> NetSpec:
    return getattr(zoo, name)(**arguments)


def weightless(spec: NetSpec, *state: str) -> CaffeNet:
    """The net without memory for its weights."""
    phase, *stages = state or ("TRAIN",)
    with torch.device("meta"):
        return CaffeNet(spec, "TEST" if phase == "TEST" else "TRAIN", stages=stages)


@cache
def published(name: str, *state: str) -> CaffeNet:
    """The net as published, made once for all tests that only look at it."""
    return weightless(describe(name), *state)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# Sources: sums over the layers of the published prototxt files; besides, AlexNet and CaffeNet: the 243.9 MB of the
# published .caffemodel, 4 bytes each; VGG: 138 million in the paper's table 2, exactly torchvision's; ResNet:
# torchvision's 11,689,512 and 25,557,032 (Caffe's file has 64 biases more); SqueezeNet 1.1: torchvision's.
PUBLISHED = {
    "adult": 123 * 64 + 64 + 64 * 2 + 2,
    "alexnet": 60_965_224,
    "caffenet": 60_965_224,
    "cifar10_full": 89_578,
    "cifar10_quick": 145_578,
    "googlenet": 13_378_280,
    "lenet": 431_080,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032 + 64,
    "squeezenet": 1_235_496,
    "vgg16": 138_357_544,
}


def test_every_net_has_a_published_count():
    assert sorted(PUBLISHED) == CAFFE_NETS


@pytest.mark.parametrize("name", CAFFE_NETS)
def test_parameters_match_the_published_count(name):
    assert count(published(name)) == PUBLISHED[name]
    assert f"{PUBLISHED[name]:,} parameters" in getattr(zoo, name).__doc__


def test_parameters_of_other_forms():
    assert count(published("googlenet", "TEST", "deploy")) == 6_998_552
    assert count(digits_cnn(input_shape=(1, 8, 8), classes=10)) == 33_490
    for name, statistics, layers in (("resnet18", 9_600, 20), ("resnet50", 53_120, 53)):
        buffers = dict(published(name).named_buffers())
        assert sum(buffer.numel() for buffer in buffers.values()) == statistics + layers


# (channels, height, width) as in the papers' tables and in Caffe's own log of these nets
SHAPES = {
    "caffenet": {
        "conv1": (96, 55, 55),
        "norm1": (96, 27, 27),
        "norm2": (256, 13, 13),
        "conv4": (384, 13, 13),
        "pool5": (256, 6, 6),
        "fc6": (4096,),
        "fc8": (1000,),
    },
    "alexnet": {"norm1": (96, 55, 55), "pool1": (96, 27, 27), "norm2": (256, 27, 27), "pool5": (256, 6, 6)},
    "googlenet": {
        "conv1/7x7_s2": (64, 112, 112),
        "pool2/3x3_s2": (192, 28, 28),
        "inception_3a/output": (256, 28, 28),
        "inception_3b/output": (480, 28, 28),
        "inception_4a/output": (512, 14, 14),
        "inception_4d/output": (528, 14, 14),
        "inception_4e/output": (832, 14, 14),
        "inception_5a/output": (832, 7, 7),
        "inception_5b/output": (1024, 7, 7),
        "pool5/7x7_s1": (1024, 1, 1),
        "loss1/ave_pool": (512, 4, 4),
        "loss2/ave_pool": (528, 4, 4),
    },
    "lenet": {"conv1": (20, 24, 24), "pool1": (20, 12, 12), "pool2": (50, 4, 4), "ip1": (500,)},
    "cifar10_quick": {"pool1": (32, 16, 16), "pool2": (32, 8, 8), "pool3": (64, 4, 4), "ip2": (10,)},
    "cifar10_full": {"norm1": (32, 16, 16), "norm2": (32, 8, 8), "pool3": (64, 4, 4)},
    "vgg16": {"conv1_2": (64, 224, 224), "conv3_3": (256, 56, 56), "pool5": (512, 7, 7)},
    "resnet18": {"pool1": (64, 56, 56), "res3a": (128, 28, 28), "res5b": (512, 7, 7), "pool5": (512, 1, 1)},
    "resnet50": {
        "pool1": (64, 56, 56),
        "res2c": (256, 56, 56),
        "res3a_branch2a": (128, 28, 28),
        "res4f": (1024, 14, 14),
        "res5c": (2048, 7, 7),
        "fc1000": (1000,),
    },
    "squeezenet": {
        "conv1": (64, 113, 113),
        "fire3/concat": (128, 56, 56),
        "fire5/concat": (256, 28, 28),
        "fire9/concat": (512, 14, 14),
        "pool10": (1000, 1, 1),
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_blobs_have_the_published_shapes(name):
    found = published(name).shapes
    batch = found["label"]
    expected = {blob: (*batch, *size) for blob, size in SHAPES[name].items()}
    assert {blob: found[blob] for blob in SHAPES[name]} == expected


# billions of multiply-adds of one image: the papers' figures where they give them
@pytest.mark.parametrize(
    ("name", "billions"),
    [("caffenet", 0.72), ("googlenet", 1.58), ("vgg16", 15.5), ("resnet18", 1.8), ("resnet50", 3.86)],
)
def test_multiply_adds_are_those_of_the_papers(name, billions):
    net = published(name, "TEST", "deploy")
    found = sum(step.layer.multiply_adds(step.bottom_shapes, step.top_shapes) for step in net.steps)
    assert found / net.shapes["data"][0] / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", CAFFE_NETS)
def test_the_states_have_what_they_need(name):
    train, test, deploy = (published(name, *state) for state in ((), ("TEST",), ("TEST", "deploy")))
    assert list(train.inputs) == list(test.inputs) == ["data", "label"]
    assert all("loss" in output for output in train.outputs)
    assert set(train.outputs) < set(test.outputs)
    assert all("accuracy" in output or "/top-" in output for output in set(test.outputs) - set(train.outputs))
    assert (list(deploy.inputs), deploy.outputs) == (["data"], ("prob",))
    assert deploy.shapes["prob"][:2] == (
        train.inputs["label"].shape[0],
        2 if name == "adult" else len_classes(name),
    )
    assert weightless(describe(name), "TRAIN", "deploy").outputs == ("prob",)


def len_classes(name: str) -> int:
    return 10 if name in ("lenet", "cifar10_quick", "cifar10_full") else 1000


@pytest.mark.parametrize("name", CAFFE_NETS)
def test_the_text_says_the_same(name):
    spec = describe(name)
    text = spec.to_prototxt()
    assert NetSpec.from_prototxt(text) == spec
    assert text_format.Parse(text, NetParameter()) == spec.parameters  # protobuf's own parser, which Caffe uses


@pytest.mark.parametrize(
    "name", [name for name in CAFFE_NETS if name != "cifar10_full"]
)  # OpenCV has no LRN within
def test_a_second_importer_of_caffe_files_reads_the_deploy_net(name):
    cv2 = pytest.importorskip("cv2")
    net = published(name, "TEST", "deploy")
    text = net.spec.to_prototxt().encode()
    found = set(cv2.dnn.readNetFromCaffe(bytearray(text)).getLayerNames())
    assert {step.name for step in net.steps} <= found


def test_multipliers_and_fillers_are_the_published_ones():
    def learned(name: str) -> dict[str, tuple[float, float]]:
        return {blob.name: (blob.lr_mult, blob.decay_mult) for blob in published(name).learnable}

    for name in ("caffenet", "alexnet", "googlenet", "vgg16"):
        rates = learned(name)
        assert {rates[blob] for blob in rates if blob.endswith("/0")} == {(1, 1)}
        assert {rates[blob] for blob in rates if blob.endswith("/1")} == {(2, 0)}
    assert learned("lenet")["conv1/1"] == (2, 1)
    full = learned("cifar10_full")
    assert (full["conv3/1"], full["ip1/0"], full["ip1/1"]) == ((1, 1), (1, 250), (2, 0))
    assert set(learned("squeezenet").values()) == {(1, 1)}
    biases = {layer.name: layer.convolution_param.bias_filler.value for layer in zoo.alexnet().parameters.layer}
    assert (biases["conv1"], biases["conv2"], biases["conv3"]) == (0, pytest.approx(0.1), 0)
    stds = [
        getattr(layer, field).weight_filler.std
        for layer in zoo.cifar10_quick().parameters.layer
        for field in ("convolution_param", "inner_product_param")
        if layer.HasField(field)
    ]
    assert stds == pytest.approx([0.0001, 0.01, 0.01, 0.1, 0.1])


def test_lenet_starts_from_caffes_xavier():
    torch.manual_seed(0)
    weight = CaffeNet(zoo.lenet()).get_parameter("ip1.weight")
    bound = math.sqrt(3 / weight.shape[1])
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


# He's filler in the last layer gives scores of variance about 2: the residual nets start above ln(classes)
@pytest.mark.parametrize(
    ("name", "shape", "scale", "above"),
    [
        ("adult", (123,), 0.3, 0.3),
        ("cifar10_full", (3, 32, 32), 64, 0.02),
        ("cifar10_quick", (3, 32, 32), 64, 0.02),
        ("lenet", (1, 28, 28), 0.3, 0.3),
        ("resnet18", (3, 40, 40), 1, 2.5),
        ("squeezenet", (3, 49, 49), 64, 0.5),
    ],
)
def test_a_step_from_the_loss_of_a_guess(name, shape, scale, above):
    torch.manual_seed(0)
    classes = 2 if name == "adult" else 10
    net = CaffeNet(describe(name, input_shape=shape, classes=classes, batch_size=8))
    outputs = net({"data": scale * torch.randn(8, *shape), "label": torch.arange(8) % classes})
    loss = net.loss(outputs)
    loss.backward()
    assert math.log(classes) - 0.2 < loss.item() < math.log(classes) + above
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert any(parameter.grad.abs().max() > 0 for parameter in net.parameters() if parameter.grad is not None)


def test_googlenet_weighs_its_three_losses():
    torch.manual_seed(0)
    net = CaffeNet(zoo.googlenet(input_shape=(3, 64, 64), classes=10, batch_size=2))
    outputs = net({"data": torch.randn(2, 3, 64, 64), "label": torch.tensor([1, 7])})
    first, second, last = (outputs[name].item() for name in ("loss1/loss1", "loss2/loss1", "loss3/loss3"))
    assert net.loss(outputs).item() == pytest.approx(0.3 * first + 0.3 * second + last, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("alexnet", 39),
        ("caffenet", 39),
        ("cifar10_full", 8),
        ("cifar10_quick", 8),
        ("googlenet", 47),
        ("lenet", 14),
        ("resnet18", 3),
        ("resnet50", 3),
        ("squeezenet", 17),
        ("vgg16", 1),
    ],
)
def test_images_may_be_as_small_as_said(name, least):
    assert weightless(describe(name, input_shape=(1, least, least + 7), classes=3, batch_size=2)).outputs
    for small in ((1, least - 1, 64), (1, 64, least - 1), (0, 64, 64)):
        with pytest.raises(NetError, match=f"expected at least 1 channel of {least}x{least}") as error:
            describe(name, input_shape=small)
        assert str(small) in str(error.value)
    with pytest.raises(NetError, match=r"\(64,\), 1 dimensions; expected 3, \(channels, height, width\)"):
        describe(name, input_shape=(64,))


def test_adult_takes_any_table_and_its_own_width():
    assert count(CaffeNet(zoo.adult(input_shape=(9,), classes=3, hidden=5))) == 9 * 5 + 5 + 5 * 3 + 3
    for wrong in ({"hidden": 0}, {"input_shape": ()}, {"input_shape": (0,)}):
        with pytest.raises(NetError, match=r"adult: .* at least 1"):
            zoo.adult(**wrong)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 5)])
@pytest.mark.parametrize("classes", [2, 7])
def test_digits_cnn_maps_images_to_logits(shape, classes):
    logits = digits_cnn(input_shape=shape, classes=classes).eval()(torch.zeros(3, *shape))
    assert (logits.shape, logits.dtype) == ((3, classes), torch.float32)


@pytest.mark.parametrize("wrong", [(1, 3, 8), (0, 8, 8), (64,)])
def test_digits_cnn_refuses_what_is_no_image(wrong):
    with pytest.raises(NetError, match=r"digits_cnn: the input has shape .*expected"):
        digits_cnn(input_shape=wrong, classes=10)


def test_digits_cnn_takes_its_width_and_refuses_none():
    assert count(digits_cnn(input_shape=(1, 8, 8), classes=10, width=8)) < 33_490 / 4
    with pytest.raises(NetError, match=r"width is 0; it must be at least 1: set net\.arguments\.width"):
        digits_cnn(input_shape=(1, 8, 8), classes=10, width=0)


def test_digits_cnn_starts_from_the_loss_of_a_guess():
    net = build_net(Recipe(net=Net(name="digits_cnn")), image_rows((1, 8, 8)), seed=0)
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = nn.functional.cross_entropy(net(images), torch.arange(64) % 10)
    assert loss.item() == pytest.approx(math.log(10), abs=0.15)


@pytest.mark.parametrize(
    ("name", "config", "scale"),
    [("lenet", "mnist_lenet", 1), ("cifar10_quick", "cifar10_quick", 64)],  # of images: bytes times the config's
)
def test_learns_with_the_shipped_solver(name, config, scale):
    """Ten noisy, smooth prototypes are told apart within 60 steps."""
    solver = load_config(CONFIGS / f"{config}.toml").solver
    shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(10, shape[0], 8, 8, generator=generator)
    prototypes = nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    net = build_net(Recipe(net=Net(name=name)), image_rows(shape), seed=0)
    assert isinstance(net, CaffeNet)
    groups = [
        {"params": [blob.tensor], "lr": solver.learning_rate * blob.lr_mult, "weight_decay": solver.weight_decay}
        for blob in net.learnable
    ]
    optimiser = torch.optim.SGD(groups, lr=solver.learning_rate, momentum=solver.momentum)
    losses: list[float] = []
    for _ in range(60):
        labels = torch.randint(0, 10, (32,), generator=generator)
        images = prototypes[labels] + 0.5 * torch.randn(32, *shape, generator=generator)
        loss = net.loss(net({"data": scale * images, "label": labels}))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < 2 < losses[0]


def test_two_averaged_replicas_reach_97_percent_on_digits():
    """The shipped recipe without Spark: two replicas in one process, averaged every 10 steps."""
    seed = 0
    images, labels, held_images, held_labels = digits_split(seed)
    rounds, local_steps = 30, 10
    replicas = [build_net(Recipe(net=Net(name="digits_cnn")), image_rows((1, 8, 8)), seed=seed) for _ in range(2)]
    optimisers = [
        torch.optim.SGD(replica.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4) for replica in replicas
    ]
    generator = torch.Generator().manual_seed(seed)
    for step in range(rounds * local_steps):
        for replica, optimiser in zip(replicas, optimisers, strict=True):
            optimiser.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * step / (rounds * local_steps)))
            rows = torch.randint(0, len(labels), (32,), generator=generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(replica(images[rows]), labels[rows]).backward()
            optimiser.step()
        if (step + 1) % local_steps == 0:
            average(replicas)
    with torch.inference_mode():
        hits = replicas[0].eval()(held_images).argmax(1) == held_labels
    assert hits.float().mean().item() >= 0.97


def digits_split(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(digits.images).float()[order, None]
    labels = torch.from_numpy(digits.target)[order]
    held = len(labels) // 5
    images = (images - images[held:].mean()) * 0.125
    return images[held:], labels[held:], images[:held], labels[:held]


def average(replicas: list[nn.Module]) -> None:
    states = [replica.state_dict() for replica in replicas]
    for key, value in states[0].items():
        if value.is_floating_point():
            mean = torch.stack([state[key] for state in states]).mean(0)
            for state in states:
                state[key].copy_(mean)
