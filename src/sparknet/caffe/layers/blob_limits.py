"""How large a blob may be, and how large a size: Caffe counts both in an `int` (blob.cpp: Reshape)."""

import math
from collections.abc import Sequence

from sparknet.errors import NetError

__all__ = ["INT_MAX", "MOST_AXES", "check_blob_shape", "check_int"]

INT_MAX = 2**31 - 1
# blob.hpp: kMaxBlobAxes.
MOST_AXES = 32


def check_blob_shape(shape: Sequence[int]) -> None:
    """Whether a blob may have this shape.

    Raises:
        NetError: it has more than 32 axes, or more than 2147483647 numbers.
    """
    if len(shape) > MOST_AXES:
        raise NetError(f"a blob would have {len(shape)} axes; it may have at most {MOST_AXES}: join some of them")
    # blob.cpp: "blob size exceeds INT_MAX". A net beyond it could not be given back to Caffe.
    count = math.prod(shape)
    if count > INT_MAX:
        raise NetError(
            f"a blob of shape {tuple(shape)} would hold {count} numbers; it may hold at most {INT_MAX}: make its "
            "sizes smaller"
        )


def check_int(field: str, *values: int) -> None:
    """Whether sizes, which the file gives as unsigned numbers, fit an `int`.

    Raises:
        NetError: one is above 2147483647.
    """
    if max(values, default=0) > INT_MAX:
        raise NetError(f"{field} is {', '.join(map(str, values))}; it must be at most {INT_MAX}: make it smaller")
