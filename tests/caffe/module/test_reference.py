"""Whole nets against what Caffe computed for them."""

import pytest
import torch

from caffe_cases import Case, backward_distances, cases, check_case, check_forward


@pytest.mark.parametrize("case", cases("nets"), ids=lambda case: case.name)
def test_net_computes_what_caffe_computes(case: Case):
    check_case(case)


@pytest.mark.parametrize("case", cases("nets"), ids=lambda case: case.name)
def test_net_in_float32(case: Case):
    check_forward(case, torch.float32)
    # a single ReLU on the other side of its kink moves one blob far: so the median
    apart = sorted(backward_distances(case, torch.float32).values())
    assert apart[len(apart) // 2] <= case.index["tolerance"]["backward"]
