"""The digest of code: what it tells apart, and what it does not, also in another process."""

import functools
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from sparknet.ml.code_digest import digest_of_code


def net(width, act=nn.ReLU):
    class Net(nn.Module):
        kind = "dense"

        def __init__(self, classes=3):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, width), act(), nn.Linear(width, classes))

        def forward(self, features):
            return self.layers(features)

    return Net


def other_net():
    class Net(nn.Module):
        kind = "dense"

        def __init__(self, classes=3):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))

        def forward(self, features):
            return self.layers(features).relu()

    return Net


def test_a_cell_that_is_run_again_is_the_same_code():
    assert digest_of_code(net(8)) == digest_of_code(net(8))
    assert digest_of_code(lambda x: x + 1) == digest_of_code(lambda x: x + 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (net(8), net(9)),
        (net(8), net(8, nn.Tanh)),
        (net(8), other_net()),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.relu(), lambda x: x.tanh()),
        (lambda x, by=1: x * by, lambda x, by=2: x * by),
        (functools.partial(net, 8), functools.partial(net, 9)),
        (functools.partial(net, width=8), functools.partial(net, width=9)),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
    ],
)
def test_other_code_or_other_values_are_another(one, other):
    assert digest_of_code(one) != digest_of_code(other)


def test_weights_are_no_code():
    module = nn.Linear(2, 2)
    before = digest_of_code(module)
    with torch.no_grad():
        module.weight += 1
    assert digest_of_code(module) == before


def test_what_refers_to_itself_ends():
    def count(n):
        return n and count(n - 1)

    assert len(digest_of_code(count)) == 16


def test_another_process_finds_the_same(tmp_path):
    program = textwrap.dedent(
        """
        from torch import nn
        from sparknet.ml.code_digest import digest_of_code

        class Net(nn.Module):
            names = {"a", "b", "c", "d"}

            def forward(self, x):
                return x if x in {"one", "two", "three", "four"} else self.names

        print(digest_of_code(Net))
        """
    )
    (tmp_path / "program.py").write_text(program)
    found = {
        subprocess.run(
            [sys.executable, tmp_path / "program.py"],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
