"""Every layer against what Caffe computed for it."""

import pytest

from caffe_cases import Case, cases, check_case


@pytest.mark.parametrize("case", cases("layers"), ids=lambda case: case.name)
def test_layer_computes_what_caffe_computes(case: Case):
    check_case(case)
