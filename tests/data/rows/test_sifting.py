"""Rows of which some cannot be used: found one by one, whatever is wrong with them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoded import png
from sparknet.data.rows.column_plan import ColumnPlan
from sparknet.data.rows.columns import Column, ImageForm
from sparknet.data.rows.reading import ReadPlan
from sparknet.data.rows.sifting import RowSieve
from sparknet.errors import DataError

NUMBERS = Column(name="x", dtype="float32", shape=(3,))
IMAGES = Column(name="i", dtype="uint8", shape=(3, 4, 4))
WRONG = (None, [1.0, 2.0], [1.0, None, 2.0], [1.0, float("inf"), 0.0], [])


def sieve(*, refuse=False, any_type=False, columns=(NUMBERS,)):
    plans = tuple(
        ColumnPlan(name=one.name, form=ImageForm() if one is IMAGES else None).as_trained(one, crop=0)
        for one in columns
    )
    return RowSieve(ReadPlan(columns=plans), columns, partition=2, refuse=refuse, any_type=any_type)


def batch(cells, **more):
    return pa.record_batch({"c0": pa.array(cells, pa.list_(pa.float32())), **more})


@given(st.lists(st.one_of(st.none(), st.sampled_from(range(len(WRONG)))), max_size=20))
def test_every_bad_row_is_found_wherever_it_is(which):
    good = [wrong is None for wrong in which]
    cells = [[float(at)] * 3 if wrong is None else WRONG[wrong] for at, wrong in enumerate(which)]
    found = sieve().read(batch(cells))
    assert found.good.tolist() == good
    expected = [float(at) for at, fine in enumerate(good) if fine]
    assert (found.values["x"][:, 0].tolist() if expected else dict(found.values)) == (expected or {})


def test_what_was_said_of_a_row_is_heard():
    said = {
        "fault": pa.array([None, "bad word", None, None], pa.string()),
        "error": pa.array([None, None, "torn", None], pa.string()),
        "name": pa.array(["a", "b", "c", "d"]),
    }
    rows = batch([[1.0] * 3, [2.0] * 3, None, [4.0] * 3], **said)
    found = sieve().read(rows)
    assert found.good.tolist() == [True, False, False, True]
    assert found.values["x"][:, 0].tolist() == [1, 4]
    with pytest.raises(DataError, match=r"^bad word$"):
        sieve(refuse=True).read(rows)
    with pytest.raises(DataError, match=r"^torn; a row that cannot be used is an error: .* handle_invalid"):
        sieve(refuse=True).read(rows.drop_columns(["fault"]))


def test_a_refused_row_is_named_by_its_place_in_the_partition():
    reader = sieve(refuse=True)
    assert reader.read(batch([[1.0] * 3] * 5)).good.all()
    with pytest.raises(DataError, match=r"column x: row 6 of partition 2 has 2 values"):
        reader.read(batch([[1.0] * 3, [1.0, 2.0]]))


def test_images_that_cannot_be_decoded_are_passed_over_and_pieces_joined():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4), np.uint8)
    cells = [png(one) for one in pixels]
    cells[0], cells[20], cells[33] = b"no image", cells[20][:-12], png(np.zeros((3, 5, 4), np.uint8))
    found = sieve(columns=(IMAGES,)).read(pa.record_batch({"c0": pa.array(cells, pa.binary())}))
    good = [at for at in range(40) if at not in (0, 20, 33)]
    assert np.flatnonzero(found.good).tolist() == good
    np.testing.assert_array_equal(found.values["i"], pixels[good])


def test_rows_of_another_type_are_no_fault_of_one_row():
    cells = pa.record_batch({"c0": pa.array([[1.0] * 48], pa.list_(pa.float32()))})
    with pytest.raises(DataError, match=r"column i is float32 of shape .3, 4, 4.; the model was trained on uint8"):
        sieve(columns=(IMAGES,)).read(cells)
    assert sieve(columns=(IMAGES,), any_type=True).read(cells).good.all()
