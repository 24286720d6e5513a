"""The outermost values of a column: enough to tell whether all are such as somebody takes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sparknet.data.rows.extremes import Extremes, Seen


def of(values: np.ndarray, first: int = 0) -> Extremes:
    return Extremes.of(values, lambda row: f"row {first + row}")


def test_two_on_either_side_and_where_they_were_first() -> None:
    found = of(np.asarray([[4, 2], [9, 2], [7, 1], [9, 8]]))
    assert [(one.value, one.row) for one in found.seen] == [(1, "row 2"), (2, "row 0"), (8, "row 3"), (9, "row 1")]
    assert found.fraction is None


def test_a_fraction_is_seen_wherever_it_lies() -> None:
    found = of(np.asarray([0, 3, 1.5, 2.5, 3], np.float32))
    assert found.fraction == Seen(value=1.5, row="row 2")
    assert found.fraction in found.all()


def test_numbers_beyond_what_a_float_holds_stay_apart() -> None:
    found = of(np.asarray([2**60, 2**60 + 1, 0], np.int64))
    assert [one.value for one in found.seen] == [0, 2**60, 2**60 + 1]


def test_of_no_rows_nothing_is_known() -> None:
    assert of(np.zeros((0, 3), np.uint8)) == Extremes()
    assert not list(Extremes().all())


@given(
    arrays.arrays(np.int64, st.integers(1, 12), elements=st.integers(-5, 9)),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(-5, 9),
)
def test_what_is_wrong_anywhere_shows_in_the_sum_of_the_parts(
    values: np.ndarray, parts: int, most: int, ignored: int
) -> None:
    """Of values from 0 to `most`, and one number beside them."""
    cuts = np.array_split(values, parts)
    starts = np.cumsum([0, *(len(cut) for cut in cuts)])
    found = sum((of(cut, int(start)) for cut, start in zip(cuts, starts, strict=False)), Extremes())

    def wrong(value: float) -> bool:
        return not 0 <= value <= most and value != ignored

    assert any(wrong(one.value) for one in found.all()) == any(wrong(value) for value in values)
    for one in found.all():
        row = int(one.row.removeprefix("row "))
        assert values[row] == one.value
        assert one.value not in values[:row]
