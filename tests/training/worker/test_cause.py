"""What an error of a worker tells, by where it came from and of what kind it is."""

import re

import pytest
import torch
from torch import nn

from sparknet.errors import ClusterError, DataError, NetError
from sparknet.training.worker.cause import cause_of


class Own(nn.Module):
    """A net of a user's, which fails in a line of its own or in torch's below it."""

    def forward(self, rows):
        if rows.dim() == 1:
            raise ValueError("rows\nof one axis")
        return rows @ torch.zeros(3, 3)


def raised(action, *arguments):
    with pytest.raises(BaseException) as found:  # noqa: PT011 - its kind is what the tests look at
        action(*arguments)
    return found.value


@pytest.mark.parametrize(("axes", "line"), [(1, 'raise ValueError("rows'), (2, "return rows @ torch.zeros")])
def test_the_innermost_line_of_the_users_own_code_is_named(axes, line):
    found = cause_of(raised(Own(), torch.zeros([2] * axes)))
    place = rf"{re.escape(__file__)}, line \d+, in forward: {re.escape(line)}"
    assert re.match(rf".*Error: .* \({place}", found.text)
    assert "\n" not in found.text
    assert found.place in found.text
    assert found.trace.startswith("Traceback")
    assert "_call_impl" in found.trace
    assert not found.fatal


def test_an_error_of_torchs_alone_has_no_place():
    with pytest.raises(RuntimeError) as found:
        exec("torch.zeros(2) @ torch.zeros(3)", {"torch": torch})  # no file: as in code that nobody can look up
    assert "line 1, in <module>" in cause_of(found.value).place
    error = RuntimeError("of nobody")
    assert (cause_of(error).text, cause_of(error).place) == ("RuntimeError: of nobody", "")


@pytest.mark.parametrize("kind", [ConnectionResetError, TimeoutError, MemoryError, torch.OutOfMemoryError, OSError])
def test_what_may_be_gone_a_moment_later_is_no_fault_of_the_code(kind):
    def fails():
        raise kind("gone")

    found = cause_of(raised(fails))
    assert found.place == ""
    assert "in fails: raise kind" in found.text
    assert not found.fatal


def test_what_was_raised_on_purpose_says_whether_it_can_be_helped():
    assert cause_of(DataError("no such file")).text == "no such file"
    assert cause_of(DataError("no such file")).fatal
    assert not cause_of(ClusterError("no peer")).fatal
    assert cause_of(ClusterError("no peer")).trace == ""


def test_of_what_it_was_made_is_told_where_that_is_the_users():
    def wraps():
        try:
            Own()(torch.zeros(2))
        except ValueError as error:
            raise NetError("the net failed") from error

    found = cause_of(raised(wraps))
    assert found.text.startswith(f"the net failed ({__file__}, line ")
    assert "ValueError: rows" in found.trace
    assert found.fatal
