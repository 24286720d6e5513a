"""The outermost values of a column, and where they were first."""

import numpy as np
import pytest

from sparknet.data.rows.extremes import Extremes, Seen


def of(values: object, dtype: str = "int64") -> Extremes:
    return Extremes.of(np.array(values, dtype), lambda at: f"row {at}")


def told(extremes: Extremes) -> list[tuple[float, str]]:
    return [(one.value, one.row) for one in extremes.seen]


def test_the_two_least_and_greatest_and_where_they_were_first() -> None:
    found = of([3, 9, 1, 9, 255, 4, 0, 1])
    assert told(found) == [(0, "row 6"), (1, "row 2"), (9, "row 1"), (255, "row 4")]
    assert found.fraction is None


@pytest.mark.parametrize("values", [[7, 7, 7], [7, 8, 7], [7, 8, 9]])
def test_few_values_are_there_once(values: list[int]) -> None:
    assert [one.value for one in of(values).seen] == sorted(set(values))


def test_no_rows() -> None:
    assert of([]) == Extremes()


def test_values_of_rows_with_axes_name_their_row() -> None:
    assert told(of([[[0, 0], [0, 0]], [[0, 5], [0, 0]]], "uint8")) == [(0, "row 0"), (5, "row 1")]


def test_the_first_fraction() -> None:
    assert of([1, 2.5, 0.5], "float32").fraction == Seen(value=2.5, row="row 1")
    assert of([1, 2], "float32").fraction is None


@pytest.mark.parametrize("cut", [0, 1, 3, 7, 8])
def test_parts_add_up_to_the_whole(cut: int) -> None:
    values = np.array([3, 9.5, 1, 9, 255, 4, 0, 1], "float32")
    whole = Extremes.of(values, lambda at: f"row {at}")
    first = Extremes.of(values[:cut], lambda at: f"row {at}")
    assert first + Extremes.of(values[cut:], lambda at: f"row {cut + at}") == whole


def test_whole_numbers_keep_all_digits() -> None:
    assert of([2**53 + 1]).seen[0].value == 2**53 + 1
