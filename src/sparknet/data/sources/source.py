"""What a format is to the rest of the house: a reader that opens a location once, and reads it part by part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sparknet.data.rows.columns import ImageHeader
from sparknet.data.rows.extremes import Extremes
from sparknet.data.rows.row_schema import RowSchema
from sparknet.data.sources.files import Location
from sparknet.data.storage.place import Facts, Storage

__all__ = ["IsWrong", "Reader", "Source"]

IsWrong = Callable[[np.ndarray], np.ndarray]
"""Which of some numbers are of interest: bool of their shape."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A location that was opened: its files were listed, once."""

    schema: RowSchema
    """What its rows are, as far as the files tell without reading every row."""
    files: Sequence[Facts]
    """Every file that says what the rows are, label files included: equal for equal rows."""
    labels: "Callable[[IsWrong], Extremes] | None" = None
    """The outermost labels of all rows, where a listing has them; at least those of such as are of interest. None:
    only the rows have labels."""
    beginning: Callable[[], Sequence[Any]] | None = None
    """Gives partitions whose first rows are the source's, where it takes long to cut it; None: it does not."""
    header: ImageHeader | None = None
    """Of the first whole image, where whoever opened the source elsewhere has looked; None: the rows tell."""
    cut: Callable[[], Sequence[Any]]
    """Cuts the rows into input partitions. Called late, since databases and archives are gone through for it."""

    # Once: for an archive all its headers are read, and both the count of tasks and the tasks ask for it.
    @cached_property
    def partitions(self) -> Sequence[Any]:
        """The input partitions, in the order of the rows: what one task each reads. They are plain, small data.

        Raises:
            DataError: a file cannot be read, or is damaged as far as it had to be looked at.
        """
        return self.cut()


class Reader(Protocol):
    """What the module of a format provides."""

    def open_source(self, where: Location) -> Source:
        """List a location and look at its beginning: what is wrong at first sight is found here.

        Raises:
            DataError: nothing is there, or it is not of this format.
        """
        ...

    def read(self, partition: Any, storage: Storage) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one of the source's partitions; runs in a task.

        Columns: `image` binary (pixels of the schema's shape, or image files) or list<float>, `label` int64, and
        where rows have names and may be damaged, `name` string and `error` string: null for whole rows, else image
        and label are null.

        Raises:
            DataError: a file is gone, has changed, or is damaged beyond single rows.
        """
        ...
