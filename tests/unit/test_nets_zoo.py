"""The zoo: sizes against the published nets, Caffe's pooling, and learning."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sparknet.config import load_config
from sparknet.errors import NetError
from sparknet.nets import build_net, cifar10_quick, digits_cnn, lenet

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small gain nothing from threads, which wait for each other in busy loops on a loaded machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("factory", "shape", "parameters"),
    [(lenet, (1, 28, 28), 431_080), (cifar10_quick, (3, 32, 32), 145_578), (digits_cnn, (1, 8, 8), 33_490)],
)
def test_parameters_match_the_published_count(factory, shape, parameters):
    assert count(factory(input_shape=shape, classes=10)) == parameters


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (lenet, (1, 28, 28)),
        (lenet, (3, 14, 14)),
        (lenet, (1, 33, 29)),
        (cifar10_quick, (3, 32, 32)),
        (cifar10_quick, (1, 8, 8)),
        (cifar10_quick, (3, 41, 27)),
        (digits_cnn, (1, 8, 8)),
        (digits_cnn, (3, 4, 5)),
    ],
)
@pytest.mark.parametrize("classes", [2, 7])
def test_any_accepted_input_gives_logits(factory, shape, classes):
    net = factory(input_shape=shape, classes=classes).eval()
    logits = net(torch.zeros(3, *shape))
    assert logits.shape == (3, classes)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("factory", "too_small"),
    [(lenet, (1, 13, 28)), (cifar10_quick, (3, 32, 7)), (digits_cnn, (1, 3, 8)), (lenet, (0, 28, 28))],
)
def test_too_small_input_says_expected_and_got(factory, too_small):
    with pytest.raises(NetError) as error:
        factory(input_shape=too_small, classes=10)
    assert str(too_small) in str(error.value)
    assert "expected at least 1 channel of" in str(error.value)


@pytest.mark.parametrize("factory", [lenet, cifar10_quick, digits_cnn])
def test_wrong_number_of_dimensions_says_expected_and_got(factory):
    with pytest.raises(NetError, match=r"\(64,\), 1 dimensions; expected 3, \(channels, height, width\)"):
        factory(input_shape=(64,), classes=10)


def test_quick_pools_as_caffe_does():
    """Caffe: 32 → 16 → 8 → 4, and the overhang of an average window is not counted."""
    net = cifar10_quick(input_shape=(3, 32, 32), classes=10)
    pool = net.get_submodule("pool2")
    image = torch.arange(16, dtype=torch.float32).reshape(1, 1, 4, 4)
    rows = [[image[0, 0, r : r + 3, c : c + 3].mean().item() for c in (0, 2)] for r in (0, 2)]
    assert torch.allclose(pool(image), torch.tensor([[rows]]))
    assert net.get_submodule("ip1").weight.shape == (64, 64 * 4 * 4)  # pyright: ignore[reportAttributeAccessIssue]


def test_lenet_starts_from_caffes_xavier():
    torch.manual_seed(0)
    weight = lenet(input_shape=(1, 28, 28), classes=10).get_parameter("ip1.weight")
    bound = math.sqrt(3 / weight.shape[1])
    assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("name", "shape"), [("cifar10_quick", (3, 32, 32)), ("digits_cnn", (1, 8, 8))])
def test_first_loss_is_that_of_a_guess(name, shape):
    net = build_net(name, {}, input_shape=shape, classes=10, seed=0)
    images = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    loss = nn.functional.cross_entropy(net(images), torch.arange(64) % 10)
    assert loss.item() == pytest.approx(math.log(10), abs=0.15)


@pytest.mark.parametrize(("name", "config"), [("lenet", "mnist_lenet"), ("cifar10_quick", "cifar10_quick")])
def test_learns_with_the_shipped_solver(name, config):
    """Ten noisy, smooth prototypes are told apart within 60 steps."""
    solver = load_config(CONFIGS / f"{config}.toml").solver
    shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(10, shape[0], 8, 8, generator=generator)
    prototypes = nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    net = build_net(name, {}, input_shape=shape, classes=10, seed=0)
    optimiser = torch.optim.SGD(net.parameters(), lr=solver.learning_rate, momentum=solver.momentum)
    losses: list[float] = []
    for _ in range(60):
        labels = torch.randint(0, 10, (32,), generator=generator)
        images = prototypes[labels] + 0.5 * torch.randn(32, *shape, generator=generator)
        loss = nn.functional.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]


def test_digits_cnn_takes_its_width_and_refuses_none():
    assert count(digits_cnn(input_shape=(1, 8, 8), classes=10, width=8)) < 33_490 / 4
    with pytest.raises(NetError, match=r"width is 0; it must be at least 1: set net\.arguments\.width"):
        digits_cnn(input_shape=(1, 8, 8), classes=10, width=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_averaged_replicas_reach_97_percent_on_digits(seed):
    """The shipped recipe without Spark: two replicas in one process, averaged every 10 steps."""
    images, labels, held_images, held_labels = digits_split(seed)
    rounds, local_steps = 30, 10
    replicas = [build_net("digits_cnn", {}, input_shape=(1, 8, 8), classes=10, seed=seed) for _ in range(2)]
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
