"""Every filler against the moments, limits and values that Caffe's has."""

import json
import math

import numpy as np
import pytest
import torch

from caffe_cases import Case, cases
from sparknet.caffe import CaffeNet


def filled(case: Case) -> np.ndarray:
    torch.manual_seed(20)
    net = CaffeNet.from_prototxt(case.path / "net.prototxt")
    return net.weights()["layer"][0].detach().double().numpy()


@pytest.mark.parametrize("case", cases("fillers"), ids=lambda case: case.name)
def test_filler_draws_what_caffe_draws(case: Case):
    told = json.loads((case.path / "filler.json").read_text())
    values, expected = filled(case), told["expected"]
    assert list(values.shape) == told["shape"]
    if "exact" in case.index["tolerance"]:
        exact = np.full(values.shape, told["filler"].get("value", 0.0))
        if (case.path / "values.npz").exists():
            exact = np.load(case.path / "values.npz")["layer/0"]
        np.testing.assert_allclose(values, exact, rtol=0, atol=case.index["tolerance"]["exact"])
        return
    errors, count = case.index["tolerance"]["standard_errors"], values.size
    assert abs(values.mean() - expected["mean"]) <= errors * expected["std"] / math.sqrt(count)
    loose = told["filler"]["type"] == "positive_unitball" or "sparse" in told["filler"]
    margin = 0.02 * expected["std"] if loose else errors * expected["std"] / math.sqrt(2 * count)
    assert abs(values.std() - expected["std"]) <= margin
    assert expected.get("lower", -np.inf) <= values.min()
    assert values.max() <= expected.get("upper", np.inf)
    if "zero_fraction" in expected:
        zeros = (values == 0).mean()
        spread = math.sqrt(expected["zero_fraction"] * (1 - expected["zero_fraction"]) / count)
        assert abs(zeros - expected["zero_fraction"]) <= errors * spread
    if "row_sum" in expected:
        np.testing.assert_allclose(values.reshape(len(values), -1).sum(1), expected["row_sum"], rtol=1e-5)


def test_same_seed_same_weights():
    (case,) = (case for case in cases("fillers") if case.name == "xavier")
    np.testing.assert_array_equal(filled(case), filled(case))


def test_filling_tensors_without_memory_does_nothing():
    for case in cases("fillers"):
        with torch.device("meta"):
            net = CaffeNet.from_prototxt(case.path / "net.prototxt")
        assert net.weights()["layer"][0].is_meta
